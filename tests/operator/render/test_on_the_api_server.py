"""What is rendered, on the real API server, scheduler and controllers, in a namespace that enforces "restricted"."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hanmaru_cluster.api import APPLY_PATCH, ApiError
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_contracts import names
from hanmaru_contracts.crd.v1alpha1.model_deployment import Source
from hanmaru_operator import kinds
from hanmaru_operator.render.bundle import Bundle, make_bundle, read_bundle, revision_manifests
from hanmaru_operator.render.facts import facts_config_map, model_facts_pod
from hanmaru_operator.render.group import ReplicaSecrets, replica_manifests
from hanmaru_operator.render.identity import Owner, replica_id
from hanmaru_operator.render.settings import RedisFile
from hanmaru_operator.types import Manifest
from hanmaru_testing.rendered import (
    CLAIM,
    COMMIT,
    CPU_DEVICES,
    HUB,
    IMAGE,
    NPU_DEVICES,
    SETTINGS,
    deployment_spec,
    pool_spec,
    shape,
    written,
)

DEADLINE_S = 30.0
COLLECTION_DEADLINE_S = 100.0
"""The garbage collector looks for new kinds, such as ours a moment ago, every 30 s."""
LONGEST = "d" * 44
"""As the CRD allows."""
SECRETS = ReplicaSecrets(bytes(32), {RedisFile.PASSWORD: "password"})
SHAPES = {
    "gpu": (HUB, pool_spec(), shape(2, 8)),
    "cpu": (CLAIM, pool_spec(devices=CPU_DEVICES), shape(1, 2, draft_tokens=None)),
    "npu": (
        IMAGE,
        pool_spec(devices=NPU_DEVICES, engine={"type": "FuriosaLLM"}, capabilities={}),
        shape(1, 4, draft_tokens=None),
    ),
}


class Namespace:
    """One namespace and a deployment in it that owns what is applied."""

    def __init__(self, plane: ControlPlane, name: str) -> None:
        self.api = plane.api
        self.name = name
        self.deployments = f"/apis/serving.hanmaru.dev/v1alpha1/namespaces/{name}/modeldeployments"
        body = {
            "apiVersion": "serving.hanmaru.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": LONGEST},
            "spec": deployment_spec().model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        uid = self.api.create(self.deployments, body)["metadata"]["uid"]
        self.owner = Owner(name, LONGEST, uid)

    def bundle(self, which: str, **pool_template: Any) -> Bundle:
        source, pool, planned = SHAPES[which]
        pool = pool.model_copy(update={"pod_template": pool_template})
        spec = deployment_spec(source=source, pools=[{"name": "p" * 63}])
        return make_bundle(self.owner, written(spec, pool), planned, SETTINGS, COMMIT)

    def path(self, manifest: Manifest) -> str:
        (api,) = [a for a in kinds.APIS if (a.kind, a.api_version) == (manifest["kind"], manifest["apiVersion"])]
        return api.path(self.name, manifest["metadata"]["name"])

    def apply(self, manifest: Manifest) -> dict[str, Any]:
        query = f"?fieldManager={names.FIELD_MANAGER}&force=true"
        return self.api.request("PATCH", self.path(manifest) + query, manifest, content_type=APPLY_PATCH)

    def exists(self, manifest: Manifest) -> bool:
        try:
            self.api.get(self.path(manifest))
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def pods(self, replica: str) -> list[dict[str, Any]]:
        query = f"?labelSelector={names.LABEL_REPLICA}%3D{replica}"
        found: list[dict[str, Any]] = self.api.get(f"/api/v1/namespaces/{self.name}/pods{query}")["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def events(self) -> str:
        items = self.api.get(f"/api/v1/namespaces/{self.name}/events")["items"]
        return "\n".join(str(item["message"]) for item in items)


@pytest.fixture
def restricted(control_plane: ControlPlane, crds: None) -> Iterator[Namespace]:
    name = f"render-{uuid.uuid4().hex[:8]}"
    control_plane.create_namespace(name, labels={"pod-security.kubernetes.io/enforce": "restricted"})
    yield Namespace(control_plane, name)
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


def eventually(found: Callable[[], Any], otherwise: Callable[[], str], within_s: float = DEADLINE_S) -> Any:
    deadline_s = time.monotonic() + within_s
    while not (answer := found()):
        assert time.monotonic() < deadline_s, otherwise()
        time.sleep(0.1)
    return answer


@pytest.mark.parametrize("which", [*SHAPES])
def test_pods_of_the_longest_names_are_admitted_gated_and_know_their_rank(restricted: Namespace, which: str) -> None:
    bundle = restricted.bundle(which)
    replica = replica_id(LONGEST, "x7k2p")
    made = [
        *revision_manifests(bundle, restricted.owner),
        *replica_manifests(bundle, restricted.owner, replica, SECRETS, SETTINGS),
    ]
    for manifest in made:
        restricted.apply(manifest)
    pods = eventually(
        lambda: found if len(found := restricted.pods(replica)) == bundle.size else None, restricted.events
    )
    for rank, pod in enumerate(pods):
        assert pod["metadata"]["labels"][names.LABEL_POD_INDEX] == str(rank)
        assert pod["spec"]["schedulingGates"] == [{"name": names.GATE_GROUP}]
        assert "nodeName" not in pod["spec"]
        env = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
        assert env[names.ENV_REPLICA_ID] == replica
        assert env[names.ENV_GROUP_SIZE] == str(bundle.size)
        assert not [volume for volume in pod["spec"]["volumes"] if "projected" in volume]
    eventually(
        lambda: all(_is_gated(pod) for pod in restricted.pods(replica)), lambda: json.dumps(restricted.pods(replica))
    )


def _is_gated(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(c["type"] == "PodScheduled" and c.get("reason") == "SchedulingGated" for c in conditions)


@pytest.mark.parametrize("which", [*SHAPES])
def test_applying_again_changes_nothing(restricted: Namespace, which: str) -> None:
    bundle = restricted.bundle(which)
    made = [
        *revision_manifests(bundle, restricted.owner),
        *replica_manifests(bundle, restricted.owner, replica_id(LONGEST, "x7k2p"), SECRETS, SETTINGS),
        facts_config_map(restricted.owner, {"a": {"layers": 48}}),
    ]
    before = {manifest["kind"] + manifest["metadata"]["name"]: restricted.apply(manifest) for manifest in made}
    for manifest in made:
        again = restricted.apply(manifest)
        first = before[manifest["kind"] + manifest["metadata"]["name"]]
        assert again["metadata"].get("generation") == first["metadata"].get("generation"), manifest["kind"]
        assert _without_status(again) == _without_status(first), manifest["kind"]


def _without_status(manifest: Manifest) -> Manifest:
    kept = {name: value for name, value in manifest.items() if name not in ("status", "metadata")}
    marks = manifest["metadata"]
    return kept | {"labels": marks["labels"], "owners": marks["ownerReferences"]}


def test_the_snapshot_comes_back_whole_and_cannot_be_changed(restricted: Namespace) -> None:
    bundle = restricted.bundle("gpu")
    snapshot, _ = revision_manifests(bundle, restricted.owner)
    assert read_bundle(restricted.apply(snapshot)) == bundle
    kept = read_bundle(restricted.api.get(restricted.path(snapshot)))
    assert kept == bundle
    # The engine's file is text: the server's JSON may not write a number of it in another way.
    assert revision_manifests(kept, restricted.owner) == revision_manifests(bundle, restricted.owner)
    with pytest.raises(ApiError, match="data: Invalid value"):
        restricted.apply(snapshot | {"data": snapshot["data"] | {"image": "another"}})


def test_a_capability_of_a_pools_template_reaches_the_server_unchanged(control_plane: ControlPlane, crds: None) -> None:
    """In a namespace that allows it; one that enforces "restricted" would refuse the pods and say so."""
    name = f"render-{uuid.uuid4().hex[:8]}"
    control_plane.create_namespace(name)
    try:
        open_ = Namespace(control_plane, name)
        capability = {"name": "engine", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}
        bundle = open_.bundle("gpu", spec={"containers": [capability]})
        replica = replica_id(LONGEST, "x7k2p")
        for manifest in replica_manifests(bundle, open_.owner, replica, SECRETS, SETTINGS):
            open_.apply(manifest)
        pods = eventually(lambda: open_.pods(replica), open_.events)
        security = pods[0]["spec"]["containers"][0]["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    finally:
        control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.mark.parametrize("source", [HUB, CLAIM, IMAGE], ids=["hub", "claim", "image"])
def test_the_pod_that_reads_facts_is_admitted(restricted: Namespace, source: dict[str, Any]) -> None:
    pod = model_facts_pod(restricted.owner, Source.model_validate(source), f"{LONGEST}-facts", SETTINGS)
    assert restricted.apply(pod)["status"]["phase"] == "Pending"


def test_everything_goes_with_the_deployment(restricted: Namespace) -> None:
    bundle = restricted.bundle("cpu")
    replica = replica_id(LONGEST, "x7k2p")
    made = [
        *revision_manifests(bundle, restricted.owner),
        *replica_manifests(bundle, restricted.owner, replica, SECRETS, SETTINGS),
    ]
    for manifest in made:
        restricted.apply(manifest)
    restricted.api.delete(f"{restricted.deployments}/{LONGEST}")

    def left() -> list[str]:
        kept = [manifest["kind"] for manifest in made if restricted.exists(manifest)]
        return [*kept, *(pod["metadata"]["name"] for pod in restricted.pods(replica))]

    eventually(lambda: not left(), lambda: f"left: {left()}", COLLECTION_DEADLINE_S)
