from __future__ import annotations

import json
from pathlib import Path

import pytest
from hanmaru_cli.checkpoint import Checkpoint
from hanmaru_cli.laptop import DEMO, LIMITED, Options, Plan, Secrets, inherited, make_plan, wanted_ports
from hanmaru_contracts import keys, names
from hanmaru_contracts.crd.v1alpha1.tenant import TenantsFile
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.redis_keys import ACL_RULES
from hanmaru_contracts.wire.engine_spec import EngineSpec

ROOT = Path("/home/somebody/.cache/hanmaru/up")
SECRETS = Secrets(
    platform="the-platform-secret",
    redis={role: f"redis-password-of-{role}" for role in ACL_RULES},
    api_keys={DEMO: "hmk_demo", LIMITED: "hmk_limited"},
)


def plan_for(workers: int = 1, positions: int = 32_768, otlp_endpoint: str | None = None, mtp_layers: int = 1) -> Plan:
    checkpoint = Checkpoint(Path("/models/tiny"), "tiny", positions, mtp_layers)
    options = Options(checkpoint=checkpoint, workers=workers, otlp_endpoint=otlp_endpoint)
    return make_plan(
        options,
        ports=wanted_ports(options),
        secrets=SECRETS,
        root=ROOT,
        temporary=Path("/tmp/hm-1"),
        redis_server=Path("/usr/bin/redis-server"),
    )


def specs_of(plan: Plan) -> list[EngineSpec]:
    files = [Path(worker.environment[names.ENV_ENGINE_SPEC]) for worker in plan.workers]
    return [EngineSpec.model_validate_json(plan.files[file]) for file in files]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_port_is_wanted_once(workers: int) -> None:
    options = Options(checkpoint=Checkpoint(Path("/m"), "m", 1), workers=workers)
    ports = list(wanted_ports(options).values())
    assert len(set(ports)) == len(ports) == 5 + 2 * workers


def test_two_workers_are_two_replicas_of_one_model() -> None:
    plan = plan_for(workers=2)
    first, second = specs_of(plan)
    assert first.model == second.model
    assert (first.http_port, second.http_port) == (30000, 30001)
    assert (first.supervisor_port, second.supervisor_port) == (30100, 30101)
    assert [worker.environment[names.ENV_REPLICA_ID] for worker in plan.workers] == ["worker-0", "worker-1"]


@pytest.mark.parametrize(("mtp_layers", "drafts"), [(0, None), (1, 3), (4, None)])
def test_a_worker_drafts_where_the_checkpoint_has_one_layer_for_it(mtp_layers: int, drafts: int | None) -> None:
    (spec,) = specs_of(plan_for(mtp_layers=mtp_layers))
    assert spec.draft_tokens == drafts
    assert ("mtp" in spec.features) == (drafts is not None)


def test_a_worker_learns_its_own_key_and_nothing_else() -> None:
    plan = plan_for(workers=2)
    for worker in plan.workers:
        key = bytes.fromhex(plan.files[Path(worker.environment[names.ENV_REPLICA_KEY_FILE])])
        replica = ReplicaId(worker.environment[names.ENV_REPLICA_ID])
        assert key == keys.replica_key(SECRETS.platform.encode(), ModelId("local/tiny"), replica)
        assert names.ENV_PLATFORM_SECRET_FILE not in worker.environment
        assert names.ENV_TENANTS_FILE not in worker.environment


def test_no_secret_is_in_an_argument_or_an_environment() -> None:
    plan = plan_for(workers=2, otlp_endpoint="http://127.0.0.1:4317")
    secrets = [SECRETS.platform, *SECRETS.redis.values(), *SECRETS.api_keys.values()]
    for part in plan.parts:
        said = " ".join([*part.argv, *part.environment.values()])
        assert not [secret for secret in secrets if secret in said], part.name


def test_no_file_of_the_plan_holds_an_api_key_or_the_platform_secret() -> None:
    written = "".join(plan_for(workers=2).files.values())
    assert SECRETS.platform not in written
    assert not any(key in written for key in SECRETS.api_keys.values())


def test_tenants_are_found_by_their_keys_and_only_one_is_limited() -> None:
    tenants = TenantsFile.model_validate_json(plan_for().files[ROOT / "tenants.json"]).tenants
    by_digest = {tenant.credentials[0].api_key.digest: tenant for tenant in tenants}
    demo = by_digest[keys.api_key_digest("hmk_demo")]
    limited = by_digest[keys.api_key_digest("hmk_limited")]
    assert not demo.limits
    assert limited.limits[0].requests_per_minute == 3
    assert [ref.id for ref in demo.models] == ["local/tiny"]


@pytest.mark.parametrize(("positions", "context"), [(32_768, 16_384), (4_096, 4_096)])
def test_the_context_is_what_a_laptop_holds_and_the_model_knows(positions: int, context: int) -> None:
    assert specs_of(plan_for(positions=positions))[0].context_tokens == context


def test_tracing_is_off_unless_an_endpoint_is_named() -> None:
    off, on = plan_for(), plan_for(otlp_endpoint="http://127.0.0.1:4317")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in off.gateway.environment
    assert specs_of(off)[0].trace_endpoint is None
    assert on.gateway.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4317"
    assert specs_of(on)[0].trace_endpoint == "http://127.0.0.1:4317"


def test_who_takes_requests_ends_first_and_redis_last() -> None:
    assert [part.name for part in plan_for(workers=2).parts] == ["gateway", "worker-0", "worker-1", "redis"]


def test_files_are_json_where_programs_read_json() -> None:
    for path, content in plan_for().files.items():
        if path.suffix == ".json":
            json.loads(content)


def test_settings_of_another_gateway_or_ray_in_the_same_shell_are_not_inherited() -> None:
    environment = {"PATH": "/bin", "HANMARU_HOME": "/x", "RAY_ADDRESS": "auto", names.ENV_TENANTS_FILE: "/y"}
    environment |= {names.ENV_GROUP_SIZE: "2", "HANMARU_TEST_RUN": "1"}
    assert inherited(environment).keys() == {"PATH", "HANMARU_HOME", "HANMARU_TEST_RUN"}
