"""`/healthz`, `/readyz` and `/metrics` over plain HTTP; nothing else is served.

`/healthz` speaks of this process alone: answering shows that its loop lives. `/readyz` speaks of what it is for: it
leads with everything known, or stands by. What is wrong is said in one line. The chart sets the address.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

Trouble = Callable[[], str | None]
"""What is wrong, in words; None: nothing."""


@contextlib.asynccontextmanager
async def serve_health(
    host: str, port: int, *, stuck: Trouble, unready: Trouble, metrics: Callable[[], bytes]
) -> AsyncIterator[int]:
    """Serve for the length of the context; gives the port, which matters where 0 was asked for."""
    app = web.Application()
    app.router.add_get("/healthz", _probe(stuck))
    app.router.add_get("/readyz", _probe(unready))

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _probe(trouble: Trouble) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        words = trouble()
        return web.Response(text="ok\n") if words is None else web.Response(status=503, text=f"{words}\n")

    return answer
