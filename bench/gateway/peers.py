"""The gateways that `run.py` compares, each started as its makers say, with a key required, on the proxy core.

LiteLLM and SMG get environments of their own under `$HANMARU_HOME/bench-envs`, made once by uv. Ours is the real
program with what it needs: Redis with its access rules, a tenant with every limit, and one worker whose signed
registration is kept alive here in the worker's stead. Ports are asked of the system.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from fake_engine import MODEL
from hanmaru_cli.redis_process import find_server, render_acl, render_config
from hanmaru_contracts import keys, names
from hanmaru_contracts.crd.v1alpha1.tenant import ApiKey, Credential, Limit, ModelRef, NamedTenant, TenantsFile
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.names import ReplicaId
from hanmaru_contracts.redis_keys import ACL_RULES
from hanmaru_contracts.wire.worker import RENEW_INTERVAL_S, Capabilities, WorkerRecord, pack_artifact
from hanmaru_redis.settings import access_to
from hanmaru_worker.artifact import read_artifact
from hanmaru_worker.registry import PackedArtifact, Registry, connect
from rig import PROXY_CORE, BenchError, Route, started

LITELLM = "litellm[proxy]==1.102.0"
SMG = "smg==1.13.0"
PER_MINUTE = 1_000_000_000
"""Every limit is counted and none is reached."""


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ensure_environment(requirement: str) -> Path:
    """The `bin` of an environment that holds exactly this requirement; made when it is not there."""
    home = Path(os.environ.get(names.ENV_HOME) or Path.home() / ".cache" / "hanmaru")
    folder = home / "bench-envs" / requirement.replace("[", "-").replace("]", "").replace("==", "-")
    done = folder / ".complete"
    if not done.exists():
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv is None:
            raise BenchError("uv is neither in UV nor on PATH; run `make bench-gateway`, which installs it")
        print(f"installing {requirement} …", file=sys.stderr, flush=True)
        subprocess.run([uv, "venv", "--quiet", "--clear", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, requirement], check=True)
        done.touch()
    return folder / "bin"


@contextlib.contextmanager
def litellm(engine_url: str, folder: Path) -> Iterator[Route]:
    """LiteLLM's proxy, one worker process, its master key required, nothing fetched and nothing reported."""
    binary, port, key = ensure_environment(LITELLM) / "litellm", free_port(), "sk-" + secrets.token_hex(16)
    backend = {"model": f"openai/{MODEL}", "api_base": f"{engine_url}/v1", "api_key": "unused"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": backend}],
        "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": 60},
        "general_settings": {"master_key": key},
    }
    config_file = folder / "litellm.yaml"
    config_file.write_text(json.dumps(config))  # JSON is YAML
    argv = [str(binary), "--config", str(config_file), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--num_workers", "1", "--telemetry", "False"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    log_path = folder / "litellm.log"
    with started(argv, PROXY_CORE, log_path, env) as process:
        yield Route("litellm", f"http://127.0.0.1:{port}", [process], key=key, log_path=log_path)


@contextlib.contextmanager
def smg(engine_url: str, folder: Path) -> Iterator[Route]:
    """SMG's router before one SGLang worker, its key required. Its policy has nothing to choose."""
    binary, port, key = ensure_environment(SMG) / "smg", free_port(), secrets.token_hex(16)
    argv = [str(binary), "launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", engine_url]
    argv += ["--backend", "sglang", "--policy", "round_robin", "--prometheus-port", str(free_port())]
    argv += ["--log-level", "warn", "--api-key", key]
    log_path = folder / "smg.log"
    with started(argv, PROXY_CORE, log_path) as process:
        yield Route("smg", f"http://127.0.0.1:{port}", [process], key=key, log_path=log_path)


@contextlib.contextmanager
def hanmaru(engine_url: str, folder: Path, checkpoint: Path) -> Iterator[Route]:
    """Our gateway as `hanmaru up` runs it: authentication, limits, counting with the checkpoint's own tokenizer."""
    platform_secret = secrets.token_hex(32)
    passwords = {role: secrets.token_hex(16) for role in ACL_RULES}
    api_key = keys.new_api_key()
    model = ModelRef(namespace="bench", name="model")
    redis_port, http_port = free_port(), free_port()
    for name, text in {
        "users.acl": render_acl(passwords),
        "redis.conf": render_config(port=redis_port, folder=folder, acl_file=folder / "users.acl"),
        "platform.secret": platform_secret,
        "gateway.password": passwords["gateway"],
        "tenants.json": _tenants(model, api_key).model_dump_json(by_alias=True),
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    redis_argv = [str(find_server()), str(folder / "redis.conf")]
    ports = {"http": http_port, "grpc": free_port(), "metrics": free_port(), "ray": free_port()}
    argv = [sys.executable, "-m", "hanmaru_cli", "gateway"]
    argv += [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    env = {
        names.ENV_REDIS_URL: f"redis://127.0.0.1:{redis_port}/0",
        names.ENV_REDIS_USER: "gateway",
        names.ENV_REDIS_PASSWORD_FILE: str(folder / "gateway.password"),
        names.ENV_PLATFORM_SECRET_FILE: str(folder / "platform.secret"),
        names.ENV_TENANTS_FILE: str(folder / "tenants.json"),
    }
    replica = ReplicaId("bench-0")
    digest, packed = pack_artifact(read_artifact(checkpoint))
    record = WorkerRecord(
        model=model.id,
        replica=replica,
        route=MODEL,
        pool="bench",
        address=engine_url.removeprefix("http://"),
        artifact=digest,
        capabilities=Capabilities(context_tokens=16_384, dtype="float32", page_size=1, sliding_window_tokens=128),
        expires_at_ms=0,
    )
    replica_key = keys.replica_key(platform_secret.encode(), model.id, replica)
    log_path = folder / "gateway.log"
    with (
        started(redis_argv, PROXY_CORE, folder / "redis.log") as redis,
        _registered(env[names.ENV_REDIS_URL], passwords["worker"], replica_key, record, PackedArtifact(digest, packed)),
        started(argv, PROXY_CORE, log_path, env) as gateway,
    ):
        yield Route(
            "hanmaru", f"http://127.0.0.1:{http_port}", [gateway], always_on=[redis], key=api_key, log_path=log_path
        )


def _tenants(model: ModelRef, api_key: str) -> TenantsFile:
    credential = Credential(name="bench", api_key=ApiKey(sha256=keys.api_key_digest(api_key)))
    limit = Limit(
        requests_per_minute=PER_MINUTE, input_tokens_per_minute=PER_MINUTE, output_tokens_per_minute=PER_MINUTE
    )
    return TenantsFile(
        tenants=(NamedTenant(name="bench", credentials=(credential,), models=(model,), limits=(limit,)),)
    )


@contextlib.contextmanager
def _registered(
    redis_url: str, password: str, replica_key: bytes, record: WorkerRecord, artifact: PackedArtifact
) -> Iterator[None]:
    """Keep `record` alive in Redis, as its worker would, from a thread of its own."""
    stop = threading.Event()

    async def renew() -> None:
        registry = Registry(connect(access_to(redis_url, "worker", password)), replica_key, record.model, artifact)
        try:
            while not stop.is_set():
                with contextlib.suppress(HanmaruError):  # the next turn is the retry
                    await registry.renew(record)
                await asyncio.sleep(RENEW_INTERVAL_S)
        finally:
            await registry.close()

    thread = threading.Thread(target=lambda: asyncio.run(renew()), name="registration")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
