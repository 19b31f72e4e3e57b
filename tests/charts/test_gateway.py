"""The gateway's objects: a Ray cluster that nobody else reaches, pods that end in peace, routes that stream."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hanmaru_gateway import node, ray_start
from hanmaru_gateway.settings import Settings, read_settings
from hanmaru_testing.chart_values import GATEWAY
from hanmaru_testing.helm import CHART, HelmError, Manifest, render

NAME = "hanmaru-gateway"
HEAD = "hanmaru-ray-head-2-60-0"
RAY_REDIS = "hanmaru-ray-redis"
TRAEFIK_SCHEME = "traefik.ingress.kubernetes.io/service.serversscheme"
SAID_BY_KUBERAY = {"gateway": {"ray": {"mode": "kuberay"}}}
EXTERNAL = {
    "gateway": {
        "ray": {
            "redis": {
                "enabled": False,
                "external": {
                    "address": "rediss://ray-redis.example:6379",
                    "user": "hanmaru",
                    "password": {"name": "ray-login", "key": "word"},
                    "ca": {"name": "ray-ca", "key": "ca.pem"},
                },
            }
        }
    }
}


def one(made: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in made if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def container(made: list[Manifest], deployment: str) -> dict[str, Any]:
    (only,) = one(made, "Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    return only  # type: ignore[no-any-return]


def volumes(made: list[Manifest], deployment: str) -> list[dict[str, Any]]:
    return one(made, "Deployment", deployment)["spec"]["template"]["spec"]["volumes"]  # type: ignore[no-any-return]


def environment(of: dict[str, Any]) -> dict[str, str]:
    """Its variables; those that Kubernetes fills in have no value here."""
    return {entry["name"]: entry.get("value", "") for entry in of["env"]}


@pytest.fixture(scope="module")
def defaults() -> list[Manifest]:
    return render()


@pytest.fixture(scope="module")
def everything() -> list[Manifest]:
    return render({"gateway": GATEWAY})


# --- The pods ---


def test_the_gateway_reads_its_environment_as_the_chart_writes_it() -> None:
    settings = {"leaveDelaySeconds": 3, "shutdownTimeoutSeconds": 4, "bodyBytes": 5_000_000, "keepAliveSeconds": 6}
    timeouts = {"firstTokenTimeoutSeconds": 7, "stallTimeoutSeconds": 8, "answerTimeoutSeconds": 9}
    values = {"gateway": {**GATEWAY, "settings": {**settings, **timeouts, "defaultOutputTokens": 100_000_000}}}
    read = read_settings(environment(container(render(values), NAME)), {})
    assert (read.leave_delay_s, read.shutdown_timeout_s, read.body_bytes, read.keep_alive_s) == (3, 4, 5_000_000, 6)
    assert (read.first_token_timeout_s, read.stall_timeout_s, read.answer_timeout_s) == (7, 8, 9)
    assert (read.default_output_tokens, read.host) == (100_000_000, "0.0.0.0")
    assert read.tls_cert_file == Path("/etc/hanmaru/tls/tls.crt")


def test_the_charts_defaults_are_the_programs_but_for_how_long_a_pod_may_take_to_end(defaults: list[Manifest]) -> None:
    read = read_settings(environment(container(defaults, NAME)), {}).model_dump()
    own = Settings(platform_secret_file=Path("x")).model_dump()
    differ = {name for name, value in read.items() if value != own[name]}
    connections = {"redis_url", "redis_user", "redis_password_file", "platform_secret_file"}
    assert differ - connections == {"host", "shutdown_timeout_s"}


@pytest.mark.parametrize("shutdown_s", [0, 30, 3600])
def test_a_pod_is_granted_longer_to_end_than_its_replica_takes(shutdown_s: int) -> None:
    made = render({"gateway": {"settings": {"shutdownTimeoutSeconds": shutdown_s}}})
    read = read_settings(environment(container(made, NAME)), {})
    granted = one(made, "Deployment", NAME)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert granted > node.leave_timeout_s(read) + 15, "Ray needs up to 15 s more to end"


def test_no_pod_ends_before_another_is_ready(defaults: list[Manifest]) -> None:
    spec = one(defaults, "Deployment", NAME)["spec"]
    assert spec["strategy"] == {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert container(defaults, NAME)["readinessProbe"]["httpGet"] == {
        "path": "/ready",
        "port": "http",
        "scheme": "HTTP",
    }
    assert one(defaults, "PodDisruptionBudget", NAME)["spec"]["maxUnavailable"] == 1


def test_nodes_find_the_head_by_a_name_that_is_of_one_version_of_ray(defaults: list[Manifest]) -> None:
    service = one(defaults, "Service", HEAD)
    assert f"--head={HEAD}.hanmaru.svc:6380" in container(defaults, NAME)["args"]
    assert service["spec"]["selector"]["serving.hanmaru.dev/ray"] == "2.60.0"
    assert one(defaults, "Deployment", HEAD)["spec"]["strategy"] == {"type": "Recreate"}
    later = render({"gateway": {"ray": {"version": "2.61.0"}}})
    assert "--head=hanmaru-ray-head-2-61-0.hanmaru.svc:6380" in container(later, NAME)["args"]


def test_the_head_serves_nobody(defaults: list[Manifest]) -> None:
    head = one(defaults, "Deployment", HEAD)["spec"]["template"]["metadata"]["labels"]
    for service in (m for m in defaults if m["kind"] == "Service" and m["metadata"]["name"].startswith(NAME)):
        assert not service["spec"]["selector"].items() <= head.items()
    assert "HANMARU_PLATFORM_SECRET_FILE" not in environment(container(defaults, HEAD))


def test_scaling_by_load_leaves_the_number_of_pods_alone(everything: list[Manifest], defaults: list[Manifest]) -> None:
    assert "replicas" not in one(everything, "Deployment", NAME)["spec"]
    assert one(everything, "HorizontalPodAutoscaler", NAME)["spec"]["scaleTargetRef"]["name"] == NAME
    assert one(defaults, "Deployment", NAME)["spec"]["replicas"] == 2
    assert [m for m in defaults if m["kind"] == "HorizontalPodAutoscaler"] == []


# --- Who reaches Ray ---


def sources(rule: dict[str, Any]) -> set[str]:
    return {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rule["from"]}


def test_rays_ports_are_open_to_rays_pods_alone(defaults: list[Manifest]) -> None:
    gateway = one(defaults, "NetworkPolicy", NAME)["spec"]["ingress"]
    head = one(defaults, "NetworkPolicy", "hanmaru-ray-head")["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in gateway] == [[8000, 9000], [6381]]
    assert sources(gateway[1]) == {"gateway", "ray-head"}
    assert [([port["port"] for port in rule["ports"]], sources(rule)) for rule in head] == [([6380], {"gateway"})]
    ends = {rule["ports"][0]["endPort"] for rule in (gateway[1], head[0])}
    assert ends == {6380 + ray_start.NUM_PORTS - 1}


def test_every_port_that_ray_is_given_is_in_the_block_that_the_policy_opens() -> None:
    argv = ray_start.to_argv(ray_start.RayNode(Path("/tmp/ray"), "192.0.2.1", 6380, "head:6380"))
    ports = {int(found[2]) for word in argv if (found := re.fullmatch(r"--([a-z-]+-port)=(\d+)", word))}
    assert len(ports) == 8
    assert ports <= set(range(6380, 6380 + ray_start.NUM_PORTS))


def test_the_heads_redis_is_open_to_the_head_alone(defaults: list[Manifest]) -> None:
    (rule,) = one(defaults, "NetworkPolicy", RAY_REDIS)["spec"]["ingress"]
    assert sources(rule) == {"ray-head"}
    assert "ray-redis" not in {volume["name"] for volume in volumes(defaults, NAME)}


def test_rays_user_has_the_rights_that_were_tried_on_a_real_ray() -> None:
    script = one(render(), "ConfigMap", RAY_REDIS)["data"]["start.sh"]
    tried = (CHART.parents[1] / "tests/gateway/test_cluster.py").read_text()
    rules = re.search(r'GCS_RULES = "(.+)"', tried)
    assert rules is not None
    assert f'echo "user ray on #$hash {rules[1]}"' in script


def test_metrics_are_another_service_than_the_tenants(everything: list[Manifest]) -> None:
    assert {port["port"] for port in one(everything, "Service", NAME)["spec"]["ports"]} == {8000, 9000}
    (metrics,) = one(everything, "Service", f"{NAME}-metrics")["spec"]["ports"]
    assert (metrics["name"], metrics["port"]) == ("metrics", 9090)


def test_rays_redis_may_be_somebody_elses() -> None:
    made = render(EXTERNAL)
    head = environment(container(made, HEAD))
    assert head["RAY_REDIS_ADDRESS"] == "rediss://ray-redis.example:6379"
    assert head["HANMARU_RAY_REDIS_USER"] == "hanmaru"
    assert head["RAY_REDIS_CA_CERT"] == "/etc/hanmaru/ray-redis/ca.crt"
    assert [m for m in made if m["metadata"]["name"] == RAY_REDIS] == []
    (login,) = [v["projected"]["sources"] for v in volumes(made, HEAD) if v["name"] == "ray-redis"]
    assert [s["secret"]["name"] for s in login] == ["ray-login", "ray-ca"]


def test_the_password_of_rays_redis_may_be_there_already() -> None:
    made = render({"gateway": {"ray": {"redis": {"existingSecret": "ray-word"}}}})
    assert [m for m in made if m["kind"] == "Secret" and m["metadata"]["name"] == RAY_REDIS] == []
    (server,) = [v["secret"] for v in volumes(made, RAY_REDIS) if v["name"] == "password"]
    (login,) = [v["projected"]["sources"] for v in volumes(made, HEAD) if v["name"] == "ray-redis"]
    assert server["secretName"] == "ray-word"
    assert [(source["secret"]["name"], source["secret"]["items"]) for source in login] == [
        ("ray-word", server["items"])
    ]


# --- Routes ---


def test_ingresses_buffer_nothing_and_take_what_the_gateway_takes() -> None:
    made = render({"gateway": {**GATEWAY, "settings": {"bodyBytes": 33_554_432, "answerTimeoutSeconds": 2000}}})
    for name, protocol, port in ((NAME, "HTTPS", "http"), (f"{NAME}-grpc", "GRPCS", "grpc")):
        ingress = one(made, "Ingress", name)
        said = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
        assert said["proxy-buffering"] == said["proxy-request-buffering"] == "off"
        assert said["proxy-body-size"] == "33554432"
        assert said["proxy-read-timeout"] == said["proxy-send-timeout"] == "2000"
        assert said["backend-protocol"] == protocol
        (rule,) = ingress["spec"]["rules"]
        assert rule["http"]["paths"][0]["backend"]["service"] == {"name": NAME, "port": {"name": port}}


@pytest.mark.parametrize(
    ("controller", "tls", "service", "said"),
    [
        ("nginx", "", NAME, {"ingress": {"nginx.ingress.kubernetes.io/backend-protocol": "GRPC"}}),
        ("nginx", "a", NAME, {"ingress": {"nginx.ingress.kubernetes.io/backend-protocol": "GRPCS"}}),
        # Traefik reads the Service, and of each Service one scheme.
        ("traefik", "", f"{NAME}-grpc", {NAME: {TRAEFIK_SCHEME: "http"}, f"{NAME}-grpc": {TRAEFIK_SCHEME: "h2c"}}),
        ("traefik", "a", f"{NAME}-grpc", {NAME: {TRAEFIK_SCHEME: "https"}, f"{NAME}-grpc": {TRAEFIK_SCHEME: "https"}}),
        ("haproxy", "", NAME, {"ingress": {"haproxy.org/server-proto": "h2"}}),
        ("haproxy", "a", NAME, {"ingress": {"haproxy.org/server-proto": "h2", "haproxy.org/server-ssl": "true"}}),
        ("other", "", NAME, {"ingress": {}}),
    ],
)
def test_every_controller_is_told_that_the_grpc_route_speaks_grpc(
    controller: str, tls: str, service: str, said: dict[str, dict[str, str]]
) -> None:
    route = {"enabled": True, "hosts": ["grpc.example"]}
    ways = {"http": route, "grpc": route, "controller": controller}
    made = render({"gateway": {"ingress": ways, "tls": {"existingSecret": tls}}})
    ingress = one(made, "Ingress", f"{NAME}-grpc")
    backends = [path["backend"]["service"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    assert backends == [{"name": service, "port": {"name": "grpc"}}]
    assert "grpc" in {port["name"] for port in one(made, "Service", service)["spec"]["ports"]}
    (rest,) = one(made, "Ingress", NAME)["spec"]["rules"]
    assert rest["http"]["paths"][0]["backend"]["service"] == {"name": NAME, "port": {"name": "http"}}
    for name in (NAME, f"{NAME}-grpc"):
        assert one(made, "Service", name)["metadata"].get("annotations", {}) == said.get(name, {})
    assert said.get("ingress", {}).items() <= ingress["metadata"].get("annotations", {}).items()
    # A key of the controller's ConfigMap; at an Ingress it does nothing.
    assert "haproxy.org/timeout-client" not in ingress["metadata"].get("annotations", {})


def test_an_annotation_that_is_given_is_the_one_that_counts() -> None:
    key = "nginx.ingress.kubernetes.io/proxy-read-timeout"
    http = {"enabled": True, "hosts": ["a.example"], "annotations": {key: "77"}}
    made = render({"gateway": {"ingress": {"http": http}}})
    assert one(made, "Ingress", NAME)["metadata"]["annotations"][key] == "77"


def test_gateway_api_routes_have_no_timeout_of_their_own(everything: list[Manifest]) -> None:
    (rule,) = one(everything, "HTTPRoute", NAME)["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rule["backendRefs"] == [{"name": NAME, "port": 8000}]
    (rule,) = one(everything, "GRPCRoute", NAME)["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": NAME, "port": 9000}]
    assert {"method": {"service": "hanmaru.v1.Inference"}} in rule["matches"]


def test_whatever_asks_by_the_service_uses_the_services_port() -> None:
    made = render({"gateway": {"service": {"httpPort": 80}}})
    (asks,) = one(made, "Pod", "hanmaru-test")["spec"]["containers"]
    assert environment(asks)["HANMARU_TEST_URL"] == f"http://{NAME}:80"


# --- KubeRay ---


def started(params: dict[str, str]) -> set[str]:
    """Words of `ray start` as KubeRay makes them of `rayStartParams`: a shell's, and only true makes a flag."""
    flags = {f"--{name}" for name, value in params.items() if value == "true"}
    return flags | {
        f"--{name}={shlex.split(value)[0]}" for name, value in params.items() if value not in ("true", "false")
    }


