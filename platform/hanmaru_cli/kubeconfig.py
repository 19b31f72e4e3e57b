"""Which API server, as whom and in which namespace: a user's kubeconfig, read as kubectl reads it.

`--kubeconfig`, else the files of `KUBECONFIG` put together, else `~/.kube/config`, else the pod's ServiceAccount. The
operator reads its own way (`hanmaru_operator.connection`): it runs no login programs. What a kubeconfig can ask for and
is not done here is refused, never left out: acting as somebody else than was meant is worse than not acting.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import Cluster, Context, User
from lightkube.core.exceptions import ConfigError

DEFAULT_FILE = "~/.kube/config"
_SECTIONS = {"clusters": "cluster", "contexts": "context", "users": "user"}
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
"""Fields that name files, relative to the kubeconfig they stand in."""
_NOT_DONE = ("as", "as-uid", "as-groups", "as-user-extra", "auth-provider")


class LoginProgram(msgspec.Struct, frozen=True):
    """A user's `exec`: the program that prints credentials."""

    api_version: str = msgspec.field(name="apiVersion")
    command: str
    args: tuple[str, ...] | None = None
    env: tuple[Mapping[str, str], ...] | None = None
    install_hint: str = msgspec.field(name="installHint", default="")
    provide_cluster_info: bool = msgspec.field(name="provideClusterInfo", default=False)
    interactive_mode: str = msgspec.field(name="interactiveMode", default="IfAvailable")


@dataclass(frozen=True, slots=True)
class Access:
    """The way to one API server."""

    connection: SingleConfig
    """Its paths are absolute; it has a user, be it an empty one."""
    namespace: str
    """Where commands act unless told otherwise."""
    login: LoginProgram | None = None
    cluster: Mapping[str, Any] | None = None
    """As the file has it, for a login program that asks for it."""
    proxy_url: str | None = None
    tls_server_name: str | None = None

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self.connection.cluster.server

    @property
    def context(self) -> str:
        """The context's name."""
        return self.connection.context_name


def read_access(
    environ: Mapping[str, str],
    *,
    kubeconfig: str | None = None,
    context: str | None = None,
    namespace: str | None = None,
) -> Access:
    """What a command acts with. Raises HanmaruError (CONFIGURATION)."""
    files = _files(environ, kubeconfig)
    if not files:
        return _in_pod(environ, namespace)
    merged, current = _merge(files)
    chosen = context or current
    if chosen not in merged["contexts"]:
        there_are = ", ".join(sorted(merged["contexts"])) or "none"
        missing = f"has no context {chosen!r}" if chosen else "has no current context"
        raise _wrong(f"{_listed(files)} {missing}; give --context with one of: {there_are}")
    try:
        return _access(chosen, merged, namespace)
    except (msgspec.ValidationError, ValueError) as error:
        raise _wrong(f"context {chosen!r} of {_listed(files)} cannot be read: {error}") from error


def _files(environ: Mapping[str, str], kubeconfig: str | None) -> list[Path]:
    """Files that are there; the one asked for must be."""
    if kubeconfig:
        file = Path(kubeconfig).expanduser()
        if not file.is_file():
            raise _wrong(f"there is no kubeconfig {file}; give --kubeconfig the path of one")
        return [file]
    named = [Path(name).expanduser() for name in environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    found = [file for file in named or [Path(DEFAULT_FILE).expanduser()] if file.is_file()]
    if not found and (named or "KUBERNETES_SERVICE_HOST" not in environ):
        sought = _listed(named) if named else DEFAULT_FILE
        raise _wrong(f"there is no kubeconfig at {sought}; set KUBECONFIG or give --kubeconfig, as for kubectl")
    return found


def _merge(files: Iterable[Path]) -> tuple[dict[str, dict[str, dict[str, Any]]], str]:
    """Entries by section and name, and the current context; what stands first counts."""
    merged: dict[str, dict[str, dict[str, Any]]] = {section: {} for section in _SECTIONS}
    current = ""
    for file in files:
        try:
            document = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            current = current or document.get("current-context") or ""
            for section, field in _SECTIONS.items():
                for entry in document.get(section) or ():
                    merged[section].setdefault(entry["name"], _absolute(entry.get(field) or {}, file.parent))
        except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise _wrong(f"{file} is not a kubeconfig: {str(error).splitlines()[0]}") from error
    return merged, current


def _absolute(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    paths: dict[str, Any] = {field: str(folder.absolute() / entry[field]) for field in _FILES if entry.get(field)}
    login = entry.get("exec")
    if isinstance(login, dict) and os.sep in str(login.get("command", "")):
        paths["exec"] = {**login, "command": str(folder.absolute() / login["command"])}
    return {**entry, **paths}


def _access(name: str, merged: Mapping[str, Mapping[str, dict[str, Any]]], namespace: str | None) -> Access:
    context = merged["contexts"][name]
    cluster = _named(merged, "clusters", context.get("cluster"))
    user = _named(merged, "users", context.get("user")) if context.get("user") else {}
    not_done = [field for field in _NOT_DONE if user.get(field)]
    if not_done:
        raise ValueError(f"`{not_done[0]}` is not done here; use a context that logs in as the user that is meant")
    if bool(user.get("client-certificate") or user.get("client-certificate-data")) != bool(
        user.get("client-key") or user.get("client-key-data")
    ):
        raise ValueError("a client certificate and its key belong together")
    login = user.get("exec")
    return Access(
        SingleConfig(
            name,
            msgspec.convert(context, Context),
            msgspec.convert(_data_wins(cluster), Cluster),
            msgspec.convert({field: value for field, value in user.items() if field != "exec"}, User),
        ),
        namespace or context.get("namespace") or "default",
        login=msgspec.convert(login, LoginProgram) if login else None,
        cluster=cluster,
        proxy_url=cluster.get("proxy-url"),
        tls_server_name=cluster.get("tls-server-name"),
    )


def _named(merged: Mapping[str, Mapping[str, dict[str, Any]]], section: str, name: object) -> dict[str, Any]:
    if not isinstance(name, str) or name not in merged[section]:
        raise ValueError(f"it names {_SECTIONS[section]} {name!r}, which is not among the {section}")
    return merged[section][name]


def _data_wins(cluster: dict[str, Any]) -> dict[str, Any]:
    """Where a certificate authority is given twice, kubectl takes the one in the file itself, lightkube the other."""
    if cluster.get("certificate-authority-data"):
        return {field: value for field, value in cluster.items() if field != "certificate-authority"}
    return cluster


def _in_pod(environ: Mapping[str, str], namespace: str | None) -> Access:
    assert "KUBERNETES_SERVICE_HOST" in environ, "or a file was found"
    try:
        connection = KubeConfig.from_service_account().get()
    except (ConfigError, KeyError, OSError) as error:
        raise _wrong(f"this pod has no ServiceAccount to act with ({error}); give --kubeconfig") from error
    assert connection is not None, "get() without a default raises instead"
    return Access(connection, namespace or connection.namespace)


def _listed(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
