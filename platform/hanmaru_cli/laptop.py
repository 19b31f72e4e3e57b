"""What `hanmaru up` runs on one machine: parts, their files and environments. Pure: options and facts in, a plan out.

`up` writes the files, picks free ports and starts the parts; the parts are the ones that run on a cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hanmaru_contracts import keys, names
from hanmaru_contracts.crd.v1alpha1.tenant import ApiKey, Credential, Limit, ModelRef, NamedTenant, TenantsFile
from hanmaru_contracts.names import ReplicaId
from hanmaru_contracts.wire.engine_spec import EngineSpec, KvCache

from hanmaru_cli.checkpoint import Checkpoint
from hanmaru_cli.ports import LOOPBACK
from hanmaru_cli.redis_process import render_acl, render_config

NAMESPACE = "local"
DEMO = "demo"
LIMITED = "limited"
TENANTS = (DEMO, LIMITED)
LIMITED_REQUESTS_PER_MINUTE = 3
"""So few that anyone can see a 429 by hand."""

CONTEXT_TOKENS = 16_384
KV_TOKENS = 32_768
"""Two sequences of full length: 64 MiB for the global layers of the tiny checkpoint."""
SLIDING_TOKENS_RATIO = 0.625
"""16 sequences' windows, eviction intervals and two prefill chunks take about 14,500 tokens; the rest keeps tails."""
DRAFT_TOKENS = 3
"""The family's own number: on the tiny checkpoint answers at temperature 0 come about twice as fast, see
docs/sglang-plugin.md."""
RUNNING_REQUESTS = 16
DRAIN_S = 10.0
"""How long an engine's running requests may take to end after Ctrl-C. The gateway ended before, so there are none."""
GATEWAY_STOP_S = 60.0
"""Its own limits for running answers and for Ray are 30 s and 20 s."""
WORKER_STOP_S = DRAIN_S + 35.0
"""On top of the drain the supervisor gives the engine 20 s to end, and itself 3 s to say goodbye."""
REDIS_STOP_S = 10.0

PLATFORM_SECRET = "platform.secret"
"""Name of its file below the state folder."""
REDIS = "redis"
GATEWAY = "gateway"


def worker_name(index: int) -> str:
    """Name of the part, and the id of its replica."""
    return f"worker-{index}"


_NOT_INHERITED = {value for name, value in vars(names).items() if name.startswith("ENV_") and name != "ENV_HOME"} | {
    "RAY_ADDRESS"
}


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What parts may inherit: settings meant for another gateway, worker or Ray in the same shell are not ours."""
    return {name: value for name, value in environment.items() if name not in _NOT_INHERITED}


def password_file(role: str) -> str:
    """Name of the file below the state folder that holds the password of a Redis role."""
    return f"redis-{role}.password"


def key_file(tenant: str) -> str:
    """Name of the file below the state folder that holds the tenant's API key."""
    return f"{tenant}.key"


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    checkpoint: Checkpoint
    workers: int
    http_port: int = names.GATEWAY_HTTP_PORT
    grpc_port: int = names.GATEWAY_GRPC_PORT
    metrics_port: int = names.GATEWAY_METRICS_PORT
    redis_port: int = names.REDIS_PORT
    ray_port: int = names.RAY_GCS_PORT
    engine_port: int = names.ENGINE_HTTP_PORT
    supervisor_port: int = names.SUPERVISOR_HTTP_PORT
    otlp_endpoint: str | None = None
    """`http://host:port` of an OTLP gRPC receiver. None: no tracing."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the state folder keeps from run to run, in files of its own; never in argv, environment or logs."""

    platform: str = field(repr=False)
    """Text of the platform secret's file; its bytes are the secret."""
    redis: Mapping[str, str] = field(repr=False)
    """Password by ACL role."""
    api_keys: Mapping[str, str] = field(repr=False)
    """API key by tenant."""


