"""The REST listener under TLS: the same gateway, and plain text gets nowhere."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_gateway.http.server import HttpServer
from hanmaru_gateway.settings import Settings
from hanmaru_testing.certificates import self_signed

pytestmark = pytest.mark.timeout(30)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(platform_secret_file=folder / "none", shutdown_timeout_s=1, **more)


async def test_rest_is_served_under_tls(tmp_path: Path) -> None:
    pair = self_signed("localhost")
    (tmp_path / "cert").write_bytes(pair.certificate_chain)
    (tmp_path / "key").write_bytes(pair.private_key)
    server = HttpServer(hello, settings(tmp_path, tls_cert_file=tmp_path / "cert", tls_key_file=tmp_path / "key"), 0)
    await server.start()
    try:
        trust = ssl.create_default_context(cadata=pair.certificate_chain.decode())
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"https://localhost:{server.port}/", ssl=trust) as response,
        ):
            assert await response.read() == b"https"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
    finally:
        await server.stop()


async def test_a_certificate_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("no certificate")
    (tmp_path / "key").write_text("no key")
    server = HttpServer(hello, settings(tmp_path, tls_cert_file=tmp_path / "cert", tls_key_file=tmp_path / "key"), 0)
    with pytest.raises(HanmaruError, match="cannot listen"):
        await server.start()
