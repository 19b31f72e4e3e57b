"""A clock that a test can set, for a process: libfaketime is not to be had, and a real clock belongs to the machine."""

from __future__ import annotations

import os
from pathlib import Path

_CODE = Path(__file__).parent / "jumping_clock"


class JumpingClock:
    """Unix time in the processes that are started with `environ`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock-offset"
        self.jump_to(0)

    @property
    def environ(self) -> dict[str, str]:
        """For the process."""
        paths = [str(_CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "HANMARU_TEST_CLOCK_OFFSET": str(self._file)}

    def jump_to(self, offset_s: float) -> None:
        """Show the real time and so many seconds more (or less), from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(offset_s))
        fresh.replace(self._file)
