"""Looks at a cluster: every read the doctor makes, with the caller's own rights. Changes nothing, decides nothing.

What may not be read, or does not answer, becomes a `Listed` that says why; only an API server that cannot be reached
at all, or does not take the credentials, raises. Of Secrets only names are asked for: the server sends no content.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import msgspec
from hanmaru_contracts.crd.kinds import ACCELERATOR_POOL, API_VERSION, GROUP, KINDS, MODEL_DEPLOYMENT, TENANT
from hanmaru_contracts.names import LABEL_MANAGED_BY, MANAGED_BY
from hanmaru_operator.api_errors import ClusterError, Forbidden, NotFound

from hanmaru_cli.api_server import Look
from hanmaru_cli.doctor.objects import (
    Claim,
    Definition,
    Event,
    Kubernetes,
    Lease,
    NetworkPolicy,
    Node,
    Ours,
    Pod,
    Workload,
)
from hanmaru_cli.doctor.platform_checks import LABEL_PART_OF, PART_OF
from hanmaru_cli.doctor.world import Listed, World

_HEADS = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_JSON = "application/json"
_PAGE = 500
_OF_RELEASES = f"{LABEL_PART_OF}={PART_OF}"
_OF_OPERATOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"

T = TypeVar("T")


class Server(Protocol):
    """`api_server.ApiServer`, or a test's own."""

    def look(self, path: str, accept: str = ...) -> Look:
        """Read what is at `path`. Raises ClusterError."""
        ...


class _Meta(msgspec.Struct, frozen=True):
    next: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct, Generic[T], frozen=True):
    items: list[T] | None = None
    metadata: _Meta = _Meta()


def look(server: Server, address: str, namespace: str) -> World:
    """The cluster as this user may see it; where that is one namespace alone, it is `namespace`."""
    return _Eye(server, namespace).world(address)


