"""Events in the engine's own log. The tier's modules call `tell` where our programs call `log_event`.

SGLang formats what its processes log and shows the sentence alone, so that an event's fields would be lost.
"""

from __future__ import annotations

import json
import logging

from hanmaru_contracts.log import Field


def tell(logger: logging.Logger, level: int, event: str, /, **fields: Field) -> None:
    """`event`, and its fields behind it as one JSON object."""
    logger.log(level, "%s %s", event, json.dumps(fields))
