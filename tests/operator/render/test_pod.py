"""The pod template, as `make_bundle` renders it."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts import names
from hanmaru_contracts.errors import HanmaruError
from hanmaru_operator.render.bundle import Bundle, make_bundle
from hanmaru_operator.render.pod import REPLICA
from hanmaru_testing.rendered import (
    COMMIT,
    OWNER,
    SETTINGS,
    cpu_bundle,
    deployment_spec,
    gpu_bundle,
    npu_bundle,
    pool_spec,
    shape,
    written,
)
from hypothesis import given
from hypothesis import strategies as st


def spec_of(bundle: Bundle) -> dict[str, Any]:
    spec: dict[str, Any] = bundle.pod_template["spec"]
    return spec


def engine_of(bundle: Bundle) -> dict[str, Any]:
    (engine,) = [c for c in spec_of(bundle)["containers"] if c["name"] == names.ENGINE_CONTAINER]
    return dict(engine)


def environment(bundle: Bundle) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in engine_of(bundle)["env"]}


def with_templates(pool: dict[str, Any] | None = None, author: dict[str, Any] | None = None) -> Bundle:
    spec = deployment_spec(serving={"podTemplate": author or {}})
    return make_bundle(OWNER, written(spec, pool_spec(podTemplate=pool or {})), shape(), SETTINGS, COMMIT)


@pytest.mark.parametrize("bundle", [gpu_bundle(), cpu_bundle(), npu_bundle()], ids=["gpu", "cpu", "npu"])
def test_pods_are_restricted_tokenless_and_gated(bundle: Bundle) -> None:
    spec = spec_of(bundle)
    assert spec["schedulingGates"] == [{"name": names.GATE_GROUP}]
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]


def test_a_group_of_two_knows_where_it_meets() -> None:
    found = environment(gpu_bundle())
    first = f"{REPLICA}-0.{REPLICA}.team.svc"
    assert found[names.ENV_REPLICA_ID] == REPLICA
    assert found[names.ENV_GROUP_SIZE] == "2"
    assert found[names.ENV_GROUP_ADDRESS] == f"{first}:20000"
    assert found[names.ENV_GROUP_PEERS] == f"{first},{REPLICA}-1.{REPLICA}.team.svc"
    assert found[names.ENV_GROUP_RANK]["fieldRef"]["fieldPath"] == f"metadata.labels['{names.LABEL_POD_INDEX}']"
    assert found[names.ENV_ADVERTISE_HOST]["fieldRef"]["fieldPath"] == "status.podIP"
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("eth0", "eth0")


def test_a_pod_alone_meets_nobody() -> None:
    found = environment(cpu_bundle())
    assert found[names.ENV_GROUP_SIZE] == "1"
    assert not {names.ENV_GROUP_ADDRESS, names.ENV_GROUP_PEERS, "GLOO_SOCKET_IFNAME"} & found.keys()


def test_devices_are_limits_and_requests_alike() -> None:
    assert engine_of(gpu_bundle())["resources"] == {
        "requests": {"nvidia.com/gpu": "8"},
        "limits": {"nvidia.com/gpu": "8"},
    }


def test_cores_are_requests_and_memory_is_a_limit_too() -> None:
    assert engine_of(cpu_bundle())["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"memory": "8Gi"},
    }


def test_each_pod_gets_the_pools_extra_resources() -> None:
    devices = {"resource": {"name": "nvidia.com/gpu"}, "memory": "40Gi", "perNode": 8, "perPodExtra": {"rdma/hca": "1"}}
    bundle = make_bundle(OWNER, written(pool=pool_spec(devices=devices)), shape(), SETTINGS)
    assert engine_of(bundle)["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/hca": "1"}


def test_a_claim_is_mounted_read_only_in_both_places() -> None:
    spec = spec_of(cpu_bundle())
    (volume,) = [v for v in spec["volumes"] if v["name"] == "model"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert {"name": "model", "mountPath": "/model", "readOnly": True} in engine_of(cpu_bundle())["volumeMounts"]
    assert "initContainers" not in spec


def test_an_image_is_a_volume_with_its_pull_secrets() -> None:
    spec = spec_of(npu_bundle())
    (volume,) = [v for v in spec["volumes"] if v["name"] == "model"]
    assert volume["image"] == {"reference": "example.com/k-exaone-npu:1"}
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_a_hub_is_downloaded_at_the_commit_found_first_with_the_token_by_reference() -> None:
    spec = spec_of(gpu_bundle())
    (download,) = spec["initContainers"]
    assert download["image"] == "example.com/worker:1"
    assert download["command"][:4] == ["hf", "download", f"--revision={COMMIT}", "--local-dir=/model"]
    assert download["command"][-2:] == ["--", "LGAI-EXAONE/K-EXAONE-236B-A23B"]
    found = {v["name"]: v for v in download["env"]}
    assert found["HF_TOKEN"] == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    assert found["HF_ENDPOINT"]["value"] == "https://huggingface.co"
    assert "HF_TOKEN" not in environment(gpu_bundle())
    assert {"name": "model", "mountPath": "/model"} in download["volumeMounts"]
    assert {"name": "model", "mountPath": "/model", "readOnly": True} in engine_of(gpu_bundle())["volumeMounts"]


@pytest.mark.parametrize(("startup_s", "failures"), [(3600, 360), (65, 7), (1, 3)])
def test_probes_ask_the_supervisor_and_a_start_may_take_its_time(startup_s: int, failures: int) -> None:
    engine = engine_of(gpu_bundle(lifecycle={"startupTimeoutSeconds": startup_s}))
    assert engine["startupProbe"]["failureThreshold"] == failures
    paths = {kind: engine[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert paths["startup"] == paths["liveness"] == {"path": "/health", "port": "supervisor"}
    assert paths["readiness"] == {"path": "/ready", "port": "supervisor"}


def test_a_pod_may_drain_to_the_end() -> None:
    assert spec_of(gpu_bundle(lifecycle={"drainSeconds": 300}))["terminationGracePeriodSeconds"] == 315


def test_taints_of_the_pool_are_endured() -> None:
    assert spec_of(gpu_bundle())["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]


def test_the_pools_variables_override_defaults_and_not_the_identity() -> None:
    env = [{"name": "NCCL_SOCKET_IFNAME", "value": "ib0"}, {"name": names.ENV_REPLICA_ID, "value": "another"}]
    pool = pool_spec(engine={"env": [*env, {"name": "NCCL_DEBUG", "value": "WARN"}]})
    found = environment(make_bundle(OWNER, written(pool=pool), shape(), SETTINGS))
    assert (found["NCCL_SOCKET_IFNAME"], found["NCCL_DEBUG"]) == ("ib0", "WARN")
    assert found[names.ENV_REPLICA_ID] == REPLICA


def test_a_pools_template_may_add_a_capability() -> None:
    capability = {"name": "engine", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}
    engine = engine_of(with_templates(pool={"spec": {"containers": [capability]}}))
    assert engine["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert engine["securityContext"]["readOnlyRootFilesystem"]


def test_the_deployments_template_comes_after_the_pools() -> None:
    def memory(amount: str) -> dict[str, Any]:
        return {"spec": {"containers": [{"name": "engine", "resources": {"requests": {"memory": amount}}}]}}

    engine = engine_of(with_templates(memory("64Gi"), memory("96Gi")))
    assert engine["resources"]["requests"] == {"nvidia.com/gpu": "8", "memory": "96Gi"}


def test_a_sidecar_is_restricted_without_saying_so() -> None:
    bundle = with_templates(author={"spec": {"containers": [{"name": "sidecar", "image": "x"}]}})
    (sidecar,) = [c for c in spec_of(bundle)["containers"] if c["name"] == "sidecar"]
    assert sidecar["securityContext"]["capabilities"] == {"drop": ["ALL"]}


HOSTILE = {
    "metadata": {"labels": {names.LABEL_REPLICA: "other", "mine": "kept"}},
    "spec": {
        "serviceAccountName": "admin",
        "serviceAccount": "admin",
        "automountServiceAccountToken": True,
        "schedulingGates": [{"name": "someone.else/gate"}],
        "nodeName": "node-1",
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "replica-secrets", "emptyDir": {}}, {"name": "engine-spec", "emptyDir": {}}],
        "containers": [
            {
                "name": "engine",
                "env": [{"name": names.ENV_REPLICA_KEY_FILE, "value": "/elsewhere"}],
                "volumeMounts": [{"mountPath": "/hanmaru/secrets", "name": "tmp", "subPath": "x"}],
            }
        ],
    },
}


@pytest.mark.parametrize("by", ["pool", "author"])
def test_gate_labels_account_identity_and_keys_stay_ours(by: str) -> None:
    bundle = with_templates(**{by: HOSTILE})
    spec, engine = spec_of(bundle), engine_of(bundle)
    assert bundle.pod_template["metadata"]["labels"][names.LABEL_REPLICA] == REPLICA
    assert bundle.pod_template["metadata"]["labels"]["mine"] == "kept"
    assert {"name": names.GATE_GROUP} in spec["schedulingGates"]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == (REPLICA, False)
    assert not {"nodeName", "serviceAccount", "restartPolicy"} & spec.keys()
    assert spec["terminationGracePeriodSeconds"] == 135
    volumes = {v["name"]: v for v in spec["volumes"]}
    assert volumes["replica-secrets"]["secret"] == {"secretName": REPLICA, "defaultMode": 0o440}
    assert "configMap" in volumes["engine-spec"]
    assert environment(bundle)[names.ENV_REPLICA_KEY_FILE] == "/hanmaru/secrets/replica-key"
    mounted = [m for m in engine["volumeMounts"] if m["mountPath"] == "/hanmaru/secrets"]
    assert mounted == [{"name": "replica-secrets", "mountPath": "/hanmaru/secrets", "readOnly": True}]


def test_a_pools_template_may_add_somebody_elses_gate() -> None:
    gate = {"name": "someone.else/gate"}
    gates = spec_of(with_templates(pool={"spec": {"schedulingGates": [gate]}}))["schedulingGates"]
    assert gates == [{"name": names.GATE_GROUP}, gate]


_names = st.sampled_from(["engine", "tmp", "model", "replica-secrets", "x"])
_items = st.lists(st.fixed_dictionaries({"name": _names}), max_size=2)
_nulls = st.sampled_from([
    "containers", "volumes", "schedulingGates", "tolerations", "initContainers", "affinity", "securityContext",
    "serviceAccountName",
])  # fmt: skip


@given(
    removed=st.lists(_nulls), containers=_items, volumes=_items, emptied=st.sampled_from(["env", "volumeMounts", "x"])
)
def test_whatever_a_template_removes_the_pod_stays_ours(
    removed: list[str], containers: list[Any], volumes: list[Any], emptied: str
) -> None:
    spec: dict[str, Any] = {"containers": [*containers, {"name": "engine", emptied: None}], "volumes": volumes}
    spec |= dict.fromkeys(removed)
    try:
        bundle = with_templates(pool={"metadata": None, "spec": spec}, author={"spec": spec})
    except HanmaruError:
        return
    assert {"name": names.GATE_GROUP} in spec_of(bundle)["schedulingGates"]
    assert environment(bundle)[names.ENV_REPLICA_ID] == REPLICA
    assert spec_of(bundle)["serviceAccountName"] == REPLICA
    assert "/hanmaru/secrets" in [m["mountPath"] for m in engine_of(bundle)["volumeMounts"]]
