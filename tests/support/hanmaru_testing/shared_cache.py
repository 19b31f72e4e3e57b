"""What an engine needs for a shared cache on a test's Redis: files, environment and flags, as a worker gives them."""

from __future__ import annotations

from pathlib import Path

from hanmaru_contracts import names
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import EngineSpec, SharedCache
from hanmaru_worker.argv import shared_cache_flags

from hanmaru_testing.redis_server import RedisServer

TIER_KEY = "5a" * 32


def tier_environment(folder: Path, server: RedisServer, key: str = TIER_KEY) -> dict[str, str]:
    """Variables that lead to `server` as its role `tier`; the secrets are files below `folder`."""
    for name, text in {"tier.key": key, "tier.password": server.passwords["tier"]}.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    return {
        names.ENV_TIER_KEY_FILE: str(folder / "tier.key"),
        names.tier_variable(names.ENV_REDIS_URL): server.url,
        names.tier_variable(names.ENV_REDIS_USER): "tier",
        names.tier_variable(names.ENV_REDIS_PASSWORD_FILE): str(folder / "tier.password"),
    }


def tier_flags(checkpoint: Path) -> list[str]:
    """Flags of an engine that has `checkpoint` in float32."""
    spec = EngineSpec(
        model=ModelRef(namespace="default", name="tiny"),
        route="tiny",
        checkpoint=str(checkpoint),
        dtype="float32",
        context_tokens=4096,
        # The machine of a test may be slow: the wait is longer than anybody's should be.
        shared_cache=SharedCache(host_gb=1, min_prefix_tokens=64, wait_s=5.0),
    )
    return shared_cache_flags(spec)
