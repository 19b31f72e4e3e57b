"""The settings file and environment that the chart gives the operator, read by the operator's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hanmaru_contracts import names
from hanmaru_contracts.wire.engine_spec import EngineType
from hanmaru_operator.render.settings import RedisFile
from hanmaru_operator.settings import Settings, read_settings
from hanmaru_testing.chart_values import (
    CASES,
    EXTERNAL_REDIS,
    MONITORED,
    OWN_SHARED_CACHE,
    SHARED_CACHE,
    WITH_TLS,
)
from hanmaru_testing.helm import Manifest, render


def named(made: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in made if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def read(made: list[Manifest], folder: Path) -> Settings:
    """As the operator would in its pod."""
    settings = folder / "settings.yaml"
    settings.write_text(named(made, "ConfigMap", "hanmaru-operator")["data"]["settings.yaml"])
    (container,) = named(made, "Deployment", "hanmaru-operator")["spec"]["template"]["spec"]["containers"]
    environ = {variable["name"]: variable.get("value", "from-the-pod") for variable in container["env"]}
    environ[names.ENV_OPERATOR_SETTINGS_FILE] = str(settings)
    return read_settings(environ, hostname="x")


@pytest.mark.parametrize("case", CASES)
def test_the_operator_understands_what_it_is_given(case: str, tmp_path: Path) -> None:
    files, values = CASES[case]
    settings = read(render(values, files=files), tmp_path)
    assert settings.host == "0.0.0.0"
    assert settings.worker_images[EngineType.SGLANG].endswith("/worker:0.1.0")
    assert settings.worker_redis_url == settings.redis_url


def test_defaults_are_the_operators_own(tmp_path: Path) -> None:
    settings = read(render(), tmp_path)
    own = Settings(namespace="a", pod_name="b", platform_secret_file=tmp_path)
    for field in ("workers", "resync_interval_s", "return_after_s", "bands", "shared_domains"):
        assert getattr(settings, field) == getattr(own, field), field


def test_gateways_are_found_by_the_labels_of_their_pods(tmp_path: Path) -> None:
    labels = read(render(release="prod", values={"fullnameOverride": "hanmaru"}), tmp_path).gateway_pod_labels
    assert labels["app.kubernetes.io/component"] == "gateway"
    assert labels["app.kubernetes.io/instance"] == "prod"


def test_spans_go_where_they_are_taken(tmp_path: Path) -> None:
    assert read(render(), tmp_path).trace_endpoint == "http://hanmaru-collector.hanmaru.svc:4317"
    elsewhere = {"collector": {"enabled": False}, "tracing": {"endpoint": "https://tempo.example:4317"}}
    assert read(render(elsewhere), tmp_path).trace_endpoint == "https://tempo.example:4317"
    assert read(render({"collector": {"enabled": False}}), tmp_path).trace_endpoint == ""


def test_shared_caches_are_for_those_named_or_for_all(tmp_path: Path) -> None:
    domains = {"team": ["research", "search"], "public": ["*"]}
    settings = read(render({"operator": {"settings": {"sharedDomains": domains}}}), tmp_path)
    assert settings.shared_domains == {"team": ("research", "search"), "public": None}


def test_metrics_may_be_fetched_from_the_same_namespaces_everywhere(tmp_path: Path) -> None:
    assert read(render(MONITORED), tmp_path).metrics_namespace_labels == MONITORED["monitoring"]["namespaceLabels"]


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "redis://hanmaru-redis.hanmaru.svc:6379/0"),
        (WITH_TLS, "rediss://hanmaru-redis.hanmaru.svc:6379/0"),
        (EXTERNAL_REDIS, "rediss+sentinel://a.example:26379,b.example:26379/main"),
    ],
)
def test_every_way_to_redis_is_handed_on_to_workers(values: dict[str, Any], url: str, tmp_path: Path) -> None:
    made = render(values)
    settings = read(made, tmp_path)
    assert settings.redis_url == settings.worker_redis_url == url
    assert settings.worker_redis_user == "worker"
    pod = named(made, "Deployment", "hanmaru-operator")["spec"]["template"]["spec"]
    (login,) = [volume for volume in pod["volumes"] if volume["name"] == "redis-login"]
    files = {item["path"] for source in login["projected"]["sources"] for item in source["secret"]["items"]}
    told = yaml.safe_load(named(made, "ConfigMap", "hanmaru-operator")["data"]["settings.yaml"])
    named_files = {
        value for value in told.values() if isinstance(value, str) and value.startswith("/etc/hanmaru/redis/")
    }
    (container,) = pod["containers"]
    named_files |= {v["value"] for v in container["env"] if v.get("value", "").startswith("/etc/hanmaru/redis/")}
    assert {Path(file).name for file in named_files} == files


@pytest.mark.parametrize(
    ("values", "url", "user"),
    [
        (SHARED_CACHE, "redis://hanmaru-redis.hanmaru.svc:6379/0", "tier"),
        (OWN_SHARED_CACHE, "rediss+cluster://a.example:6379,b.example:6379", "pages"),
        (
            {**EXTERNAL_REDIS, "sharedCache": {"enabled": True}},
            "rediss+sentinel://a.example:26379,b.example:26379/main",
            "tier",
        ),
    ],
    ids=["the charts", "its own", "external"],
)
def test_every_way_to_shared_caches_is_handed_on(values: dict[str, Any], url: str, user: str, tmp_path: Path) -> None:
    made = render(values)
    tier = read(made, tmp_path).render.tier
    assert tier is not None
    assert (tier.url, tier.user) == (url, user)
    assert RedisFile.PASSWORD in tier.files
    assert (RedisFile.CA in tier.files) == url.startswith("rediss")
    assert bool(tier.server_name) == url.startswith("rediss")
    pod = named(made, "Deployment", "hanmaru-operator")["spec"]["template"]["spec"]
    (login,) = [volume for volume in pod["volumes"] if volume["name"] == "redis-login"]
    files = {item["path"] for source in login["projected"]["sources"] for item in source["secret"]["items"]}
    told = yaml.safe_load(named(made, "ConfigMap", "hanmaru-operator")["data"]["settings.yaml"])
    given = {Path(value).name for name, value in told.items() if name.startswith("tierRedis") and name.endswith("File")}
    assert given <= files


def test_nobody_has_a_shared_cache_by_default(tmp_path: Path) -> None:
    made = render()
    assert read(made, tmp_path).render.tier is None
    (secret,) = [m for m in made if m["kind"] == "Secret" and m["metadata"]["name"] == "hanmaru-redis"]
    assert "tier" not in secret["data"]


def test_the_charts_own_redis_knows_the_tier_where_caches_are_shared() -> None:
    made = render(SHARED_CACHE)
    (secret,) = [m for m in made if m["kind"] == "Secret" and m["metadata"]["name"] == "hanmaru-redis"]
    assert len(secret["data"]["tier"]) >= 32
    redis = named(made, "Deployment", "hanmaru-redis")["spec"]["template"]["spec"]
    (passwords,) = [volume["secret"] for volume in redis["volumes"] if volume["name"] == "passwords"]
    assert {item["path"] for item in passwords["items"]} == {"gateway", "operator", "worker", "tier"}


def test_roles_reach_the_namespaces_of_tenants_and_no_other() -> None:
    made = render({"operator": {"tenantNamespaces": ["a", "b"]}})
    roles = {m["metadata"]["namespace"]: m["rules"] for m in made if m["kind"] == "Role"}
    assert roles.keys() == {"hanmaru", "a", "b"}
    reads_secrets = {place for place, rules in roles.items() if any("secrets" in rule["resources"] for rule in rules)}
    assert reads_secrets == {"a", "b"}
    alone = render()
    own = [m for m in alone if m["kind"] == "Role"]
    assert {m["metadata"]["namespace"] for m in own} == {"hanmaru"}
    for binding in (m for m in made if m["kind"].endswith("Binding")):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "hanmaru-operator", "namespace": "hanmaru"}]
