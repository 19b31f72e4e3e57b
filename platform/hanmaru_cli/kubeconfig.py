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

DEFAULT_FILE = "~/.kube/config"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECTIONS = {"clusters": "cluster", "contexts": "context", "users": "user"}
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
"""Fields that name files, relative to the kubeconfig they stand in."""
_NOT_DONE = ("as", "as-uid", "as-groups", "as-user-extra", "auth-provider")

_Entry = dict[str, Any]


class LoginProgram(msgspec.Struct, frozen=True, rename="camel"):
    """A user's `exec`: the program that prints credentials."""

    api_version: str
    command: str
    args: tuple[str, ...] = ()
    env: tuple[Mapping[str, str], ...] = ()
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = "IfAvailable"


class Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    """An API server, and how it is known for itself. `…_data` is base64 of what the other field names a file of."""

    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class User(msgspec.Struct, frozen=True, rename="kebab"):
    """Credentials. `…_data` is base64 of what the other field names a file of."""

    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    username: str = ""
    password: str = ""
    login: LoginProgram | None = msgspec.field(name="exec", default=None)


@dataclass(frozen=True, slots=True)
class Access:
    """The way to one API server. Paths in it are absolute."""

    context: str
    namespace: str
    """Where commands act unless told otherwise."""
    cluster: Cluster
    user: User

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self.cluster.server


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
    except ValueError as error:
        raise _wrong(f"context {chosen!r} of {_listed(files)} cannot be read: {error}") from error


def _files(environ: Mapping[str, str], kubeconfig: str | None) -> list[Path]:
    """Files that are there; the one asked for must be. None, in a pod: its ServiceAccount."""
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


def _merge(files: Iterable[Path]) -> tuple[dict[str, dict[str, _Entry]], str]:
    """Entries by section and name, and the current context; what stands first counts."""
    merged: dict[str, dict[str, _Entry]] = {section: {} for section in _SECTIONS}
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


def _absolute(entry: _Entry, folder: Path) -> _Entry:
    """Without empty fields, and with paths that hold anywhere."""
    paths: _Entry = {field: str(folder.absolute() / entry[field]) for field in _FILES if entry.get(field)}
    login = entry.get("exec")
    if login:
        login = {field: value for field, value in login.items() if value is not None}
        if os.sep in str(login.get("command", "")):
            login["command"] = str(folder.absolute() / login["command"])
        paths["exec"] = login
    return {field: value for field, value in entry.items() if value is not None} | paths


def _access(name: str, merged: Mapping[str, Mapping[str, _Entry]], namespace: str | None) -> Access:
    context = merged["contexts"][name]
    cluster = _named(merged, "clusters", context.get("cluster"))
    user = _named(merged, "users", context.get("user")) if context.get("user") else {}
    not_done = [field for field in _NOT_DONE if user.get(field)]
    if not_done:
        raise ValueError(f"`{not_done[0]}` is not done here; use a context that logs in as the user that is meant")
    found = msgspec.convert(user, User)
    if bool(found.client_certificate or found.client_certificate_data) != bool(
        found.client_key or found.client_key_data
    ):
        raise ValueError("a client certificate and its key belong together")
    return Access(name, namespace or context.get("namespace") or "default", msgspec.convert(cluster, Cluster), found)


def _named(merged: Mapping[str, Mapping[str, _Entry]], section: str, name: object) -> _Entry:
    if not isinstance(name, str) or name not in merged[section]:
        raise ValueError(f"it names {_SECTIONS[section]} {name!r}, which is not among the {section}")
    return merged[section][name]


def _in_pod(environ: Mapping[str, str], namespace: str | None) -> Access:
    host = environ["KUBERNETES_SERVICE_HOST"]
    host = f"[{host}]" if ":" in host else host
    try:
        own_namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise _wrong("this pod has no ServiceAccount to act with; give --kubeconfig") from error
    server = f"https://{host}:{environ.get('KUBERNETES_SERVICE_PORT', '443')}"
    return Access(
        "the pod's own",
        namespace or own_namespace,
        Cluster(server, certificate_authority=str(SERVICE_ACCOUNT / "ca.crt")),
        User(token_file=str(SERVICE_ACCOUNT / "token")),
    )


def _listed(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
