"""`hanmaru up` with stand-ins for its parts, for the tests of starting, staying and ending.

STAND_IN_<PART> in the environment holds extra arguments of `stand_in.py`; the rest of the command line is that of `up`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hanmaru_cli import up
from hanmaru_cli.checkpoint import Checkpoint
from hanmaru_cli.laptop import Options, Part, Plan, Secrets
from hanmaru_cli.state import home
from hanmaru_cli.terminal import Terminal
from hanmaru_contracts.errors import HanmaruError

_STAND_IN = str(Path(__file__).with_name("stand_in.py"))


def _part(name: str, port: int, root: Path) -> Part:
    extra = os.environ.get(f"STAND_IN_{name.upper().replace('-', '_')}", "").split()
    arguments = ("--name", name, "--port", str(port), "--journal", str(root / "journal"), *extra)
    return Part(name, (sys.executable, _STAND_IN, *arguments), {}, port, "/ready", stop_s=20.0)


def plan_stand_ins(
    options: Options,
    *,
    ports: Mapping[str, int],
    secrets: Secrets,
    root: Path,
    temporary: Path,
    redis_server: Path,
) -> Plan:
    (temporary / "socket").touch()
    workers = tuple(_part(f"worker-{n}", ports[f"supervisor {n}"], root) for n in range(options.workers))
    gateway = _part("gateway", ports["gateway HTTP"], root)
    return Plan({root / "planned": "x"}, _part("redis", ports["Redis"], root), workers, gateway, "tiny")


if __name__ == "__main__":
    first = int(sys.argv[1])
    asked = Options(
        checkpoint=Checkpoint(Path("/models/tiny"), "tiny", 1),
        workers=1,
        http_port=first,
        grpc_port=first + 1,
        metrics_port=first + 2,
        redis_port=first + 3,
        ray_port=first + 4,
        engine_port=first + 5,
        supervisor_port=first + 6,
    )
    try:
        sys.exit(up.run(asked, home(os.environ), os.environ, Terminal(sys.stdout), planner=plan_stand_ins))
    except HanmaruError as error:
        sys.exit(error.message)
