from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hanmaru_contracts import names
from hanmaru_contracts.names import ReplicaId
from hanmaru_contracts.wire.engine_spec import SharedCache
from hanmaru_operator.render.bundle import (
    Bundle,
    Placement,
    make_bundle,
    read_bundle,
    render_controller_revision,
)
from hanmaru_operator.render.group import ReplicaSecrets, replica_manifests
from hanmaru_operator.render.identity import REPLICA_ID_MAX_CHARS, first_pods_selector, replica_id
from hanmaru_operator.render.pod import REPLICA
from hanmaru_operator.render.settings import RedisFile, TierRedis
from hanmaru_testing.rendered import (
    COMMIT,
    OWNER,
    SETTINGS,
    cpu_bundle,
    gpu_bundle,
    npu_bundle,
    shape,
    written,
)
from hypothesis import given
from hypothesis import strategies as st

REPLICA_0 = ReplicaId("k-exaone-abcde")
SECRETS = ReplicaSecrets(b"k" * 32, {RedisFile.PASSWORD: "hunter2", RedisFile.CA: "PEM"})
BUNDLES = [gpu_bundle(), cpu_bundle(), npu_bundle()]
IDS = ["gpu", "cpu", "npu"]


def made(bundle: Bundle, placement: Placement | None = None, **settings: Any) -> dict[str, dict[str, Any]]:
    found = replica_manifests(bundle, OWNER, REPLICA_0, SECRETS, replace(SETTINGS, **settings), placement)
    return {manifest["kind"]: manifest for manifest in found}


@pytest.mark.parametrize("bundle", BUNDLES, ids=IDS)
def test_every_object_has_the_replicas_name_and_goes_with_the_deployment(bundle: Bundle) -> None:
    for manifest in made(bundle).values():
        metadata = manifest["metadata"]
        assert (metadata["name"], metadata["namespace"]) == (REPLICA_0, "team")
        assert "finalizers" not in metadata
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("ModelDeployment", "uid-1", True)
        assert owner["blockOwnerDeletion"] is False
        assert metadata["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
        assert metadata["labels"][names.LABEL_REPLICA] == REPLICA_0
        assert REPLICA not in json.dumps(manifest)


def test_a_snapshot_of_last_year_renders_the_same_pods() -> None:
    """Whatever today's code would make of the specs: pods come from what was kept."""
    kept = render_controller_revision(gpu_bundle(), OWNER)
    kept["data"]["podTemplate"]["spec"]["hostname"] = "made-by-an-older-operator"
    bundle = read_bundle(json.loads(json.dumps(kept)))
    assert bundle is not None
    template = made(bundle)["StatefulSet"]["spec"]["template"]
    assert template["spec"]["hostname"] == "made-by-an-older-operator"
    assert json.dumps(template) == json.dumps(
        made(bundle, redis_url="redis://moved:1/0")["StatefulSet"]["spec"]["template"]
    )


def test_ranks_start_together_and_are_replaced_by_nobody() -> None:
    spec = made(gpu_bundle())["StatefulSet"]["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"]) == (2, "Parallel")
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["serviceName"] == REPLICA_0
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_ranks_find_each_other_before_they_are_ready() -> None:
    spec = made(gpu_bundle())["Service"]["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"]


def test_pods_go_to_the_pools_present_nodes() -> None:
    def terms(placement: Placement | None) -> Any:
        spec = made(gpu_bundle(), placement)["StatefulSet"]["spec"]["template"]["spec"]
        affinity = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return affinity["nodeSelectorTerms"], spec.get("priorityClassName"), spec.get("schedulerName")

    kept = [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}]
    assert terms(None) == (kept, None, None)
    now = [{"matchExpressions": [{"key": "rack", "operator": "Exists"}]}]
    assert terms(Placement(tuple(now), "high", "mine")) == (now, "high", "mine")


def test_what_reaches_redis_is_in_the_secret_and_named_in_the_environment() -> None:
    """An operator that learns of an authority later changes no pod of a revision that it made before."""
    settings = replace(
        SETTINGS,
        redis_url="rediss+sentinel://s:26379/m",
        redis_server_name="redis",
        redis_sentinel_user="watcher",
        redis_files=frozenset(RedisFile),
    )
    template = gpu_bundle(settings).pod_template
    engine = template["spec"]["containers"][0]
    told = {variable["name"]: variable.get("value") for variable in engine["env"]}
    assert {name: value for name, value in told.items() if name.startswith("HANMARU_REDIS_")} == {
        "HANMARU_REDIS_URL": "rediss+sentinel://s:26379/m",
        "HANMARU_REDIS_USER": "worker",
        "HANMARU_REDIS_SERVER_NAME": "redis",
        "HANMARU_REDIS_SENTINEL_USER": "watcher",
        "HANMARU_REDIS_PASSWORD_FILE": "/hanmaru/secrets/redis-password",
        "HANMARU_REDIS_CA_FILE": "/hanmaru/secrets/redis-ca.crt",
        "HANMARU_REDIS_CERT_FILE": "/hanmaru/secrets/redis-client.crt",
        "HANMARU_REDIS_KEY_FILE": "/hanmaru/secrets/redis-client.key",
        "HANMARU_REDIS_SENTINEL_PASSWORD_FILE": "/hanmaru/secrets/redis-sentinel-password",
    }
    kept = made(gpu_bundle())["StatefulSet"]
    assert made(gpu_bundle(), redis_files=frozenset(RedisFile), redis_url="rediss://r")["StatefulSet"] == kept


