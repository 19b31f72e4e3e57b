"""What the suite says of itself while it runs, and keeps: steps with their times, a table, one JSON line, and evidence.

Tests use `Progress.step`; `conftest` prints the end. On a failure `keep_evidence` writes what people would look at.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmaru_e2e.kube import Kube

_LOG_LINES = 2000


@dataclass
class Progress:
    """One run."""

    begun_s: float = field(default_factory=time.monotonic)
    steps: list[tuple[str, float]] = field(default_factory=list)
    outcomes: list[tuple[str, str, float]] = field(default_factory=list)
    """Test, outcome, seconds; what its fixtures took counts."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What tests measured, for the JSON line."""

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.begun_s

    def say(self, words: str) -> None:
        """One line, at once; `make e2e` runs pytest without capture."""
        print(f"[{self.elapsed_s:5.0f} s] {words}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Something that takes its time."""
        begun_s = time.monotonic()
        try:
            yield
        except BaseException:
            self.say(f"  failed after {time.monotonic() - begun_s:.1f} s: {name}")
            raise
        took_s = time.monotonic() - begun_s
        self.steps.append((name, took_s))
        self.say(f"  {took_s:6.1f} s  {name}")

    def fact(self, name: str, value: Any) -> None:
        """Something measured."""
        self.facts[name] = value
        self.say(f"          {name} = {json.dumps(value, ensure_ascii=False)[:300]}")

    def table(self) -> str:
        """All outcomes, and what the longest steps were."""
        lines = [f"{outcome:8} {took_s:7.1f} s  {name}" for name, outcome, took_s in self.outcomes]
        longest = sorted(self.steps, key=lambda step: -step[1])[:8]
        lines += ["", "longest steps:", *(f"{took_s:16.1f} s  {name}" for name, took_s in longest)]
        return "\n".join(lines)

    def json_line(self) -> str:
        """For programs."""
        return json.dumps(
            {
                "seconds": round(self.elapsed_s, 1),
                "tests": {
                    name: {"outcome": outcome, "seconds": round(took_s, 1)} for name, outcome, took_s in self.outcomes
                },
                "steps": {name: round(took_s, 1) for name, took_s in self.steps},
                "facts": self.facts,
            },
            ensure_ascii=False,
        )


def keep_evidence(kube: Kube, folder: Path, namespaces: set[str]) -> None:
    """Objects, events, descriptions and logs of these namespaces. Secrets are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = "all,networkpolicies,pdb,events,modeldeployments,tenants,pvc,configmaps"
    _write(folder / "nodes.txt", lambda: kube.kubectl("describe", "nodes"))
    _write(folder / "pools.yaml", lambda: kube.kubectl("get", "acceleratorpools,pv", "-o", "yaml"))
    for namespace in sorted(namespaces):
        inside = folder / namespace
        inside.mkdir(exist_ok=True)
        here = ("-n", namespace)
        _write(inside / "objects.txt", lambda here=here: kube.kubectl(*here, "get", kinds, "-o", "wide"))
        _write(inside / "deployments.yaml", lambda here=here: kube.kubectl(*here, "get", "md,tenants", "-o", "yaml"))
        _write(
            inside / "events.txt", lambda here=here: kube.kubectl(*here, "get", "events", "--sort-by=.lastTimestamp")
        )
        _write(inside / "pods.txt", lambda here=here: kube.kubectl(*here, "describe", "pods"))
        try:
            pods = kube.pods(namespace)
        except Exception as error:
            _write(inside / "pods.error", lambda error=error: repr(error))
            continue
        for pod in pods:
            name = pod["metadata"]["name"]
            for suffix, more in (("", ()), (".previous", ("--previous",))):
                if suffix and not any(each["restartCount"] for each in pod["status"].get("containerStatuses", ())):
                    continue
                arguments = (*here, "logs", name, "--all-containers", f"--tail={_LOG_LINES}", *more)
                _write(inside / f"{name}{suffix}.log", lambda arguments=arguments: kube.kubectl(*arguments))


def _write(file: Path, read: Any) -> None:
    """What cannot be read is said in its place: one failure must not hide the others."""
    try:
        text = read()
    except Exception as error:
        text = f"not to be had: {error}\n"
    file.write_text(text)