class _Eye:
    """One look at one cluster."""

    def __init__(self, server: Server, namespace: str) -> None:
        self._server = server
        self._namespace = namespace
        self._is_narrowed = False

    def world(self, address: str) -> World:
        """Everything; raises ClusterError when there is no answer even to the first question."""
        kubernetes, server_time = self._version()
        local_time = time.time()
        pools = self._list(f"/apis/{API_VERSION}", ACCELERATOR_POOL.plural, Ours, is_namespaced=False)
        deployments = self._list(f"/apis/{API_VERSION}", MODEL_DEPLOYMENT.plural, Ours)
        tenants = self._list(f"/apis/{API_VERSION}", TENANT.plural, Ours)
        workloads = self._workloads(_OF_RELEASES)
        homes = sorted({one.metadata.namespace for one in workloads})
        return World(
            server=address,
            version=kubernetes,
            server_time=server_time,
            local_time=local_time,
            cli_version=version("hanmaru"),
            definitions=self._definitions(),
            nodes=self._list("/api/v1", "nodes", Node, is_namespaced=False),
            runtime_classes=self._heads("/apis/node.k8s.io/v1", "runtimeclasses", is_namespaced=False),
            namespaces=self._heads("/api/v1", "namespaces", is_namespaced=False),
            workloads=workloads,
            groups=self._list("/apis/apps/v1", "statefulsets", Workload, _OF_OPERATOR),
            daemons=self._heads("/apis/apps/v1", "daemonsets"),
            leases=self._in(homes, "/apis/coordination.k8s.io/v1", "leases", Lease),
            pods=_joined(self._list("/api/v1", "pods", Pod, of) for of in (_OF_RELEASES, _OF_OPERATOR)),
            claims=self._list("/api/v1", "persistentvolumeclaims", Claim),
            policies=self._list("/apis/networking.k8s.io/v1", "networkpolicies", NetworkPolicy),
            events=self._list("/api/v1", "events", Event, fields="reason=FailedCreate"),
            pools=pools,
            deployments=deployments,
            tenants=tenants,
            secrets=self._in(_namespaces_of_keys(tenants), "/api/v1", "secrets", Kubernetes, accept=_HEADS),
            narrowed_to=self._namespace if self._is_narrowed else "",
        )

    def _version(self) -> tuple[str, float | None]:
        try:
            answer = self._server.look("/version")
        except Forbidden:
            return "", None
        try:
            said = msgspec.json.decode(answer.body, type=dict[str, Any])
        except msgspec.MsgspecError:
            return "", None
        try:
            at = parsedate_to_datetime(answer.date).timestamp()
        except ValueError:
            return str(said.get("gitVersion", "")), None
        return str(said.get("gitVersion", "")), at

    def _workloads(self, selector: str) -> Listed[Workload]:
        return _joined(
            _named(self._list("/apis/apps/v1", plural, Workload, selector), kind)
            for plural, kind in (("deployments", "Deployment"), ("statefulsets", "StatefulSet"))
        )

    def _definitions(self) -> Listed[Definition]:
        found = []
        for kind in KINDS:
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.plural}.{GROUP}"
            try:
                found.append(msgspec.json.decode(self._server.look(path).body, type=Definition))
            except NotFound:
                continue
            except (ClusterError, msgspec.MsgspecError) as error:
                return Listed(unseen=_why(error))
        return Listed(tuple(found))

    def _heads(self, root: str, plural: str, *, is_namespaced: bool = True) -> Listed[Kubernetes]:
        return self._list(root, plural, Kubernetes, is_namespaced=is_namespaced, accept=_HEADS)

    def _in(self, namespaces: Sequence[str], root: str, plural: str, kind: type[T], accept: str = _JSON) -> Listed[T]:
        """Of these namespaces and no others."""
        return _joined(self._pages(f"{root}/namespaces/{name}/{plural}", kind, "", "", accept) for name in namespaces)

    def _list(
        self,
        root: str,
        plural: str,
        kind: type[T],
        labels: str = "",
        *,
        fields: str = "",
        is_namespaced: bool = True,
        accept: str = _JSON,
    ) -> Listed[T]:
        """Of all namespaces, or, where that is not allowed, of the one we may look at."""
        everywhere = self._pages(f"{root}/{plural}", kind, labels, fields, accept)
        if not everywhere.unseen or not is_namespaced:
            return everywhere
        here = self._pages(f"{root}/namespaces/{self._namespace}/{plural}", kind, labels, fields, accept)
        if here.unseen:
            return everywhere
        self._is_narrowed = True
        return here

    def _pages(self, path: str, kind: type[T], labels: str, fields: str, accept: str) -> Listed[T]:
        items: list[T] = []
        query = f"limit={_PAGE}&labelSelector={quote(labels)}&fieldSelector={quote(fields)}"
        after = ""
        while True:
            try:
                answer = self._server.look(f"{path}?{query}&continue={quote(after)}", accept)
                page = msgspec.json.decode(answer.body, type=_Page[kind])  # type: ignore[valid-type]
            except NotFound:
                return Listed(is_served=False)
            except (ClusterError, msgspec.MsgspecError) as error:
                return Listed(unseen=_why(error))
            items += page.items or ()
            if not page.metadata.next:
                return Listed(tuple(items))
            after = page.metadata.next


def _why(error: Exception) -> str:
    return error.message if isinstance(error, ClusterError) else "it answers in a form that this hanmaru cannot read"


def _named(listed: Listed[Workload], kind: str) -> Listed[Workload]:
    items = tuple(msgspec.structs.replace(one, kind=kind) for one in listed)
    return Listed(items, listed.unseen, listed.is_served)


def _joined(parts: Any) -> Listed[T]:
    """Several lists as one; what one of them could not see, the whole could not."""
    listed: list[Listed[T]] = list(parts)
    unseen = next((part.unseen for part in listed if part.unseen), "")
    return Listed(tuple(one for part in listed for one in part), unseen)


def _namespaces_of_keys(tenants: Listed[Ours]) -> list[str]:
    """Where Tenants name Secrets."""
    return sorted(
        {
            tenant.metadata.namespace
            for tenant in tenants
            for credential in tenant.spec.get("credentials") or ()
            if (credential.get("apiKey") or {}).get("secretRef")
        }
    )