@pytest.mark.parametrize(
    ("pods", "node"),
    [
        ("ray-head", ray_start.RayNode(Path("/tmp/ray"), "a", 6380)),
        ("gateway", ray_start.RayNode(Path("/tmp/ray"), "a", 6380, "b:1", {ray_start.NODE_RESOURCE: 1})),
    ],
)
def test_kuberay_starts_ray_as_the_charts_own_pods_do(pods: str, node: ray_start.RayNode) -> None:
    cluster = one(render(SAID_BY_KUBERAY), "RayService", NAME)["spec"]["rayClusterConfig"]
    group = cluster["headGroupSpec"] if pods == "ray-head" else cluster["workerGroupSpecs"][0]
    said_by_kuberay = {"--head", "--address=b:1", "--node-ip-address=a", "--block"}
    # Its operator asks the dashboard how Serve is. And a value "false" it would leave out.
    otherwise = {"--include-dashboard=false", "--include-log-monitor=false"}
    found = started(group["rayStartParams"])
    assert set(ray_start.to_argv(node)) - found <= said_by_kuberay | otherwise
    assert found - set(ray_start.to_argv(node)) <= {"--include-log-monitor=0", "--dashboard-host=0.0.0.0"}
    assert "--include-log-monitor=0" in found
    environ = environment(group["template"]["spec"]["containers"][0])
    assert {
        **ray_start.CLUSTER_DEFAULTS,
        "RAY_START_HOOK": "hanmaru_gateway.ray_start.adjust",
    }.items() <= environ.items()


