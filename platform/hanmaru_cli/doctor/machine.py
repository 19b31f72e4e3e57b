"""`hanmaru doctor` on this machine, and whether this machine is what was meant; called by `main`.

Apart from `program`, because a laptop may lack the packages that speak to a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hanmaru_cli.doctor import machine_checks, machine_facts, report
from hanmaru_cli.kubeconfig import DEFAULT_FILE


def is_cluster_meant(environ: Mapping[str, str], login: Mapping[str, str | None]) -> bool:
    """Whether a cluster was named, or can be found as kubectl finds one."""
    return (
        any(login.values())
        or bool(environ.get("KUBECONFIG"))
        or Path(DEFAULT_FILE).expanduser().is_file()
        or "KUBERNETES_SERVICE_HOST" in environ
    )


def laptop(home: Path, checkpoint: Path, say: Callable[[str], None], *, is_json: bool) -> int:
    """This machine: can `hanmaru up` run here, and does something of an earlier run linger."""
    findings = machine_checks.judge(machine_facts.look(home, checkpoint))
    return report.show("this machine", findings, say, is_json=is_json)
