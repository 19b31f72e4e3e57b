"""Random edits of one world, as its users would make them, whose outcome the last specs alone decide.

`scenarios/test_killed` makes the same edits under an operator that is left alone and under one that is killed. So that
both must end alike, the first pool of each deployment always has room (no fallback, which depends on the moment), lists
of pools change at their end only, and the last edits take every pause back.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hanmaru_cluster.api import APPLY_PATCH
from hanmaru_contracts.crd.kinds import API_VERSION, GROUP, VERSION
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT, LABEL_DEPLOYMENT

from hanmaru_testing.operator_world import World

Do = Callable[["Ground"], None]
TENANTS = 3
_CHILDREN = {
    "services": "/api/v1",
    "serviceaccounts": "/api/v1",
    "configmaps": "/api/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
}
"""What a hand may delete under a deployment and must be back."""


@dataclass(frozen=True, slots=True)
class Model:
    """What stays the same about a deployment of this name, however often it is made."""

    claim: str
    pools: tuple[str, ...]
    most_replicas: int


MODELS = {
    "m0": Model("k-exaone", ("big", "pairs"), 3),
    "m1": Model("k-exaone", ("big",), 3),
    "m2": Model("k-exaone", ("pairs", "big"), 2),
    "m3": Model("tiny", ("odd", "big"), 3),
    "m4": Model("tiny", ("odd",), 3),
}
POOLS = ("big", "pairs", "odd")
_RACKS = {"big": (8, 8), "pairs": (4, 4, 4, 4), "odd": (4, 4)}
"""Nodes by rack: far more than all deployments ask for at once."""
_MEMORY = {"big": "80Gi", "pairs": "40Gi", "odd": "16Gi"}
_MOST_CORDONED = 3
_FEWEST = 2
"""Deployments at any time after the first edits."""
CLAIMS = tuple(sorted({model.claim for model in MODELS.values()}))


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit; `text` tells it in a failed test's output."""

    text: str
    do: Do


class Ground:
    """The nodes and pools on which the edits are made, alike in every world."""

    def __init__(self, world: World, system: str) -> None:
        """`system`: the namespace where Tenants count."""
        self.world = world
        self.system = system
        self.nodes = {
            pool: [
                name
                for rack, count in enumerate(counts)
                for name in world.add_nodes(pool, count, rack=f"{pool}-r{rack}")
            ]
            for pool, counts in _RACKS.items()
        }
        self.pools = {pool: world.pool(pool, memory=_MEMORY[pool]) for pool in POOLS}

    def clear(self) -> None:
        """Take everything away and wait until nothing is left of the deployments, so that their names are free."""
        for tenant in range(TENANTS):
            self.world.api.delete(self.tenant_path(tenant))
            self.world.api.delete(f"/api/v1/namespaces/{self.system}/secrets/{self.world.named(f't{tenant}')}")
        self.world.api.delete(f"/apis/{GROUP}/{VERSION}/namespaces/{self.world.namespace}/modeldeployments")
        self.world.wait("no deployment is left", lambda: not self._left("modeldeployments", f"/apis/{GROUP}/{VERSION}"))
        # The garbage collector looks for new kinds twice a minute: it may have to hear of ours first.
        self.world.wait("no pod is left", lambda: not self._left("pods", "/api/v1"), within_s=60)

    def tenant_path(self, tenant: int) -> str:
        """Of a Tenant object."""
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.system}/tenants/{self.world.named(f't{tenant}')}"

    def _left(self, plural: str, root: str) -> list[Any]:
        return list(self.world.api.get(f"{root}/namespaces/{self.world.namespace}/{plural}")["items"])


@dataclass(slots=True)
class _Deployment:
    """What was last asked of a deployment."""

    pools: int
    """How many of its pools it lists."""
    is_paused: bool = False
    is_stopped: bool = False


@dataclass(slots=True)
class _State:
    """What is there, so that each edit makes sense."""

    random: random.Random
    number: int = 0
    deployments: dict[str, _Deployment] = field(default_factory=dict)
    tenants: set[int] = field(default_factory=set)
    cordoned: set[tuple[str, int]] = field(default_factory=set)