def test_kuberay_gets_the_same_cluster_as_one_object() -> None:
    made = render(SAID_BY_KUBERAY)
    assert [m for m in made if m["metadata"]["name"] in (NAME, HEAD) and m["kind"] == "Deployment"] == []
    service = one(made, "RayService", NAME)
    assert service["apiVersion"] == "ray.io/v1"
    spec = service["spec"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    # Not imported here: Ray warns of its own use of pydantic, and warnings are errors.
    assert "import_path: hanmaru_gateway.kuberay:application" in spec["serveConfigV2"]
    assert "\napplication = " in (CHART.parents[1] / "platform/hanmaru_gateway/kuberay.py").read_text()
    cluster = spec["rayClusterConfig"]
    storage = cluster["gcsFaultToleranceOptions"]
    assert storage["redisAddress"] == f"redis://{RAY_REDIS}.hanmaru.svc:6379"
    assert storage["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": RAY_REDIS, "key": "password"}
    (workers,) = cluster["workerGroupSpecs"]
    assert ray_start.NODE_RESOURCE in workers["rayStartParams"]["resources"]
    pod = workers["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["hanmaru", "gateway", "leave"]
    labels = one(made, "Service", NAME)["spec"]["selector"]
    assert labels.items() <= workers["template"]["metadata"]["labels"].items()
    assert not labels.items() <= cluster["headGroupSpec"]["template"]["metadata"]["labels"].items()
    assert all(isinstance(value, str) for value in workers["rayStartParams"].values())


# --- What does not fit together ---


@pytest.mark.parametrize(
    ("gateway", "said"),
    [
        ({"ray": {"mode": "operator"}}, "/gateway/ray/mode"),
        ({"settings": {"bodyBytes": 0}}, "/gateway/settings/bodyBytes"),
        ({"ray": {"redis": {"enabled": False}}}, "gateway.ray.redis.external.address is empty"),
        ({"ray": {"redis": {"external": {"address": "redis://a:1"}}}}, "set gateway.ray.redis.enabled=false"),
        ({"ray": {"redis": {"external": {"address": "redis+sentinel://a:1"}}}}, "/gateway/ray/redis/external/address"),
        (
            {"ray": {"redis": EXTERNAL["gateway"]["ray"]["redis"] | {"existingSecret": "a"}}},
            "name the Secret in gateway.ray.redis.external.password",
        ),
        ({"ray": {"mode": "kuberay"}, "autoscaling": {"enabled": True}}, "set gateway.replicas"),
        ({"autoscaling": {"enabled": True, "minReplicas": 11}}, "minReplicas is 11, more than maxReplicas, 10"),
        ({"ingress": {"http": {"enabled": True}}}, "gateway.ingress.http.hosts"),
        ({"gatewayAPI": {"grpcRoute": {"enabled": True}}}, "gateway.gatewayAPI.grpcRoute.parentRefs"),
    ],
)
def test_wrong_values_are_refused(gateway: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError) as refused:
        render({"gateway": gateway})
    assert said in str(refused.value)


def test_kuberay_without_its_kinds_is_refused() -> None:
    with pytest.raises(HelmError, match="install the KubeRay operator"):
        render(SAID_BY_KUBERAY, api_versions=["serving.hanmaru.dev/v1alpha1"])