@dataclass(frozen=True, slots=True)
class Part:
    """One program that runs as long as the whole does."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """Added to the one `up` was called with."""
    port: int
    """TCP port that answers when the part lives."""
    ready_path: str | None
    """HTTP path on `port` that answers 200 when the part can do its work; None: an answering port is enough."""
    stop_s: float
    """Killed when it has not ended so long after SIGTERM."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that `up` has to do."""

    files: Mapping[Path, str]
    """Each for its owner alone, written before anything starts."""
    redis: Part
    workers: tuple[Part, ...]
    gateway: Part
    route: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order they end: who takes requests first, what all need last. They start the other way round."""
        return (self.gateway, *self.workers, self.redis)


def wanted_ports(options: Options) -> dict[str, int]:
    """Wanted port by the name that messages call it."""
    wanted = {
        "gateway HTTP": options.http_port,
        "gateway gRPC": options.grpc_port,
        "gateway metrics": options.metrics_port,
        "Redis": options.redis_port,
        "Ray": options.ray_port,
    }
    for n in range(options.workers):
        wanted[_engine(n)] = options.engine_port + n
        wanted[_supervisor(n)] = options.supervisor_port + n
    return wanted


def make_plan(
    options: Options, *, ports: Mapping[str, int], secrets: Secrets, root: Path, temporary: Path, redis_server: Path
) -> Plan:
    """Parts and files for ports by the names of `wanted_ports`. Files go below `root`, sockets below `temporary`."""
    model = ModelRef(namespace=NAMESPACE, name=options.checkpoint.name)
    shared = {
        names.ENV_REDIS_URL: f"redis://{LOOPBACK}:{ports['Redis']}/0",
        # Sockets and Ray's files: a Unix socket's path may be no longer than 107 bytes.
        "TMPDIR": str(temporary),
        "HF_HUB_OFFLINE": "1",
    }
    files: dict[Path, str] = {}
    redis = _redis(ports["Redis"], secrets.redis, root, redis_server, files)
    workers = tuple(_worker(n, model, options, ports, secrets, root, shared, files) for n in range(options.workers))
    files[root / "tenants.json"] = _tenants(model, secrets.api_keys).model_dump_json(by_alias=True, indent=2)
    tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": options.otlp_endpoint} if options.otlp_endpoint else {}
    gateway = Part(
        name=GATEWAY,
        argv=_hanmaru(
            GATEWAY,
            *("--http-port", str(ports["gateway HTTP"])),
            *("--grpc-port", str(ports["gateway gRPC"])),
            *("--metrics-port", str(ports["gateway metrics"])),
            *("--ray-port", str(ports["Ray"])),
        ),
        environment={
            **shared,
            **tracing,
            names.ENV_REDIS_USER: GATEWAY,
            names.ENV_REDIS_PASSWORD_FILE: str(root / password_file(GATEWAY)),
            names.ENV_PLATFORM_SECRET_FILE: str(root / PLATFORM_SECRET),
            names.ENV_TENANTS_FILE: str(root / "tenants.json"),
        },
        port=ports["gateway HTTP"],
        ready_path="/ready",
        stop_s=GATEWAY_STOP_S,
    )
    return Plan(files=files, redis=redis, workers=workers, gateway=gateway, route=options.checkpoint.name)


def _engine(index: int) -> str:
    return f"engine {index}"


def _supervisor(index: int) -> str:
    return f"supervisor {index}"


def _hanmaru(*arguments: str) -> tuple[str, ...]:
    # The same interpreter and packages as ours, whatever PATH says.
    return (sys.executable, "-m", "hanmaru_cli", *arguments)


def _redis(port: int, passwords: Mapping[str, str], root: Path, server: Path, files: dict[Path, str]) -> Part:
    config_file, acl_file = root / "redis" / "redis.conf", root / "redis" / "users.acl"
    files[acl_file] = render_acl(passwords)
    files[config_file] = render_config(port=port, folder=root / "redis", acl_file=acl_file)
    return Part(
        name=REDIS,
        argv=(str(server), str(config_file)),
        environment={},
        port=port,
        ready_path=None,
        stop_s=REDIS_STOP_S,
    )


def _worker(
    index: int,
    model: ModelRef,
    options: Options,
    ports: Mapping[str, int],
    secrets: Secrets,
    root: Path,
    shared: Mapping[str, str],
    files: dict[Path, str],
) -> Part:
    name = worker_name(index)
    # Several layers, each for a token of its own, are more than the CPU platform drafts with.
    drafts = options.checkpoint.mtp_layers == 1
    spec = EngineSpec(
        model=model,
        route=options.checkpoint.name,
        checkpoint=str(options.checkpoint.folder),
        dtype="float32",
        context_tokens=min(CONTEXT_TOKENS, options.checkpoint.positions),
        kv_cache=KvCache(max_total_tokens=KV_TOKENS, sliding_tokens_ratio=SLIDING_TOKENS_RATIO),
        max_running_requests=RUNNING_REQUESTS,
        draft_tokens=DRAFT_TOKENS if drafts else None,
        features=("hybrid-kv", *(("mtp",) if drafts else ()), "tools", "reasoning"),
        http_port=ports[_engine(index)],
        supervisor_port=ports[_supervisor(index)],
        drain_timeout_s=DRAIN_S,
        trace_endpoint=options.otlp_endpoint,
    )
    spec_file, key_file = root / f"{name}.json", root / f"{name}.key"
    files[spec_file] = spec.model_dump_json(by_alias=True, indent=2)
    files[key_file] = keys.replica_key(secrets.platform.encode(), model.id, ReplicaId(name)).hex() + "\n"
    return Part(
        name=name,
        argv=_hanmaru("worker"),
        environment={
            **shared,
            names.ENV_ENGINE_SPEC: str(spec_file),
            names.ENV_REPLICA_ID: name,
            names.ENV_REPLICA_KEY_FILE: str(key_file),
            names.ENV_LOG_DIR: str(root / "logs"),
            names.ENV_REDIS_USER: "worker",
            names.ENV_REDIS_PASSWORD_FILE: str(root / password_file("worker")),
        },
        port=ports[_supervisor(index)],
        ready_path="/ready",
        stop_s=WORKER_STOP_S,
    )


def _tenants(model: ModelRef, api_keys: Mapping[str, str]) -> TenantsFile:
    limits = {DEMO: (), LIMITED: (Limit(requests_per_minute=LIMITED_REQUESTS_PER_MINUTE),)}
    return TenantsFile(
        tenants=tuple(
            NamedTenant(
                name=tenant,
                credentials=(Credential(name="laptop", api_key=ApiKey(sha256=keys.api_key_digest(api_keys[tenant]))),),
                models=(model,),
                limits=limits[tenant],
            )
            for tenant in TENANTS
        )
    )
