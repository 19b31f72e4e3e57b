from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from hanmaru_contracts.log import configure_logging, log_event


@pytest.fixture
def stream() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logging("worker", stream=out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)


def test_an_event_is_one_json_line_with_its_fields(stream: io.StringIO) -> None:
    log_event(
        logging.getLogger("x"), logging.WARNING, "worker.registered", replica="r\n1", elapsed_s=1.5, text="한마루"
    )
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "warning",
        "program": "worker",
        "event": "worker.registered",
        "replica": "r\n1",
        "elapsed_s": 1.5,
        "text": "한마루",
    }


def test_a_third_partys_message_keeps_its_arguments_and_names_its_logger(stream: io.StringIO) -> None:
    logging.getLogger("their.module").info("took %d s", 3)
    event = json.loads(stream.getvalue())
    assert (event["event"], event["logger"]) == ("took 3 s", "their.module")


def test_a_field_cannot_hide_the_level_or_the_event(stream: io.StringIO) -> None:
    log_event(logging.getLogger("x"), logging.INFO, "a.b", time="never", program="other")
    event = json.loads(stream.getvalue())
    assert event["program"] == "worker"
    assert event["time"] != "never"


def test_a_traceback_stays_on_the_events_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: boom" in json.loads(line)["traceback"]
