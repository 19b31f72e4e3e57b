"""Every setting of an operator process: read once by `main`, passed down, never read again.

What an installation decides stands in one YAML file, which the chart writes; addresses, names and files come by
environment as for the other programs, and win. Secrets come by file, and only `read_secret` opens those.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from hanmaru_contracts import names
from hanmaru_contracts.crd.schema import StrictSchema
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import EngineType
from hanmaru_redis.address import read_address
from hanmaru_redis.settings import DEFAULT_URL, REDIS_FROM_ENVIRONMENT, RedisSettings, require_whole_tls
from pydantic import Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from hanmaru_operator.leader import Times
from hanmaru_operator.plan.replicas import RETURN_AFTER_S
from hanmaru_operator.render.settings import RedisFile, RenderSettings, TierRedis

Seconds = Annotated[float, Field(gt=0)]
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class LeaseSettings(StrictSchema):
    """How one of several replicas leads."""

    name: str = "hanmaru-operator"
    """The Lease in the operator's namespace."""
    lease_s: Seconds = 15.0
    """How long the others wait for a leader that shows no life."""
    renew_deadline_s: Seconds = 10.0
    """How long a leader that cannot renew goes on; then it ends."""
    retry_s: Seconds = 2.0
    """Between renewals."""

    @model_validator(mode="after")
    def _are_apart(self) -> Self:
        if not self.lease_s > self.renew_deadline_s > 2 * self.retry_s:
            raise ValueError("leaseS must be above renewDeadlineS, and that above twice retryS")
        return self

    @property
    def times(self) -> Times:
        """For the elector."""
        return Times(self.lease_s, self.renew_deadline_s, self.retry_s)


