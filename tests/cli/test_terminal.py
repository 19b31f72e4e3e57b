from __future__ import annotations

import io

from hanmaru_cli.terminal import Terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(5, "Input/output error")


def test_without_a_terminal_progress_is_a_line_for_each_change_and_every_ten_seconds() -> None:
    out, clock = io.StringIO(), [0.0]
    terminal = Terminal(out, now=lambda: clock[0])
    for second, words in enumerate(["redis"] * 3 + ["worker"] * 12):
        clock[0] = float(second)
        terminal.progress(clock[0], words)
    assert out.getvalue().splitlines() == ["   0 s  redis", "   3 s  worker", "  13 s  worker"]
    assert "\x1b" not in out.getvalue()


def test_a_lasting_line_stands_above_the_live_one() -> None:
    out = Tty()
    terminal = Terminal(out)
    terminal.progress(1.0, "starting")
    terminal.say("said")
    terminal.end_progress()
    last = out.getvalue().split("\r\x1b[2K")
    assert last == ["", "   1 s  starting", "said\n   1 s  starting", ""]


def test_a_terminal_that_has_gone_is_no_error() -> None:
    terminal = Terminal(Gone())
    terminal.say("nobody hears it")
    terminal.progress(1.0, "nor this")
    terminal.end_progress()
