"""Logs as events with fields: one JSON object a line on stderr, the same shape from every program.

`configure_logging` is called once by a program's entry; everyone else calls `log_event` with a module's own logger.
Prompts and keys are never among the fields: that is the caller's duty, nothing is filtered here.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import IO

Field = str | int | float | bool | None

_FIELDS = "hanmaru_fields"


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "program", "event", …fields}`; a field cannot hide one of the first four."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """One line without a line break, whatever the fields hold."""
        line: dict[str, object] = dict(getattr(record, _FIELDS, {}))
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "program": self._program,
            "event": record.getMessage(),
        }
        if not hasattr(record, _FIELDS):
            line["logger"] = record.name  # a third party's sentence, not one of our events
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**head, **{k: v for k, v in line.items() if k not in head}}, ensure_ascii=False, default=str)


def configure_logging(program: str, level: int = logging.INFO, stream: IO[str] | None = None) -> None:
    """Send every logger's records to `stream` (default: stderr) as JSON lines; replaces earlier handlers."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(program))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def log_event(logger: logging.Logger, level: int, event: str, /, **fields: Field) -> None:
    """Record that `event` (for instance `worker.registered`) happened, with what a reader needs to know about it."""
    logger.log(level, event, extra={_FIELDS: fields})