def test_a_shared_caches_way_and_key_go_to_replicas_that_have_one() -> None:
    tier = TierRedis("rediss://tier:6379", "tier", "tier.example", files=frozenset({RedisFile.PASSWORD, RedisFile.CA}))
    settings = replace(SETTINGS, tier=tier)
    secrets = replace(SECRETS, tier_key=b"t" * 32, tier_redis={RedisFile.PASSWORD: "hunter3", RedisFile.CA: "PEM"})

    def secret_and_variables(bundle: Bundle) -> tuple[dict[str, str], dict[str, str]]:
        found = {m["kind"]: m for m in replica_manifests(bundle, OWNER, REPLICA_0, secrets, settings)}
        (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
        variables = {each["name"]: each.get("value", "") for each in container["env"]}
        return found["Secret"]["data"], variables

    with_tier = make_bundle(OWNER, written(), shape(shared_cache=SharedCache()), settings, COMMIT)
    data, variables = secret_and_variables(with_tier)
    assert base64.b64decode(data["tier-key"]).decode() == (b"t" * 32).hex()
    assert base64.b64decode(data["tier-redis-password"]).decode() == "hunter3"
    told = {name: value for name, value in variables.items() if name.startswith("HANMARU_TIER")}
    assert told == {
        "HANMARU_TIER_REDIS_URL": "rediss://tier:6379",
        "HANMARU_TIER_REDIS_USER": "tier",
        "HANMARU_TIER_REDIS_SERVER_NAME": "tier.example",
        "HANMARU_TIER_REDIS_PASSWORD_FILE": "/hanmaru/secrets/tier-redis-password",
        "HANMARU_TIER_REDIS_CA_FILE": "/hanmaru/secrets/tier-redis-ca.crt",
        "HANMARU_TIER_KEY_FILE": "/hanmaru/secrets/tier-key",
    }
    data, variables = secret_and_variables(make_bundle(OWNER, written(), shape(), settings, COMMIT))
    assert not [name for name in (*data, *variables) if "tier" in name.lower()]


def test_the_replicas_secrets_are_its_own_and_can_be_renewed() -> None:
    secret = made(gpu_bundle())["Secret"]
    assert not secret.get("immutable")
    told = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert told == {"replica-key": (b"k" * 32).hex(), "redis-password": "hunter2", "redis-ca.crt": "PEM"}
    assert "hunter2" not in repr(SECRETS)
    assert "kkk" not in repr(SECRETS)
    without = replica_manifests(gpu_bundle(), OWNER, REPLICA_0, ReplicaSecrets(b"k" * 32), SETTINGS)
    (alone,) = [manifest for manifest in without if manifest["kind"] == "Secret"]
    assert [*alone["data"]] == ["replica-key"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=IDS)
def test_no_secret_leaves_the_secret(bundle: Bundle) -> None:
    others = [manifest for kind, manifest in made(bundle).items() if kind != "Secret"]
    texts = json.dumps([others, render_controller_revision(bundle, OWNER)])
    for secret in ("hunter2", (b"k" * 32).hex(), base64.b64encode(b"hunter2").decode()):
        assert secret not in texts


def test_the_account_has_no_token() -> None:
    assert made(gpu_bundle())["ServiceAccount"]["automountServiceAccountToken"] is False


def test_nobody_evicts_a_rank_alone() -> None:
    spec = made(gpu_bundle())["PodDisruptionBudget"]["spec"]
    assert spec == {"maxUnavailable": 0, "selector": {"matchLabels": {names.LABEL_REPLICA: REPLICA_0}}}


def test_only_the_group_gateways_and_metrics_get_in() -> None:
    policy = made(gpu_bundle())["NetworkPolicy"]["spec"]
    group = {"matchLabels": {names.LABEL_REPLICA: REPLICA_0}}
    assert policy == {
        "podSelector": group,
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": group}]},
            {
                "from": [
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hanmaru"}},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}},
                    }
                ],
                "ports": [{"port": 30000, "protocol": "TCP"}],
            },
            {
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
                "ports": [{"port": 30100, "protocol": "TCP"}],
            },
        ],
    }


def test_without_a_metrics_namespace_nobody_fetches_metrics() -> None:
    ingress = made(gpu_bundle(), metrics_namespace_labels={})["NetworkPolicy"]["spec"]["ingress"]
    assert not [rule for rule in ingress if {"port": 30100, "protocol": "TCP"} in rule.get("ports", [])]


@given(name=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True))
def test_a_replicas_name_is_a_label_and_leaves_room_for_its_pods(name: str) -> None:
    found = replica_id(name, "x7k2p")
    assert len(found) <= REPLICA_ID_MAX_CHARS
    assert found.endswith("-x7k2p")
    assert "--x7k2p" not in found
    assert name.startswith(found.removesuffix("-x7k2p"))


def test_an_autoscaler_counts_replicas_not_pods() -> None:
    assert first_pods_selector("md") == f"{names.LABEL_DEPLOYMENT}=md,{names.LABEL_POD_INDEX}=0"
