from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_testing.engine import free_loopback_port
from hanmaru_worker.peers import find_peers


@asynccontextmanager
async def supervisor(host: str, port: int, rank: int | str) -> AsyncIterator[None]:
    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"phase": "loading", "instance": "a", "rank": rank})

    app = web.Application()
    app.add_routes([web.get("/health", health)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def test_a_group_of_one_waits_for_nobody() -> None:
    assert await find_peers((), 0.0) == ()


async def test_addresses_come_in_order_of_rank() -> None:
    port = free_loopback_port()
    async with supervisor("127.0.0.2", port, 0), supervisor("127.0.0.3", port, 1):
        assert await find_peers([("127.0.0.2", port), ("127.0.0.3", port)], 5.0) == ("127.0.0.2", "127.0.0.3")


async def test_a_rank_that_comes_late_is_waited_for() -> None:
    first, second = free_loopback_port(), free_loopback_port()
    async with supervisor("127.0.0.1", first, 0):
        looking = asyncio.ensure_future(find_peers([("localhost", first), ("127.0.0.1", second)], 10.0))
        await asyncio.sleep(0.2)
        assert not looking.done()
        async with supervisor("127.0.0.1", second, 1):
            assert await looking == ("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("stranger", [0, "x"])
async def test_an_address_of_another_rank_is_not_taken(stranger: int | str) -> None:
    """A name may still lead to where a pod of another group now runs."""
    first, second = free_loopback_port(), free_loopback_port()
    async with supervisor("127.0.0.1", first, 0), supervisor("127.0.0.1", second, stranger):
        with pytest.raises(HanmaruError, match="no supervisor of rank 1 of the group") as failed:
            await find_peers([("127.0.0.1", first), ("127.0.0.1", second)], 0.5)
    assert failed.value.code is ErrorCode.ENGINE_FAILED


async def test_a_name_that_does_not_exist_yet_is_looked_up_again() -> None:
    with pytest.raises(HanmaruError, match="rank 0, 1 of the group"):
        await find_peers([("nowhere.invalid", 1), ("nobody.invalid", 1)], 0.5)
