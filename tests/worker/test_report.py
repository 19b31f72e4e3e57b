from __future__ import annotations

import json
from typing import Any

import pytest
from hanmaru_contracts.wire.worker import Load
from hanmaru_worker.report import Report, read_furiosa_report, read_report


def rank(timestamp: float, running: int = 0, waiting: int = 0, usage: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "dp_rank": 0,
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "token_usage": usage,
    } | more


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([rank(7.5)], Report(Load(), 7.5)),
        ([rank(7.5, 3, 2, 0.25)], Report(Load(running_requests=3, queued_requests=2, kv_load_ratio=0.25), 7.5)),
        (
            [rank(9.0, 3, 0, 0.25), rank(8.0, 1, 4, 0.75)],
            Report(Load(running_requests=4, queued_requests=4, kv_load_ratio=0.75), 8.0),
        ),
        ([rank(1.0, usage=1.02)], Report(Load(kv_load_ratio=1.0), 1.0)),
        ([rank(1.0, a_new_field={"x": 1})], Report(Load(), 1.0)),
        ([], None),
    ],
)
def test_ranks_add_up_and_the_oldest_heartbeat_counts(ranks: list[dict[str, Any]], expected: Report | None) -> None:
    assert read_report(json.dumps({"version": "x", "loads": ranks}).encode()) == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"loads": [{}]}', b'{"loads": null}'])
def test_another_answer_is_no_report(body: bytes) -> None:
    assert read_report(body) is None


PAGE = """# HELP furiosa_llm_num_requests_running Number of requests currently running on RNGD.
# TYPE furiosa_llm_num_requests_running gauge
furiosa_llm_num_requests_running{model_name="exaone",engine="0"} 3
furiosa_llm_num_requests_running{model_name="exaone",engine="1"} 1
furiosa_llm_num_requests_waiting{model_name="exaone",engine="0"} 2.0
furiosa_llm_kv_cache_usage_percent{model_name="exaone",engine="0"} 0.25
furiosa_llm_kv_cache_usage_percent{model_name="a } in a name",engine="1"} 0.75
furiosa_llm_prompt_tokens_total{model_name="exaone",engine="0"} 1e6
"""


def test_furiosas_engines_add_up_and_the_fullest_cache_counts() -> None:
    load = Load(running_requests=4, queued_requests=2, kv_load_ratio=0.75)
    assert read_furiosa_report(PAGE.encode(), 7.0) == Report(load, 7.0)


@pytest.mark.parametrize(
    ("page", "load"),
    [
        (b"furiosa_llm_num_requests_running 0\n", Load()),
        (b"furiosa_llm_num_requests_running 0\nfuriosa_llm_kv_cache_usage_percent 1.01\n", Load(kv_load_ratio=1.0)),
    ],
)
def test_furiosas_page_may_say_little(page: bytes, load: Load) -> None:
    assert read_furiosa_report(page, 1.0) == Report(load, 1.0)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>",
        b"# furiosa_llm_num_requests_running 0\n",
        b"furiosa_llm_num_requests_running many\n",
        b"furiosa_llm_num_requests_running NaN\n",
        b"furiosa_llm_num_requests_running +Inf\n",
    ],
)
def test_another_page_is_no_report(page: bytes) -> None:
    assert read_furiosa_report(page, 1.0) is None
