"""A proxy in front of a test's API server that refuses what a test names: the server's own errors, when wanted.

Plain HTTP on loopback in, the kubeconfig's credentials out; watches stream through. What it answers in the server's
place has the shape of the server's answers. It runs in a thread of its own, so any test may use it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from aiohttp import ClientConnectionError, ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

_START_S = 10.0
_REASONS = {403: "Forbidden", 409: "Conflict", 410: "Expired", 429: "TooManyRequests", 503: "ServiceUnavailable"}
_DROPPED_IN = frozenset({"host", "content-length", "transfer-encoding", "connection", "authorization"})
_DROPPED_OUT = frozenset({"content-length", "transfer-encoding", "connection", "content-encoding"})


@dataclass
class Refusal:
    """Which requests get an error instead of an answer."""

    matches: Callable[[str, str], bool]
    """Of method and path with query."""
    status: int
    left: int
    """How many more it refuses."""
    retry_after_s: int | None = None
    refused: int = 0
    """How many it has refused."""


class ApiProxy:
    """One proxy; a context manager. `kubeconfig` names the real server and whoever speaks to it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        """`folder` takes the kubeconfig of those who come through the proxy."""
        self._read(yaml.safe_load(kubeconfig.read_text()))
        self.kubeconfig = folder / "proxied.kubeconfig"
        """Of a client of the proxy."""
        self.expired_watches = 0
        """How often the server has said 410 in a watch: too old to go on with."""
        self._refusals: list[Refusal] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def refuse(
        self, matches: Callable[[str, str], bool], status: int, *, times: int = 1, retry_after_s: int | None = None
    ) -> Refusal:
        """From now on, answer the next so many requests of that method and path with this error."""
        refusal = Refusal(matches, status, times, retry_after_s)
        self._refusals.append(refusal)
        return refusal

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(_START_S), "the proxy does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_S)
        self._loop.close()

    def _read(self, config: dict[str, Any]) -> None:
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        with tempfile.TemporaryDirectory() as place:
            paths = []
            for name in ("client-certificate-data", "client-key-data"):
                path = Path(place) / name
                path.touch(mode=0o600)
                path.write_bytes(base64.b64decode(user[name]))
                paths.append(path)
            certificate, key = paths
            self._tls.load_cert_chain(certificate, key)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._write_kubeconfig(runner.addresses[0][1])
        connector = TCPConnector(ssl=self._tls, limit=0, force_close=True)
        session = ClientSession(connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False)
        async with session as self._up:
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    def _write_kubeconfig(self, port: int) -> None:
        cluster = {"server": f"http://127.0.0.1:{port}"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxied", "cluster": cluster}],
            "users": [{"name": "anybody", "user": {"token": "the-proxy-asks-for-none"}}],
            "contexts": [{"name": "proxied", "context": {"cluster": "proxied", "user": "anybody"}}],
            "current-context": "proxied",
        }
        self.kubeconfig.write_text(json.dumps(document))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        for refusal in self._refusals:
            if refusal.left > 0 and refusal.matches(request.method, request.raw_path):
                refusal.left -= 1
                refusal.refused += 1
                return _refused(refusal)
        try:
            return await self._forward(request)
        except (ClientConnectionError, OSError):
            if request.transport is not None:
                request.transport.close()  # as a server that is not there
            raise

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROPPED_IN}
        body = await request.read()
        async with self._up.request(
            request.method, URL(self._server + request.raw_path, encoded=True), data=body or None, headers=headers
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _DROPPED_OUT}
            if "content-encoding" in answer.headers:
                kept["Content-Encoding"] = answer.headers["content-encoding"]
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for part in answer.content.iter_any():
                self.expired_watches += b'"code":410' in part
                await response.write(part)
            await response.write_eof()
            return response


def _refused(refusal: Refusal) -> web.Response:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": _REASONS[refusal.status],
        "code": refusal.status,
        "message": f"a test answers {refusal.status}",
    }
    headers = {"Retry-After": str(refusal.retry_after_s)} if refusal.retry_after_s is not None else {}
    return web.json_response(status, status=refusal.status, headers=headers)
