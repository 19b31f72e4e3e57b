"""The generated roles allow what the table says and nothing else, by the word of the real API server's authorizer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import pytest
from hanmaru_cluster.api import ApiClient
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_contracts.crd.kinds import GROUP
from hanmaru_operator.kinds import APIS, Api, Verb
from hanmaru_testing.roles import bind, bind_operator, install_people_roles, user

VERBS: tuple[Verb, ...] = get_args(Verb)
AGGREGATION_DEADLINE_S = 20.0


def _may(api: ApiClient, who: str, verb: str, resource: str, namespace: str = "") -> bool:
    """`kubectl auth can-i`. `resource` is `group/plural[/subresource]`, the core group's name being empty."""
    group, plural, *subresource = resource.split("/")
    asked = {"verb": verb, "group": group, "resource": plural, "namespace": namespace, "name": "x"}
    spec = {"user": who, "resourceAttributes": asked | {"subresource": "".join(subresource)}}
    answer = api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": spec})
    return bool(answer["status"]["allowed"])


@dataclass(frozen=True)
class Bound:
    """A user with the operator's roles. Namespaces need not exist to be asked about, but roles need theirs."""

    name: str
    own: str
    tenants: str
    other: str = "somewhere-else"


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane) -> Iterator[Bound]:
    suffix = uuid.uuid4().hex[:8]
    bound = Bound(f"operator-{suffix}", f"own-{suffix}", f"tenants-{suffix}")
    for namespace in (bound.own, bound.tenants):
        control_plane.create_namespace(namespace)
    bind_operator(control_plane.api, user(bound.name), own_namespace=bound.own, tenant_namespaces=[bound.tenants])
    _await_allowed(control_plane.api, bound.name, "get", "coordination.k8s.io/leases", bound.own)
    yield bound
    for namespace in (bound.own, bound.tenants):
        control_plane.api.delete(f"/api/v1/namespaces/{namespace}")


def _await_allowed(api: ApiClient, who: str, verb: str, resource: str, namespace: str) -> None:
    """The authorizer follows new roles by watching, and a controller adds up aggregated ones."""
    deadline_s = time.monotonic() + AGGREGATION_DEADLINE_S
    while not _may(api, who, verb, resource, namespace):
        assert time.monotonic() < deadline_s, f"{who} may not {verb} {resource}"
        time.sleep(0.05)


@pytest.mark.parametrize("kind", APIS, ids=lambda api: api.plural)
def test_the_operator_may_do_what_the_table_lists_and_nothing_else(
    kind: Api, operator: Bound, control_plane: ControlPlane
) -> None:
    extra = {operator.own: kind.own_namespace_verbs, operator.tenants: kind.tenant_namespace_verbs, operator.other: ()}
    for namespace, more in extra.items() if kind.is_namespaced else [("", ())]:
        allowed = {
            verb
            for verb in VERBS
            if _may(control_plane.api, operator.name, verb, f"{kind.group}/{kind.plural}", namespace)
        }
        assert allowed == {*kind.cluster_verbs, *more}, namespace
    resource = f"{kind.group}/{kind.plural}/status"
    allowed = {verb for verb in VERBS if _may(control_plane.api, operator.name, verb, resource, operator.other)}
    assert allowed == set(kind.status_verbs)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        *((verb, f"{GROUP}/{kinds}") for verb in ("create", "update", "patch", "delete")
          for kinds in ("modeldeployments", "acceleratorpools", "tenants", "modeldeployments/finalizers")),
        ("get", "/secrets"),
        ("list", "/secrets"),
        ("watch", "/secrets"),
        ("deletecollection", "/pods"),
        ("create", "/pods/exec"),
        ("create", "/pods/eviction"),
        ("get", "/pods/log"),
        ("create", "/serviceaccounts/token"),
        ("impersonate", "/serviceaccounts"),
        ("delete", "/nodes"),
        ("patch", "/nodes"),
        ("delete", "/namespaces"),
        ("get", "/persistentvolumeclaims"),
        ("get", "coordination.k8s.io/leases"),
        ("create", "rbac.authorization.k8s.io/rolebindings"),
        ("escalate", "rbac.authorization.k8s.io/clusterroles"),
        ("create", "apiextensions.k8s.io/customresourcedefinitions"),
        ("*", "/*"),
    ],
)  # fmt: skip
def test_the_operator_may_not(verb: str, resource: str, operator: Bound, control_plane: ControlPlane) -> None:
    assert not _may(control_plane.api, operator.name, verb, resource, operator.other)


# --- people --------------------------------------------------------------------------------------------------------

_POOLS, _MODELS, _TENANTS = (f"{GROUP}/{plural}" for plural in ("acceleratorpools", "modeldeployments", "tenants"))
_SCALE, _STATUS = f"{_MODELS}/scale", f"{_MODELS}/status"


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        (
            "hanmaru-view",
            [("list", _POOLS), ("get", _MODELS), ("watch", _TENANTS)],
            [("patch", _MODELS), ("create", _TENANTS), ("delete", _POOLS), ("patch", _SCALE), ("get", "/secrets")],
        ),
        (
            "hanmaru-model-editor",
            [("get", _POOLS), ("create", _MODELS), ("deletecollection", _MODELS), ("patch", _SCALE), ("get", _SCALE)],
            [("create", _POOLS), ("patch", _POOLS), ("get", _TENANTS), ("create", _TENANTS), ("patch", _STATUS)],
        ),
        (
            "hanmaru-admin",
            [("create", _POOLS), ("delete", _MODELS), ("patch", _TENANTS), ("update", _SCALE)],
            [("patch", _STATUS), ("get", "/secrets"), ("create", "/pods")],
        ),
    ],
)
def test_people_get_what_their_role_says(
    role: str, may: list[tuple[str, str]], may_not: list[tuple[str, str]], control_plane: ControlPlane
) -> None:
    who = f"{role}-{uuid.uuid4().hex[:8]}"
    install_people_roles(control_plane.api)
    bind(control_plane.api, role, user(who))
    for verb, resource in may:
        _await_allowed(control_plane.api, who, verb, resource, "anywhere")
    assert [ask for ask in may_not if _may(control_plane.api, who, *ask, "anywhere")] == []


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("view", [("get", _MODELS), ("get", _TENANTS)], [("patch", _MODELS), ("create", _TENANTS)]),
        ("edit", [("create", _MODELS), ("patch", _SCALE)], [("create", _TENANTS), ("create", _POOLS)]),
        ("admin", [("create", _MODELS), ("get", _TENANTS)], [("create", _TENANTS), ("create", _POOLS)]),
    ],
)
def test_kubernetes_own_roles_learn_of_our_kinds(
    role: str,
    may: list[tuple[str, str]],
    may_not: list[tuple[str, str]],
    control_plane: ControlPlane,
    namespace: str,
) -> None:
    who = f"{role}-{uuid.uuid4().hex[:8]}"
    install_people_roles(control_plane.api)
    bind(control_plane.api, role, user(who), namespace)
    for verb, resource in may:
        _await_allowed(control_plane.api, who, verb, resource, namespace)
        assert not _may(control_plane.api, who, verb, resource, "another-namespace")
    assert [ask for ask in may_not if _may(control_plane.api, who, *ask, namespace)] == []