class Settings(RedisSettings):
    """One operator process."""

    namespace: str
    """Its own; the Lease is there. From `POD_NAMESPACE` or the pod's ServiceAccount."""
    pod_name: str
    """Part of its identity as a leader."""
    tenant_namespaces: tuple[str, ...] = ()
    """The only namespaces in which Tenants count and Secrets are read. Empty: its own."""
    host: str = "127.0.0.1"
    """Address of health and metrics; the chart sets 0.0.0.0."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = names.OPERATOR_HTTP_PORT
    """Port of health and metrics."""
    lease: LeaseSettings = LeaseSettings()
    """How one of several replicas leads."""
    workers: Annotated[int, Field(gt=0, le=64)] = 8
    """Objects reconciled at the same time."""
    resync_interval_s: Seconds = 600.0
    """How often everything is listed and looked at again."""
    return_after_s: Seconds = RETURN_AFTER_S
    """How long a better pool must have had room before a replica returns to it."""

    platform_secret_file: Path
    """File of the platform secret, mode 0600."""

    worker_redis_url: str = ""
    """Where workers register. Empty: as `redisUrl`."""
    worker_redis_user: str = ""
    """The workers' Redis user. Empty: Redis asks for none."""
    worker_redis_password_file: Path | None = None
    """That user's password, which every replica is given. Absent: it has none."""
    worker_redis_ca_file: Path | None = None
    """PEM of the authorities that signed Redis's certificates. Absent: as `redisCaFile` where workers have the same
    URL, else the systems'."""
    worker_redis_cert_file: Path | None = None
    """PEM of the workers' client certificate, where Redis asks for one."""
    worker_redis_key_file: Path | None = None
    """PEM of that certificate's key."""
    worker_redis_server_name: str = ""
    """Name in Redis's certificates. Empty: as `redisServerName` where workers have the same URL, else the address."""
    worker_redis_sentinel_user: str = ""
    """The sentinels' own user. Empty: they ask for none."""
    worker_redis_sentinel_password_file: Path | None = None
    """The sentinels' password. Absent: they ask for none."""
    tier_redis_url: str = ""
    """Redis of the deployments' shared caches, better one of their own (docs/shared-cache.md). Empty: none."""
    tier_redis_user: str = ""
    """The shared caches' Redis user. Empty: Redis asks for none."""
    tier_redis_password_file: Path | None = None
    """That user's password, which every replica with a shared cache is given. Absent: it has none."""
    tier_redis_ca_file: Path | None = None
    """PEM of the authorities that signed that Redis's certificates. Absent: the systems'."""
    tier_redis_cert_file: Path | None = None
    """PEM of a client certificate, where that Redis asks for one."""
    tier_redis_key_file: Path | None = None
    """PEM of that certificate's key."""
    tier_redis_server_name: str = ""
    """Name in that Redis's certificates. Empty: the address."""
    tier_redis_sentinel_user: str = ""
    """Its sentinels' own user. Empty: they ask for none."""
    tier_redis_sentinel_password_file: Path | None = None
    """Its sentinels' password. Absent: they ask for none."""
    worker_images: dict[EngineType, str] = Field(default_factory=dict)
    """The worker's image for each engine, where a pool names none."""
    operator_image: str = ""
    """The operator's own image: the pods that read a checkpoint's facts run it."""
    trace_endpoint: str = ""
    """OTLP gRPC endpoint of the engines' spans. Empty: no tracing."""
    gateway_namespace: str = ""
    """Where the gateways' pods are. Empty: the operator's own namespace."""
    gateway_pod_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the gateways' pods. Empty: every pod of that namespace."""
    metrics_namespace_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the namespaces that may fetch the workers' metrics. Empty: none."""
    image_pull_policy: str = ""
    """Of the pods' containers. Empty: the cluster's default."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets that a deployment's namespace holds for the images above."""

    bands: Annotated[tuple[str, ...], Field(min_length=1)] = ("standard",)
    """Priority bands that a tenant may be in."""
    shared_domains: dict[str, tuple[str, ...] | None] = Field(default_factory=dict)
    """Shared caches, and the tenants that may use them; null: every tenant."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {name: value for name, value in given.items() if value != "" or not name.endswith("File")}
        own_url = given.get("redisUrl") or DEFAULT_URL
        worker_url = given.get("workerRedisUrl") or own_url
        shared = ("CaFile", "ServerName") if worker_url == own_url else ()
        return {
            **given,
            "tenantNamespaces": given.get("tenantNamespaces") or (given.get("namespace"),),
            "gatewayNamespace": given.get("gatewayNamespace") or given.get("namespace"),
            "workerRedisUrl": worker_url,
            **{f"workerRedis{name}": given[f"redis{name}"] for name in shared if given.get(f"redis{name}")}
            | {name: value for name, value in given.items() if name.startswith("workerRedis") and value},
        }

    @model_validator(mode="after")
    def _workers_reach_redis(self) -> Self:
        _require_reachable(
            "workerRedisUrl",
            self.worker_redis_url,
            (self.worker_redis_ca_file, self.worker_redis_cert_file, self.worker_redis_key_file),
            self.worker_redis_server_name,
        )
        if self.tier_redis_url:
            _require_reachable(
                "tierRedisUrl",
                self.tier_redis_url,
                (self.tier_redis_ca_file, self.tier_redis_cert_file, self.tier_redis_key_file),
                self.tier_redis_server_name,
            )
        return self

    @property
    def worker_redis_files(self) -> dict[RedisFile, Path]:
        """What every replica is given to reach Redis with."""
        files = {
            RedisFile.PASSWORD: self.worker_redis_password_file,
            RedisFile.CA: self.worker_redis_ca_file,
            RedisFile.CERT: self.worker_redis_cert_file,
            RedisFile.KEY: self.worker_redis_key_file,
            RedisFile.SENTINEL_PASSWORD: self.worker_redis_sentinel_password_file,
        }
        return {file: path for file, path in files.items() if path is not None}

    @property
    def tier_redis_files(self) -> dict[RedisFile, Path]:
        """What every replica with a shared cache is given to reach that cache's Redis with."""
        files = {
            RedisFile.PASSWORD: self.tier_redis_password_file,
            RedisFile.CA: self.tier_redis_ca_file,
            RedisFile.CERT: self.tier_redis_cert_file,
            RedisFile.KEY: self.tier_redis_key_file,
            RedisFile.SENTINEL_PASSWORD: self.tier_redis_sentinel_password_file,
        }
        return {file: path for file, path in files.items() if path is not None and self.tier_redis_url}

    @property
    def _tier(self) -> TierRedis | None:
        if not self.tier_redis_url:
            return None
        return TierRedis(
            self.tier_redis_url,
            self.tier_redis_user,
            self.tier_redis_server_name,
            self.tier_redis_sentinel_user,
            frozenset(self.tier_redis_files),
        )

    @property
    def render(self) -> RenderSettings:
        """As far as the rendering of pods goes."""
        return RenderSettings(
            worker_images=self.worker_images,
            operator_image=self.operator_image,
            redis_url=self.worker_redis_url,
            redis_user=self.worker_redis_user,
            redis_server_name=self.worker_redis_server_name,
            redis_sentinel_user=self.worker_redis_sentinel_user,
            redis_files=frozenset(self.worker_redis_files),
            tier=self._tier,
            trace_endpoint=self.trace_endpoint,
            gateway_namespace=self.gateway_namespace,
            gateway_pod_labels=self.gateway_pod_labels,
            metrics_namespace_labels=self.metrics_namespace_labels,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
        )


