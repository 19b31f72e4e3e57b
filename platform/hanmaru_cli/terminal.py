"""What `hanmaru up` says: lasting lines, and one live line while it starts. Decides nothing.

Without a terminal (CI, a file) the live line comes as a plain one whenever its words change, and every ten seconds. A
terminal that has hung up, or a reader that has gone, is no reason to fail: what cannot be said is dropped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

_PLAIN_INTERVAL_S = 10.0
_ERASE_LINE = "\r\x1b[2K"


class Terminal:
    """One terminal or file to speak to."""

    def __init__(self, out: TextIO, *, now: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._now = now
        self._is_tty = out.isatty()
        self._live = ""
        self._plain_due = 0.0

    def say(self, text: str = "") -> None:
        """A lasting line, or several."""
        if self._is_tty and self._live:
            self._write(f"{_ERASE_LINE}{text}\n{self._live}")
        else:
            self._write(text + "\n")

    def progress(self, elapsed_s: float, words: str) -> None:
        """Show where the start stands."""
        if self._is_tty:
            # A line that wraps could not be erased.
            self._live = f"{elapsed_s:4.0f} s  {words}"[: shutil.get_terminal_size().columns - 1]
            self._write(_ERASE_LINE + self._live)
        elif words != self._live or self._now() >= self._plain_due:
            self._live, self._plain_due = words, self._now() + _PLAIN_INTERVAL_S
            self._write(f"{elapsed_s:4.0f} s  {words}\n")

    def end_progress(self) -> None:
        """The live line has said its last."""
        if self._is_tty and self._live:
            self._write(_ERASE_LINE)
        self._live = ""

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._out.write(text)
            self._out.flush()
