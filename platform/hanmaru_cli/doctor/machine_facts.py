"""Looks at this machine for `hanmaru doctor --laptop`: every fact the laptop's checks judge. Changes nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from hanmaru_contracts import names
from hanmaru_contracts.errors import HanmaruError

from hanmaru_cli import checkpoint as checkpoints
from hanmaru_cli.marks import ENV_UP_ID
from hanmaru_cli.ports import is_free
from hanmaru_cli.redis_process import find_server
from hanmaru_cli.state import Running, StateFolder

PORTS = {
    "REST": names.GATEWAY_HTTP_PORT,
    "gRPC": names.GATEWAY_GRPC_PORT,
    "metrics": names.GATEWAY_METRICS_PORT,
    "Redis": names.REDIS_PORT,
    "Ray": names.RAY_GCS_PORT,
    "engine": names.ENGINE_HTTP_PORT,
    "supervisor": names.SUPERVISOR_HTTP_PORT,
}
_MODULES = ("ray", "redis", "sglang", "torch", "uvicorn")
_CGROUP_MEMORY = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of this container, by cgroup v2 and v1."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """One machine, at one moment."""

    python: tuple[int, int]
    platform: str
    """As `sys.platform` has it."""
    missing_modules: tuple[str, ...]
    available_bytes: int
    """Memory that programs could take without swapping, within the limit of this container."""
    state_folder: Path
    state_free_bytes: int
    shm_bytes: int | None
    """Size of /dev/shm; None: there is none."""
    shm_free_bytes: int
    cores: float
    """That this process may use."""
    load: float
    """Processes that wanted a core, on average over the last minute."""
    taken_ports: Mapping[str, int]
    """By what wants them."""
    redis_problem: str
    """Why no redis-server can be had; empty: one can."""
    checkpoint_problem: str
    """Why the tiny checkpoint cannot be served; empty: it can."""
    running: Running | None
    """What the last `hanmaru up` says of itself, alive or not."""
    is_running: bool
    """Whether that one lives."""
    leftovers: tuple[str, ...]
    """Processes of runs that have ended, as `pid name`."""


def look(home: Path, checkpoint: Path) -> MachineFacts:
    """This machine as it is now; `home` is the folder of `hanmaru`'s state."""
    running = _running(home)
    is_running = running is not None and running.lives()
    live = running.up_id if running is not None and is_running else ""
    shm = _usage(Path("/dev/shm"))  # noqa: S108 # looked at, not written
    return MachineFacts(
        python=(sys.version_info.major, sys.version_info.minor),
        platform=sys.platform,
        missing_modules=tuple(name for name in _MODULES if importlib.util.find_spec(name) is None),
        available_bytes=_available(),
        state_folder=home,
        state_free_bytes=_usage(_nearest(home))[1],
        shm_bytes=shm[0] or None,
        shm_free_bytes=shm[1],
        cores=_cores(),
        load=os.getloadavg()[0],
        taken_ports={} if is_running else {what: port for what, port in PORTS.items() if not is_free(port)},
        redis_problem=_problem_of_redis(),
        checkpoint_problem=_problem_of(checkpoint),
        running=running,
        is_running=is_running,
        leftovers=_leftovers(live),
    )


def _running(home: Path) -> Running | None:
    with suppress(OSError):
        return StateFolder(home).read_running()
    return None


def _available() -> int:
    available = int(psutil.virtual_memory().available)
    for limit, used in _CGROUP_MEMORY:
        with suppress(OSError, ValueError):
            return max(0, min(available, int(Path(limit).read_text()) - int(Path(used).read_text())))
    return available


def _usage(folder: Path) -> tuple[int, int]:
    """(size, free) in bytes; zeros where it is not there."""
    with suppress(OSError):
        usage = shutil.disk_usage(folder)
        return usage.total, usage.free
    return 0, 0


def _nearest(folder: Path) -> Path:
    """The folder, or the first of its parents that is there."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


def _cores() -> float:
    with suppress(AttributeError):
        return float(len(os.sched_getaffinity(0)))
    return float(os.cpu_count() or 1)


def _problem_of_redis() -> str:
    try:
        find_server()
    except HanmaruError as error:
        return error.message
    except (OSError, subprocess.SubprocessError) as error:
        return f"redis-server cannot be run: {error}"
    return ""


def _problem_of(checkpoint: Path) -> str:
    try:
        checkpoints.look(checkpoint)
    except (HanmaruError, OSError) as error:
        return str(error.message if isinstance(error, HanmaruError) else error)
    return ""


def _leftovers(live: str) -> tuple[str, ...]:
    """Processes with the mark of a run that is not `live`, and whose run is gone."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(ENV_UP_ID, "")
            if mark and mark != live and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(mark, []).append(process)
    orphans = [group for group in found.values() if not any(_is_up(process.ppid()) for process in group)]
    named = []
    for group in orphans:
        for process in group:
            with suppress(psutil.Error):
                named.append(f"{process.pid} {process.name()}")
    return tuple(sorted(named))


def _is_up(pid: int) -> bool:
    """Whether the process is a `hanmaru up`, of another state folder perhaps."""
    with suppress(psutil.Error, OSError):
        words = psutil.Process(pid).cmdline()
        return "up" in words and any("hanmaru" in word for word in words)
    return False