def _require_reachable(
    name: str, url: str, files: tuple[Path | None, Path | None, Path | None], server_name: str
) -> None:
    """Raise ValueError where a URL is none, or TLS files are not what it says."""
    try:
        address = read_address(url)
    except HanmaruError as error:
        raise ValueError(f"{name}: {error.message}") from None
    require_whole_tls(address, files, server_name)


_FROM_ENVIRONMENT = {
    "namespace": names.ENV_POD_NAMESPACE,
    "podName": names.ENV_POD_NAME,
    **{to_camel(field): variable for field, variable in REDIS_FROM_ENVIRONMENT.items()},
    "platformSecretFile": names.ENV_PLATFORM_SECRET_FILE,
}


def read_settings(environ: Mapping[str, str], *, hostname: str) -> Settings:
    """Settings from the file and the environment. Raises HanmaruError (CONFIGURATION) naming what is wrong."""
    path = environ.get(names.ENV_OPERATOR_SETTINGS_FILE)
    given = _read_file(Path(path)) if path else {}
    given |= {field: environ[variable] for field, variable in _FROM_ENVIRONMENT.items() if environ.get(variable)}
    given.setdefault("podName", hostname)
    if "namespace" not in given:
        given["namespace"] = _own_namespace()
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        raise HanmaruError(ErrorCode.CONFIGURATION, f"settings are wrong: {faults}") from None


def read_secret(path: Path, what: str) -> str:
    """The stripped text of a file that others may not read. Raises HanmaruError (CONFIGURATION), never quoting it.

    A group may read it: Kubernetes mounts Secrets group-readable for pods with an fsGroup.
    """
    return _read_text(path, what, is_secret=True)


def read_certificate(path: Path, what: str) -> str:
    """The stripped text of a file that anybody may read. Raises HanmaruError (CONFIGURATION)."""
    return _read_text(path, what, is_secret=False)


def _read_text(path: Path, what: str, *, is_secret: bool) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if is_secret and mode & stat.S_IRWXO:
                message = f"{path} has mode {mode:04o}, so every user may use it; run: chmod 600 {path}"
                raise HanmaruError(ErrorCode.CONFIGURATION, message)
            text = file.read().decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"the {what} cannot be read from {path}: {type(error).__name__}"
        raise HanmaruError(ErrorCode.CONFIGURATION, message) from error
    if not text:
        raise HanmaruError(ErrorCode.CONFIGURATION, f"the {what} in {path} is empty")
    return text


def _read_file(path: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HanmaruError(ErrorCode.CONFIGURATION, f"cannot read the settings in {path}: {error}") from error
    if not isinstance(read, dict):
        raise HanmaruError(ErrorCode.CONFIGURATION, f"{path} holds no settings; write `name: value` lines")
    return read


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        raise HanmaruError(
            ErrorCode.CONFIGURATION, f"{names.ENV_POD_NAMESPACE} is not set; name the operator's own namespace"
        ) from None
