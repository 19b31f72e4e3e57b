"""Probes and metrics over HTTP."""

from __future__ import annotations

import aiohttp
from hanmaru_contracts import metrics as contract
from hanmaru_operator.health import serve_health
from hanmaru_operator.meters import Meters


async def test_probes_say_what_is_wrong_and_metrics_what_was_counted() -> None:
    trouble: dict[str, str | None] = {"stuck": None, "unready": "not everything has been listed yet"}
    meters = Meters()
    meters.reconciled("Tenant", "failed", 0.1, 0.2)
    meters.requested("apply", 409)
    meters.watch(leads=lambda: True, depth=lambda: 3, objects=lambda: {"Pod": 7})
    meters.store_is(True)
    async with (
        serve_health(
            "127.0.0.1", 0, stuck=lambda: trouble["stuck"], unready=lambda: trouble["unready"], metrics=meters.render
        ) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):

        async def get(path: str) -> tuple[int, str]:
            async with client.get(path) as answer:
                return answer.status, await answer.text()

        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (503, "not everything has been listed yet\n")
        trouble |= {"stuck": "a reconcile runs for 300 s", "unready": None}
        assert (await get("/healthz"))[0] == 503
        assert await get("/readyz") == (200, "ok\n")
        text = (await get("/metrics"))[1]
        assert (await get("/"))[0] == 404
    for line in (
        'hanmaru_operator_reconciles_total{kind="Tenant",result="failed"} 1.0',
        'hanmaru_operator_api_requests_total{code="409",verb="apply"} 1.0',
        "hanmaru_operator_queue_depth 3.0",
        "hanmaru_operator_leader 1.0",
        'hanmaru_operator_objects{kind="Pod"} 7.0',
        "hanmaru_operator_store_up 1.0",
    ):
        assert line in text
    named = {m.name for n, m in vars(contract).items() if n.startswith("OPERATOR_")}
    assert all(name in text for name in named)
