"""What a process is told about its way to Redis, the same for every program.

Gateway and operator inherit the fields in their settings, workers read them from the environment alone. Files are
opened by `access`, once, with the program's own reader of secrets; TLS files are read again when they change (`tls`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hanmaru_contracts import names
from hanmaru_contracts.crd.schema import StrictSchema
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from pydantic import ValidationError, field_validator, model_validator

from hanmaru_redis.address import Address, read_address
from hanmaru_redis.tls import Tls

DEFAULT_URL = f"redis://127.0.0.1:{names.REDIS_PORT}/0"

ReadSecret = Callable[[Path, str], str]
"""(file, what it is) -> its text. Raises HanmaruError (CONFIGURATION)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """Where Redis is and how we get in."""

    address: Address
    credentials: Credentials = Credentials()
    sentinel: Credentials = Credentials()
    """For the sentinels themselves."""
    tls: Tls | None = None


def access_to(url: str, user: str | None = None, password: str | None = None) -> Access:
    """Without TLS. Raises HanmaruError (CONFIGURATION)."""
    return Access(read_address(url), Credentials(user, password))


class RedisSettings(StrictSchema):
    """One process's way to Redis."""

    redis_url: str = DEFAULT_URL
    """Where Redis is, without credentials: `redis://host:6379/0`, `redis+sentinel://host:26379,host:26379/mymaster`
    or `redis+cluster://host:6379,host:6379`; `rediss` instead of `redis` for TLS."""
    redis_user: str | None = None
    """ACL user. Absent: Redis asks for none."""
    redis_password_file: Path | None = None
    """File of that user's password."""
    redis_ca_file: Path | None = None
    """PEM of the authorities that signed Redis's certificates. Absent: the system's."""
    redis_cert_file: Path | None = None
    """PEM of a client certificate, where Redis asks for one."""
    redis_key_file: Path | None = None
    """PEM of that certificate's key."""
    redis_server_name: str = ""
    """Name in Redis's certificates. Empty: the address that is connected to."""
    redis_sentinel_user: str | None = None
    """User of the sentinels themselves. Absent: they ask for none."""
    redis_sentinel_password_file: Path | None = None
    """File of the sentinels' password. Absent: they ask for none."""

    @field_validator("redis_url")
    @classmethod
    def _url_is_known(cls, url: str) -> str:
        try:
            read_address(url)
        except HanmaruError as error:
            raise ValueError(error.message) from None
        return url

    @model_validator(mode="after")
    def _redis_tls_is_whole(self) -> Self:
        require_whole_tls(
            read_address(self.redis_url),
            (self.redis_ca_file, self.redis_cert_file, self.redis_key_file),
            self.redis_server_name,
        )
        return self

    def redis_access(self, read_secret: ReadSecret) -> Access:
        """How to get in, with what the files hold now. Raises HanmaruError (CONFIGURATION)."""
        address = read_address(self.redis_url)
        password, sentinel = self.redis_password_file, self.redis_sentinel_password_file
        tls = None
        if address.has_tls:
            tls = Tls(self.redis_ca_file, self.redis_cert_file, self.redis_key_file, self.redis_server_name)
            tls.context()  # a file that is wrong is said now
        return Access(
            address,
            Credentials(self.redis_user, read_secret(password, "Redis password") if password else None),
            Credentials(
                self.redis_sentinel_user, read_secret(sentinel, "password of the sentinels") if sentinel else None
            ),
            tls,
        )


def require_whole_tls(address: Address, files: tuple[object, object, object], server_name: str) -> None:
    """Raise ValueError where CA, client certificate and key are not what the URL says. The one place of these rules."""
    _, cert, key = files
    if (cert is None) != (key is None):
        raise ValueError("a client certificate for Redis needs both its certificate's and its key's file, or neither")
    if not address.has_tls and (any(files) or server_name):
        raise ValueError("Redis has TLS files or a server name, but its URL has no TLS; write rediss instead of redis")


REDIS_FROM_ENVIRONMENT = {
    "redis_url": names.ENV_REDIS_URL,
    "redis_user": names.ENV_REDIS_USER,
    "redis_password_file": names.ENV_REDIS_PASSWORD_FILE,
    "redis_ca_file": names.ENV_REDIS_CA_FILE,
    "redis_cert_file": names.ENV_REDIS_CERT_FILE,
    "redis_key_file": names.ENV_REDIS_KEY_FILE,
    "redis_server_name": names.ENV_REDIS_SERVER_NAME,
    "redis_sentinel_user": names.ENV_REDIS_SENTINEL_USER,
    "redis_sentinel_password_file": names.ENV_REDIS_SENTINEL_PASSWORD_FILE,
}
"""Field -> variable."""


def given_by(environment: Mapping[str, str]) -> dict[str, object]:
    """The fields that the environment gives; an empty variable gives none."""
    return {
        name: environment[variable] for name, variable in REDIS_FROM_ENVIRONMENT.items() if environment.get(variable)
    }


def read_access(environment: Mapping[str, str], read_secret: ReadSecret) -> Access:
    """For a process whose whole way to Redis stands in its environment. Raises HanmaruError (CONFIGURATION)."""
    try:
        settings = RedisSettings.model_validate(given_by(environment))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'Redis'}: {e['msg']}" for e in error.errors())
        raise HanmaruError(ErrorCode.CONFIGURATION, f"settings are wrong: {faults}") from None
    return settings.redis_access(read_secret)
