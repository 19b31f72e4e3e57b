"""Being told to end by a signal, and waiting for it, in one thread.

A `threading.Event` cannot be that: its wait holds a lock for moments, and a handler that runs in one of them waits for
that same lock for ever. A pipe has none. `head`, `node` and `launch` wait on it.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from types import FrameType


class Stop:
    """Asked once or often: it stays so."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def on_signals(self) -> None:
        """Ask on SIGTERM and SIGINT. Handlers belong to the process: one of these a process, in its main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def ask(self) -> None:
        """From anywhere, handlers of signals included."""
        with suppress(BlockingIOError):  # asked often enough to fill the pipe
            os.write(self._writing, b"!")

    def is_asked(self) -> bool:
        """Whether it was."""
        return self.wait(0)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until asked, or for so long; whether it was."""
        readable, _, _ = select.select([self._reading], [], [], timeout_s)
        return bool(readable)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.ask()
