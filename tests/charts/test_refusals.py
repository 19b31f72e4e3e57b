"""Values that are wrong are refused before anything is made, with a sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hanmaru_testing.chart_values import CASES
from hanmaru_testing.helm import CHART, CRDS_CHART, HelmError, render, run_helm

POOL: dict[str, Any] = {
    "nodes": {"selectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]},
    "devices": {"resource": {"name": "cpu"}, "memory": "6Gi", "perNode": 2},
}
DEPLOYMENT: dict[str, Any] = {
    "source": {"type": "HuggingFace", "huggingFace": {"repo": "a/b"}},
    "licence": {"accepted": "x"},
    "route": {"name": "x"},
    "pools": [{"name": "cpu"}],
}
EXTERNAL = {"enabled": False, "existingSecret": "logins"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        # Types and names.
        ({"operator": {"replicas": "two"}}, "/operator/replicas"),
        ({"operator": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"operater": {}}, "additional properties 'operater' not allowed"),
        ({"redis": {"enabled": "yes"}}, "want boolean"),
        ({"global": {"imagePullPolicy": "Sometimes"}}, "/global/imagePullPolicy"),
        ({"global": {"imagePullSecrets": [{"name": "a"}]}}, "/global/imagePullSecrets/0"),
        ({"operator": {"image": {"digest": "abc"}}}, "/operator/image/digest"),
        ({"redis": {"external": {"url": "redis://user:word@host:6379/0"}}}, "/redis/external/url"),
        ({"redis": {"external": {"url": "memcached://host"}}}, "/redis/external/url"),
        ({"redis": {"maxMemory": "a lot"}}, "/redis/maxMemory"),
        ({"collector": {"export": {"endpoint": "tempo:4317"}}}, "/collector/export/endpoint"),
        # The kinds, by their own models.
        ({"pools": {"Cpu_1": POOL}}, "Cpu_1"),
        ({"pools": {"cpu": POOL | {"device": {}}}}, "additional properties 'device' not allowed"),
        ({"pools": {"cpu": {"nodes": POOL["nodes"]}}}, "missing property 'devices'"),
        ({"modelDeployments": {"x": DEPLOYMENT | {"replicas": -1}}}, "/modelDeployments/x/replicas"),
        ({"modelDeployments": {"x" * 45: DEPLOYMENT}}, "maxLength"),
        ({"tenants": {"demo": {"models": [{"name": "x"}]}}}, "missing property 'namespace'"),
        # What does not fit together.
        (
            {"sharedCache": {"enabled": True, "url": "redis://h:6379"}},
            "sharedCache.url needs sharedCache.existingSecret",
        ),
        ({"sharedCache": {"enabled": True, "existingSecret": "a"}}, "existingSecret goes with sharedCache.url"),
        ({"sharedCache": {"enabled": True, "user": "pages"}}, "the chart's own Redis knows it as tier"),
        (
            {"sharedCache": {"enabled": True}, "redis": {"persistence": {"enabled": True}}},
            "sharedCache on the chart's own Redis goes without redis.persistence",
        ),
        ({"sharedCache": {"enabled": True, "serverName": "a"}}, "sharedCache.serverName go with sharedCache.url"),
        (
            {"sharedCache": {"enabled": True, "url": "redis://h", "existingSecret": "a", "serverName": "b"}},
            "has no TLS; begin it with rediss",
        ),
        ({"redis": {"external": {"url": "redis://host:6379/0"}}}, "set redis.enabled=false to use redis://host:6379/0"),
        ({"redis": {"enabled": False, "existingSecret": "logins"}}, "give the URL of your Redis"),
        ({"redis": {"enabled": False, "external": {"url": "redis://host"}}}, "needs redis.existingSecret"),
        ({"redis": {"tls": {"enabled": True}}}, "for hanmaru-redis.hanmaru.svc"),
        ({"redis": EXTERNAL | {"external": {"url": "redis://h"}, "tls": {"enabled": True}}}, "begins with rediss"),
        (
            {"redis": EXTERNAL | {"external": {"url": "redis://h"}, "persistence": {"enabled": True}}},
            "set redis.persistence.enabled=false",
        ),
        ({"redis": {"users": {"worker": "w"}}}, "redis.users.worker is w"),
        ({"redis": EXTERNAL | {"external": {"url": "redis://h", "ca": {"name": "a"}}}}, "has no TLS"),
        ({"redis": EXTERNAL | {"external": {"url": "redis://h", "sentinel": {"user": "a"}}}}, "names no sentinels"),
        ({"tracing": {"endpoint": "http://host:4317"}}, "set collector.enabled=false"),
        ({"collector": {"config": {"receivers": {}}, "export": {"endpoint": "http://a:1"}}}, "remove one of them"),
        ({"operator": {"tenantNamespaces": ["a"]}, "tenants": {"demo": {}}}, "not one of operator.tenantNamespaces"),
        ({"pools": {"npu": POOL | {"engine": {"type": "FuriosaLLM"}}}}, "pools.npu runs FuriosaLLM"),
        ({"global": {"labels": {"app.kubernetes.io/name": "x"}}}, "may not set app.kubernetes.io/name"),
        ({"global": {"airGapped": True}, "modelDeployments": {"x": DEPLOYMENT}}, "x downloads from a model hub"),
    ],
)
def test_wrong_values_are_refused_with_words(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(values)
    assert said in str(refused.value)


@pytest.mark.parametrize("path", ["operator", "gateway", "gateway.ray.head", "gateway.ray.redis", "redis", "collector"])
def test_every_component_is_asked_for_its_account_and_keeps_the_labels_that_find_its_pods(path: str) -> None:
    given: dict[str, Any] = {"serviceAccount": {"create": False}, "labels": {"app.kubernetes.io/part-of": "x"}}
    for name in reversed(path.split(".")):
        given = {name: given}
    with pytest.raises(HelmError) as refused:
        render(given)
    assert f"- {path}.serviceAccount.create is false: name the account that exists" in str(refused.value)
    assert f"- {path}.labels may not set app.kubernetes.io/part-of" in str(refused.value)
    assert str(refused.value).count("\n  - ") == 2


def test_registrations_may_be_kept_on_disk_beside_a_redis_for_shared_caches() -> None:
    cache = {"enabled": True, "url": "redis://h", "existingSecret": "a"}
    assert render({"sharedCache": cache, "redis": {"persistence": {"enabled": True}}})


def test_a_component_that_is_off_is_asked_for_nothing() -> None:
    assert render({"collector": {"enabled": False, "serviceAccount": {"create": False}}})


def test_all_that_does_not_fit_is_said_at_once() -> None:
    with pytest.raises(HelmError) as refused:
        render({"redis": {"enabled": False}, "tracing": {"endpoint": "http://a:1"}})
    assert str(refused.value).count("\n  - ") == 3


def test_without_the_kinds_it_says_what_to_run() -> None:
    with pytest.raises(HelmError, match="helm install hanmaru-crds charts/hanmaru-crds"):
        render(api_versions=())


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(HelmError, match=r"kubeVersion: >=1\.32"):
        run_helm("template", "hanmaru", str(CHART), "--kube-version", "1.31.0")


@pytest.mark.parametrize("case", CASES)
def test_lint_has_nothing_to_say(case: str, tmp_path: Path) -> None:
    files, values = CASES[case]
    over = tmp_path / "values.json"
    over.write_text(json.dumps(values))
    given = [argument for file in (*files, over) for argument in ("--values", str(file))]
    said = run_helm("lint", str(CHART), "--strict", *given)
    assert "0 chart(s) failed" in said
    assert "[ERROR]" not in said
    assert "[WARNING]" not in said


def test_the_kinds_chart_is_clean_too() -> None:
    assert "0 chart(s) failed" in run_helm("lint", str(CRDS_CHART), "--strict")
