"""ModelDeployments on the API server, read and changed as the user of a kubeconfig; and, for `doctor`, any read at all.

What the server refuses comes as `api_errors`, in words that say what to do. No decision about rollouts is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec
from hanmaru_contracts.crd.kinds import API_VERSION, GROUP, MODEL_DEPLOYMENT
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.api_errors import ClusterError, Forbidden, NotFound, Unreachable, from_answer
from hanmaru_operator.types import Manifest

from hanmaru_cli.credentials import prove
from hanmaru_cli.kubeconfig import Access

FIELD_MANAGER = "hanmaru-cli"
REQUEST_TIMEOUT_S = 10.0
RESOURCE = f"{MODEL_DEPLOYMENT.singular}.{GROUP}"
"""The kind as kubectl names it."""
_JSON = "application/json"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class DeploymentRef:
    """One ModelDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """As kubectl names it."""
        return f"{RESOURCE}/{self.name}"

    @property
    def path(self) -> str:
        """URL path."""
        return f"/apis/{API_VERSION}/namespaces/{self.namespace}/{MODEL_DEPLOYMENT.plural}/{self.name}"


@dataclass(frozen=True, slots=True)
class Look:
    """An answer to a read."""

    body: bytes
    date: str
    """When the server wrote it, as HTTP says it; empty: it did not say."""


class ApiServer:
    """A client; a context manager. Raises ClusterError, and HanmaruError (CONFIGURATION) for unusable credentials."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._http = _client(access)
        name = access.cluster.tls_server_name
        self._extensions = {"sni_hostname": name} if name else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, ref: DeploymentRef) -> Manifest:
        """The object as it is."""
        try:
            return self._send("GET", ref.path)
        except ClusterError as error:
            raise self._explained(error, ref, "get") from error

    def merge(self, ref: DeploymentRef, changes: Mapping[str, Any]) -> Manifest:
        """Merge `changes` into the object; the object as it is then."""
        try:
            return self._send("PATCH", f"{ref.path}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict", changes)
        except ClusterError as error:
            raise self._explained(error, ref, "patch") from error

    def look(self, path: str, accept: str = _JSON) -> Look:
        """Read whatever is at `path`, in the form `accept` asks for."""
        answer = self._exchange("GET", path, None, accept)
        return Look(answer.content, answer.headers.get("date", ""))

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Manifest:
        answer = self._exchange(method, path, body, _JSON)
        try:
            return msgspec.json.decode(answer.content, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise Unreachable(f"{self._access.server} answers with something else than JSON; is it a proxy?") from error

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None, accept: str) -> httpx2.Response:
        try:
            answer = self._http.request(
                method,
                path,
                content=None if body is None else msgspec.json.encode(body),
                headers={"Accept": accept} | ({"Content-Type": _MERGE} if body is not None else {}),
                extensions=self._extensions,
            )
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unreachable(
                f"no answer from {self._access.server}: {error or type(error).__name__}; "
                f"is that cluster up, and is context {self._access.context!r} the one you mean?"
            ) from error
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise HanmaruError(
                ErrorCode.CONFIGURATION,
                f"{self._access.server} does not accept the credentials of context {self._access.context!r}; "
                "log in again",
            )
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            raise from_answer(answer.status_code, answer.content, answer.headers)
        return answer

    def _explained(self, error: ClusterError, ref: DeploymentRef, verb: str) -> ClusterError:
        match error:
            case NotFound() if not self._has_kinds():
                return NotFound(
                    f"{self._access.server} does not know ModelDeployments: install the CRDs "
                    "(chart hanmaru-crds), or choose another --context"
                )
            case NotFound():
                return NotFound(
                    f"there is no ModelDeployment {ref.name!r} in namespace {ref.namespace!r}; "
                    "`kubectl get md -A` lists them all, -n chooses the namespace"
                )
            case Forbidden():
                role = "view" if verb == "get" else "edit"
                return Forbidden(
                    f"{error.message}; ask for the role `{role}` in namespace {ref.namespace!r}: "
                    f"`kubectl auth can-i {verb} {MODEL_DEPLOYMENT.plural} -n {ref.namespace}`"
                )
        return error

    def _has_kinds(self) -> bool:
        """Whether the server knows our kinds; who may not ask is told that it does."""
        try:
            self._send("GET", f"/apis/{API_VERSION}")
        except NotFound:
            return False
        except HanmaruError:
            return True
        return True


def _client(access: Access) -> httpx2.Client:
    """With the user's credentials. Logs in where the kubeconfig says so."""
    try:
        trust, auth = prove(access)
        return httpx2.Client(
            base_url=access.server,
            auth=auth,
            verify=trust,
            proxy=access.cluster.proxy_url or None,
            timeout=REQUEST_TIMEOUT_S,
        )
    except (OSError, ValueError, httpx2.InvalidURL, ImportError) as error:
        raise HanmaruError(
            ErrorCode.CONFIGURATION, f"context {access.context!r} cannot be used: {str(error) or type(error).__name__}"
        ) from error
