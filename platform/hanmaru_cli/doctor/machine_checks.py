"""Whether `hanmaru up` can run on this machine, and what an earlier run left. Pure: `machine_facts` looked."""

from __future__ import annotations

from collections.abc import Iterable

from hanmaru_cli.doctor.finding import Finding, Mark, ok, some
from hanmaru_cli.doctor.machine_facts import MachineFacts

PYTHONS = ((3, 11), (3, 13))
NEEDED_BYTES = 5 << 30
"""Ray with the gateway takes about 1.3 GB, the tiny engine's three processes 1.2 GB each (measured, November 2026)."""
LEAST_BYTES = 3 << 30
LEAST_DISK_BYTES = 1 << 30
"""For logs; the packages themselves are installed elsewhere."""
LEAST_SHM_BYTES = 64 << 20
"""Docker's default. Ray falls back to files in /tmp below what it wants, and says so in its log."""
LEAST_CORES = 2.0


def judge(facts: MachineFacts) -> list[Finding]:
    """Everything there is to say of a machine."""
    return [
        line
        for check in (_programs, _memory, _room, _cores, _ports, _redis, _checkpoint, _runs)
        for line in check(facts)
    ]


def _programs(facts: MachineFacts) -> Iterable[Finding]:
    version = ".".join(map(str, facts.python))
    first, last = PYTHONS
    if facts.platform != "linux":
        yield Finding(Mark.FAIL, "system", "", facts.platform, "Linux", "use a Linux machine, or a virtual one")
    if not first <= facts.python <= last:
        expected = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
        yield Finding(Mark.FAIL, "python", "", f"Python {version}", expected, "run `make setup` with another Python")
    elif facts.missing_modules:
        seen = f"Python {version} without {some(facts.missing_modules)}"
        yield Finding(Mark.FAIL, "python", "", seen, "hanmaru[laptop]", "run `make setup`")
    else:
        yield ok("python", f"Python {version}, with all packages")


def _memory(facts: MachineFacts) -> Iterable[Finding]:
    if facts.is_running:
        return
    seen = f"{_gib(facts.available_bytes)} of memory are free"
    if facts.available_bytes >= NEEDED_BYTES:
        yield ok("memory", seen)
        return
    mark = Mark.FAIL if facts.available_bytes < LEAST_BYTES else Mark.WARN
    yield Finding(mark, "memory", "", seen, f"{_gib(NEEDED_BYTES)} for one engine", "end other programs")


def _room(facts: MachineFacts) -> Iterable[Finding]:
    seen = f"{_gib(facts.state_free_bytes)} are free for {facts.state_folder}"
    if facts.state_free_bytes < LEAST_DISK_BYTES:
        to_do = "free some, or set HANMARU_HOME to another disk"
        yield Finding(Mark.FAIL, "disk", "", seen, _gib(LEAST_DISK_BYTES), to_do)
    else:
        yield ok("disk", seen)
    if facts.shm_bytes is None:
        yield Finding(Mark.FAIL, "shm", "", "there is no /dev/shm", "a memory file system", "mount a tmpfs there")
    elif facts.shm_free_bytes < LEAST_SHM_BYTES:
        seen = f"{facts.shm_free_bytes >> 20} MiB are free in /dev/shm"
        to_do = "start the container with a larger --shm-size, or remove what ended programs left in it"
        yield Finding(Mark.FAIL, "shm", "", seen, f"{LEAST_SHM_BYTES >> 20} MiB", to_do)
    else:
        yield ok("shm", f"{_gib(facts.shm_free_bytes)} are free in /dev/shm")


def _cores(facts: MachineFacts) -> Iterable[Finding]:
    seen = f"{facts.cores:g} cores, {facts.load:.1f} wanted over the last minute"
    if facts.cores < LEAST_CORES:
        yield Finding(Mark.WARN, "cores", "", seen, f"{LEAST_CORES:g}", "expect minutes until it is ready")
    elif facts.load > facts.cores and not facts.is_running:
        yield Finding(Mark.WARN, "cores", "", seen, "a core that is free", "end other programs; it will start slowly")
    else:
        yield ok("cores", seen)


def _ports(facts: MachineFacts) -> Iterable[Finding]:
    if facts.is_running:
        return
    if not facts.taken_ports:
        yield ok("ports", "all are free")
    for what, port in facts.taken_ports.items():
        yield Finding(
            Mark.NOTE, "ports", "", f"port {port} ({what}) is taken",
            to_do="`hanmaru up` takes the next free one and says so",
        )  # fmt: skip


def _redis(facts: MachineFacts) -> Iterable[Finding]:
    if facts.redis_problem:
        yield Finding(Mark.FAIL, "redis", "", facts.redis_problem, "redis-server 6.2 or newer", "run `make setup`")
    else:
        yield ok("redis", "a redis-server is there")


def _checkpoint(facts: MachineFacts) -> Iterable[Finding]:
    if facts.checkpoint_problem:
        to_do = "work in a source checkout, or give `hanmaru up --checkpoint FOLDER`"
        yield Finding(Mark.FAIL, "model", "", facts.checkpoint_problem, "the tiny checkpoint", to_do)
    else:
        yield ok("model", "the tiny checkpoint is there")


def _runs(facts: MachineFacts) -> Iterable[Finding]:
    if facts.running is not None and facts.is_running:
        state = "is up" if facts.running.ready else "is starting"
        yield ok("runs", f"hanmaru {state}: {facts.running.http_url} (process {facts.running.pid})")
    elif facts.running is not None:
        seen = f"the last `hanmaru up` (process {facts.running.pid}) was killed"
        yield Finding(Mark.NOTE, "runs", "", seen, to_do="`hanmaru up` clears up after it before it starts")
    if facts.leftovers:
        pids = " ".join(one.split()[0] for one in facts.leftovers)
        seen = f"processes of ended runs: {some(facts.leftovers)}"
        yield Finding(Mark.FAIL, "runs", "", seen, "none", f"wait 15 s for their guard, then `kill -9 {pids}`")
    elif facts.running is None:
        yield ok("runs", "nothing runs, and nothing was left behind")


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