def random_edits(seed: int, count: int) -> list[Edit]:
    """So many edits, and as many more as take back what was paused or stopped."""
    state = _State(random.Random(seed))
    edits: list[Edit] = []
    while len(edits) < count:
        state.number += 1
        kind, weight = zip(*_KINDS, strict=True)
        made = _create(state) if len(state.deployments) < _FEWEST else state.random.choices(kind, weight)[0](state)
        if made is not None:
            edits.append(made)
    return [*edits, *_ending(state)]


# --- kinds of edits ------------------------------------------------------------------------------------------------


def _create(state: _State) -> Edit | None:
    free = sorted(MODELS.keys() - state.deployments.keys())
    if not free:
        return None
    name = state.random.choice(free)
    model = MODELS[name]
    listed = state.random.randint(1, len(model.pools))
    spec: dict[str, Any] = {
        "replicas": state.random.randint(0, model.most_replicas),
        "rollout": state.random.choice([{}, {"maxSurge": 1}, {"maxSurge": 0, "maxUnavailable": 1}]),
        "access": {"from": state.random.choice(["All", "Same"])},
    }
    state.deployments[name] = _Deployment(listed)

    def do(ground: Ground) -> None:
        pools = [ground.pools[pool] for pool in model.pools[:listed]]
        ground.world.deploy(name, pools, claim=model.claim, **spec)

    return Edit(f"create {name} {spec} on {model.pools[:listed]}", do)


def _delete(state: _State) -> Edit | None:
    name = _one_of(state, minimum=3)
    if name is None:
        return None
    del state.deployments[name]
    return Edit(f"delete {name}", lambda ground: ground.world.delete(name))


