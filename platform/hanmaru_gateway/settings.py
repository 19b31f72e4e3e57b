"""Every setting of a gateway process: read once by `launch`, passed down, never read again.

Files named here are read by `app` when it wires the process; nothing else touches the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import (
    GATEWAY_GRPC_PORT,
    GATEWAY_HTTP_PORT,
    GATEWAY_METRICS_PORT,
)
from hanmaru_redis.settings import REDIS_FROM_ENVIRONMENT, RedisSettings
from pydantic import Field, ValidationError, model_validator

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]

MIB = 1024 * 1024


class Settings(RedisSettings):
    """One gateway process."""

    host: str = "127.0.0.1"
    """Address all listeners bind. The laptop listens on loopback; the chart sets 0.0.0.0."""
    http_port: Port = GATEWAY_HTTP_PORT
    grpc_port: Port = GATEWAY_GRPC_PORT
    metrics_port: Port = GATEWAY_METRICS_PORT
    platform_secret_file: Path
    """File of the platform secret, mode 0600."""
    tenants_file: Path | None = None
    """Tenants to hold in Redis. Absent: Redis has them already (an operator writes them)."""
    tls_cert_file: Path | None = None
    """PEM certificate chain for both listeners. Absent: plain text."""
    tls_key_file: Path | None = None

    body_bytes: Annotated[int, Field(gt=0)] = 16 * MIB
    """Longest request body, counted unpacked."""
    default_output_tokens: Annotated[int, Field(gt=0)] = 8192
    """Most output of a request that names no limit. It is reserved from the tenant's limits until the answer ends."""
    header_timeout_s: Seconds = 10.0
    """How long a connection may take to send a request's head."""
    body_timeout_s: Seconds = 30.0
    """How long a client may take to send a request's body."""
    write_timeout_s: Seconds = 30.0
    """How long a client may leave a full buffer unread."""
    keep_alive_s: Annotated[int, Field(gt=0)] = 75
    """How long an idle connection is kept."""
    first_token_timeout_s: Seconds = 600.0
    """How long an engine may take until a stream's first event: queueing and prefill."""
    stall_timeout_s: Seconds = 30.0
    """How long an engine may leave a running stream without any event."""
    answer_timeout_s: Seconds = 1800.0
    """How long an engine may take for an answer that is not streamed."""
    connect_timeout_s: Seconds = 2.0
    """How long a connection to an engine may take."""
    redis_timeout_s: Seconds = 1.2
    """How long a request may wait for Redis, connecting included."""
    poll_interval_s: Seconds = 0.25
    """How often registrations are read."""
    shutdown_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long running answers may take to end after SIGTERM."""
    leave_delay_s: Annotated[float, Field(ge=0)] = 10.0
    """How long a gateway on a cluster still accepts after SIGTERM, unready: until no endpoint names it any more."""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS needs both tlsCertFile and tlsKeyFile, or neither")
        return self


_FROM_ENVIRONMENT = {
    **REDIS_FROM_ENVIRONMENT,
    "platform_secret_file": names.ENV_PLATFORM_SECRET_FILE,
    "tenants_file": names.ENV_TENANTS_FILE,
    "tls_cert_file": names.ENV_TLS_CERT_FILE,
    "tls_key_file": names.ENV_TLS_KEY_FILE,
}
ENV_PREFIX = "HANMARU_GATEWAY_"
"""Every other field has a variable too: this and the field's name in capitals."""


def variable_of(field: str) -> str:
    """The environment variable that sets the field."""
    return _FROM_ENVIRONMENT.get(field, ENV_PREFIX + field.upper())


def read_settings(environment: Mapping[str, str], given: Mapping[str, object]) -> Settings:
    """Settings from the environment, with what the command line gave on top (None: not given).

    Raises HanmaruError (CONFIGURATION) naming the setting at fault.
    """
    values: dict[str, object] = {
        field: environment[variable_of(field)] for field in Settings.model_fields if environment.get(variable_of(field))
    }
    values |= {field: value for field, value in given.items() if value is not None}
    if "platform_secret_file" not in values:
        raise HanmaruError(
            ErrorCode.CONFIGURATION, f"{names.ENV_PLATFORM_SECRET_FILE} is not set; name the platform secret's file"
        )
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        raise HanmaruError(ErrorCode.CONFIGURATION, f"settings are wrong: {faults}") from None


def read_secret(path: Path, what: str) -> str:
    """The stripped text of a secret's file. Raises HanmaruError (CONFIGURATION); the text is in no message."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HanmaruError(
            ErrorCode.CONFIGURATION, f"the {what} cannot be read from {path}: {type(error).__name__}"
        ) from error
    if not text:
        raise HanmaruError(ErrorCode.CONFIGURATION, f"{path} is empty; expected the {what}")
    return text


def require_files(settings: Settings) -> None:
    """Raise HanmaruError (CONFIGURATION) for a secret that replicas could not read, in clearer words than Ray's."""
    read_secret(settings.platform_secret_file, "platform secret")
    settings.redis_access(read_secret)
    for file, what in (
        (settings.tls_cert_file, "TLS certificate"),
        (settings.tls_key_file, "TLS key"),
    ):
        if file is not None:
            read_secret(file, what)
