"""Runs first in a process that a test gives a clock of its own: `time.time` is ahead by what a file says.

`clock` puts this folder on the process's path and writes the file. Only Unix time jumps, as when a machine's clock is
set; monotonic clocks go on.
"""

import os
import time
from pathlib import Path

_real_time = time.time
_offset_file = Path(os.environ["HANMARU_TEST_CLOCK_OFFSET"])


def _time() -> float:
    return _real_time() + float(_offset_file.read_text())


time.time = _time
