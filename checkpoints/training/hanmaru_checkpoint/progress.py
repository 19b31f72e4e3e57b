"""One line now and then that says how far a phase is, how well it goes and when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """Prints at most every `every_s` seconds, and always for the last step."""

    phase: str
    num_steps: int
    every_s: float = 10.0
    started_s: float = field(default_factory=time.monotonic)
    printed_s: float = 0.0

    def report(self, step: int, measured: str) -> None:
        """`step` counts from 1."""
        now_s = time.monotonic()
        if step < self.num_steps and now_s - self.printed_s < self.every_s:
            return
        self.printed_s = now_s
        elapsed_s = now_s - self.started_s
        left_s = elapsed_s / step * (self.num_steps - step)
        print(f"{self.phase} {step}/{self.num_steps}  {measured}  {elapsed_s:.0f} s, {left_s:.0f} s left", flush=True)
