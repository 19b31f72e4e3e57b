"""Which API server, and as whom: one reading of the credentials for both clients, ours and kopf's.

`main` reads it once. `KUBECONFIG` wins, then the pod's ServiceAccount, then `~/.kube/config`. A ServiceAccount's token
is rotated by the kubelet: our client reads the file again when it is refused, kopf logs in again through `login`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import httpx2
import kopf
import msgspec
import yaml
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

REQUEST_TIMEOUT_S = 10.0
"""For one request and its answer; a page of a list has it for itself."""
_DEFAULT_KUBECONFIG = "~/.kube/config"


def read_connection(environ: Mapping[str, str]) -> SingleConfig:
    """The API server and credentials to use. Raises HanmaruError (CONFIGURATION)."""
    try:
        if environ.get("KUBECONFIG"):
            config = KubeConfig.from_file(environ["KUBECONFIG"])
        elif environ.get("KUBERNETES_SERVICE_HOST"):
            config = KubeConfig.from_service_account()
        else:
            config = KubeConfig.from_file(_DEFAULT_KUBECONFIG)
        single = config.get()
    except (ConfigError, KeyError, TypeError, OSError, ValueError, yaml.YAMLError, msgspec.MsgspecError) as error:
        raise HanmaruError(
            ErrorCode.CONFIGURATION,
            f"there is no way to the API server: {error}; set KUBECONFIG, or run in a pod with a ServiceAccount",
        ) from error
    assert single is not None, "get() without a default raises instead"
    if single.user is None or single.user.exec or single.user.auth_provider:
        raise HanmaruError(
            ErrorCode.CONFIGURATION,
            f"context {single.context_name!r} has no certificate or token of its own; login programs are not run here",
        )
    return single


def open_http(connection: SingleConfig) -> httpx2.AsyncClient:
    """A connection pool with our credentials; whoever opens it closes it."""
    return AsyncClient(connection, ConnectionParams(timeout=httpx2.Timeout(REQUEST_TIMEOUT_S)))


def kopf_login(connection: SingleConfig) -> kopf.ConnectionInfo:
    """The same for kopf, read anew at each login so that a rotated token is seen."""
    cluster, user = connection.cluster, connection.user or User()
    return kopf.ConnectionInfo(
        server=cluster.server,
        ca_path=_path(connection, cluster.certificate_auth),
        ca_data=None if cluster.certificate_auth else cluster.certificate_auth_data,
        insecure=cluster.insecure,
        certificate_path=_path(connection, user.client_cert),
        certificate_data=None if user.client_cert else user.client_cert_data,
        private_key_path=_path(connection, user.client_key),
        private_key_data=None if user.client_key else user.client_key_data,
        token=Path(user.token_file).read_text(encoding="utf-8").strip() if user.token_file else user.token,
        username=user.username,
        password=user.password,
        trust_env=True,
    )


def _path(connection: SingleConfig, name: str | None) -> str | None:
    return str(connection.abs_file(name)) if name else None