def _scale(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None
    return _patched(name, {"replicas": state.random.randint(0, MODELS[name].most_replicas)})


def _serve_otherwise(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None
    changes = [
        {"contextTokens": state.random.choice([8192, 16384, 32768])},
        {"extraArgs": [f"--log-requests-level={state.number % 4}"]},
        {"podTemplate": {"metadata": {"annotations": {"example.com/edit": str(state.number)}}}},
    ]
    return _patched(name, {"serving": state.random.choice(changes)})


def _pause(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None
    deployment = state.deployments[name]
    deployment.is_paused = not deployment.is_paused
    return _patched(name, {"rollout": {"paused": deployment.is_paused}})


def _stop(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None
    deployment = state.deployments[name]
    deployment.is_stopped = not deployment.is_stopped
    return _patched(name, {"lifecycle": {"stopped": deployment.is_stopped}})


def _list_pools(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None or len(MODELS[name].pools) == 1:
        return None
    deployment, pools = state.deployments[name], MODELS[name].pools
    deployment.pools = 3 - deployment.pools
    listed = pools[: deployment.pools]
    return Edit(
        f"patch {name}: pools {listed}",
        lambda ground: ground.world.patch(name, {"pools": [{"name": ground.pools[pool]} for pool in listed]}),
    )


def _share(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None
    weight, source = state.random.randint(1, 9), state.random.choice(["All", "Same"])
    return _patched(name, {"route": {"weight": weight}, "access": {"from": source}})


def _restart(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None
    at = f"2026-11-22T12:00:{state.number % 60:02}Z"
    return Edit(f"restart {name} at {at}", lambda ground: ground.world.annotate(name, ANNOTATION_RESTARTED_AT, at))


def _change_pool(state: _State) -> Edit:
    pool = state.random.choice(POOLS)
    spec = state.random.choice(
        [
            {"engine": {"args": [f"--log-requests-level={state.number % 4}"]}},
            {"engine": {"image": f"worker:{state.number}"}},
            {"capabilities": {"maxContextTokens": state.random.choice([65536, 131072])}},
            {"scheduling": {"bindTimeoutSeconds": 300 + state.number}},
            {"podTemplate": {"metadata": {"annotations": {"example.com/pool": str(state.number)}}}},
        ]
    )

    def do(ground: Ground) -> None:
        ground.world.api.patch(f"/apis/{GROUP}/{VERSION}/acceleratorpools/{ground.pools[pool]}", {"spec": spec})

    return Edit(f"patch pool {pool}: {spec}", do)


def _cordon(state: _State) -> Edit:
    if len(state.cordoned) >= _MOST_CORDONED or (state.cordoned and state.random.random() < 0.3):
        pool, index = state.random.choice(sorted(state.cordoned))
        state.cordoned.discard((pool, index))
        is_cordoned = False
    else:
        pool = state.random.choice(POOLS)
        index = state.random.randrange(4)  # of the first, where pods are
        state.cordoned.add((pool, index))
        is_cordoned = True

    def do(ground: Ground) -> None:
        ground.world.api.patch(f"/api/v1/nodes/{ground.nodes[pool][index]}", {"spec": {"unschedulable": is_cordoned}})

    return Edit(f"{'cordon' if is_cordoned else 'uncordon'} node {index} of {pool}", do)


def _tenant(state: _State) -> Edit:
    tenant = state.random.randrange(TENANTS)
    if tenant in state.tenants and state.random.random() < 0.3:
        state.tenants.discard(tenant)
        return Edit(f"delete tenant {tenant}", lambda ground: ground.world.api.delete(ground.tenant_path(tenant)))
    state.tenants.add(tenant)
    models = state.random.sample(sorted(MODELS), 2)
    key = hashlib.sha256(f"key {state.number}".encode()).hexdigest()
    limit = state.random.randint(1, 600)

    def do(ground: Ground) -> None:
        spec = {
            "credentials": [{"name": "key", "apiKey": {"sha256": key}}],
            "models": [{"namespace": ground.world.namespace, "name": model} for model in models],
            "limits": [{"name": "all", "requestsPerMinute": limit}],
        }
        metadata = {"name": ground.world.named(f"t{tenant}")}
        body = {"apiVersion": API_VERSION, "kind": "Tenant", "metadata": metadata, "spec": spec}
        path = f"{ground.tenant_path(tenant)}?fieldManager=tests&force=true"
        ground.world.api.request("PATCH", path, body, content_type=APPLY_PATCH)

    return Edit(f"tenant {tenant}: {models}, {limit} a minute", do)


def _delete_by_hand(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None
    plural = state.random.choice(sorted(_CHILDREN))

    def do(ground: Ground) -> None:
        root = f"{_CHILDREN[plural]}/namespaces/{ground.world.namespace}/{plural}"
        found = ground.world.api.get(f"{root}?labelSelector={LABEL_DEPLOYMENT}={name}")["items"]
        if found:
            ground.world.api.delete(f"{root}/{found[0]['metadata']['name']}")

    return Edit(f"delete one of the {plural} of {name} by hand", do)


def _delete_pod(state: _State) -> Edit | None:
    name = _one_of(state)
    if name is None:
        return None

    def do(ground: Ground) -> None:
        pods = ground.world.pods(name)
        if pods:
            ground.world.api.delete(f"/api/v1/namespaces/{ground.world.namespace}/pods/{pods[0]['metadata']['name']}")

    return Edit(f"delete a pod of {name} by hand", do)


_KINDS: tuple[tuple[Callable[[_State], Edit | None], int], ...] = (
    (_create, 6),
    (_delete, 3),
    (_scale, 6),
    (_serve_otherwise, 5),
    (_pause, 4),
    (_stop, 1),
    (_list_pools, 2),
    (_share, 2),
    (_restart, 3),
    (_change_pool, 4),
    (_cordon, 3),
    (_tenant, 4),
    (_delete_by_hand, 3),
    (_delete_pod, 2),
)


def _ending(state: _State) -> Iterator[Edit]:
    """A paused rollout keeps what it happens to have, so none stays paused."""
    for name, deployment in state.deployments.items():
        if deployment.is_paused:
            yield _patched(name, {"rollout": {"paused": False}})


def _one_of(state: _State, minimum: int = 1) -> str | None:
    names = sorted(state.deployments)
    return state.random.choice(names) if len(names) >= minimum else None


def _patched(name: str, spec: dict[str, Any]) -> Edit:
    return Edit(f"patch {name}: {spec}", lambda ground: ground.world.patch(name, spec))
