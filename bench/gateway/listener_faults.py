"""What a listener candidate does to clients in a rollout and when Ray's control process is lost (decision 0003).

`python bench/gateway/listener_faults.py owned direct-ingress haproxy`: for each, a stream of nine seconds is opened,
two clients connect anew for every request, and meanwhile the application is deployed again; then the same while the
GCS is killed with SIGKILL. Prints one JSON line a fault. Development only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
import psutil
from candidates import MODES, PORT_SPAN
from fake_engine import END_OF_STREAM, NUM_TOKENS, TOKEN
from rig import ENGINE_CORE, HERE, PROXY_CORE, BenchError, Route, started, wait_until_serving

FIRST_PORT = 22400
INTERVAL_S = 0.5
"""Between a stream's chunks: a stream takes nine seconds."""
WATCHED_S = 30.0
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}


async def stream(url: str) -> str:
    """One slow stream; `whole`, or what was wrong with it."""
    try:
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=BODY) as answer:
            body = await answer.read()
    except (aiohttp.ClientError, OSError) as error:
        return type(error).__name__
    is_whole = body.count(TOKEN.encode()) == NUM_TOKENS and body.endswith(END_OF_STREAM)
    return "whole" if is_whole else f"cut after {body.count(TOKEN.encode())} tokens"


async def connect_anew(url: str, seen: Counter[str], stop: asyncio.Event) -> None:
    """Short requests, each on a connection of its own, until told to stop."""
    while not stop.is_set():
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as answer:
                await answer.read()
                seen["ok" if answer.status == 200 else str(answer.status)] += 1
        except (aiohttp.ClientError, OSError) as error:
            seen[type(error).__name__] += 1
        await asyncio.sleep(0.005)


async def watch(url: str, fault: signal.Signals, victim: psutil.Process) -> dict[str, object]:
    """Send `fault` to `victim` with a stream open; open another stream behind it; count short requests."""
    seen: Counter[str] = Counter()
    stop = asyncio.Event()
    clients = [asyncio.create_task(connect_anew(url, seen, stop)) for _ in range(2)]
    before = asyncio.create_task(stream(url))
    await asyncio.sleep(1.0)
    begun_s = time.monotonic()
    victim.send_signal(fault)
    await asyncio.sleep(1.0)
    after = asyncio.create_task(stream(url))
    streams = [await before, await after]
    await asyncio.sleep(max(0.0, WATCHED_S - (time.monotonic() - begun_s)))
    stop.set()
    await asyncio.gather(*clients)
    return {"open_before": streams[0], "opened_after": streams[1], "short_requests": dict(seen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modes", nargs="+", choices=MODES[1:])
    modes = parser.parse_args().modes
    os.environ["NO_PROXY"] = "*"
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="hanmaru-bench-") as folder:
        engine = [sys.executable, str(HERE / "fake_engine.py"), "--port", str(FIRST_PORT), "--interval-s"]
        stack.enter_context(started([*engine, str(INTERVAL_S)], ENGINE_CORE, Path(folder) / "engine.log"))
        for index, mode in enumerate(modes, start=1):
            port = FIRST_PORT + 2 * PORT_SPAN * index
            argv = [sys.executable, str(HERE / "candidates.py"), mode, "--port", str(port)]
            argv += ["--engine", f"http://127.0.0.1:{FIRST_PORT}"]
            log_path = Path(folder) / f"{mode}.log"
            with started(argv, PROXY_CORE, log_path) as process:
                route = Route(mode, f"http://127.0.0.1:{port}", [process], log_path=log_path)
                try:
                    wait_until_serving(route)
                except BenchError as error:
                    print(json.dumps({"mode": mode, "error": str(error)[:200]}), flush=True)
                    continue
                seen = asyncio.run(watch(route.url, signal.SIGHUP, process))
                print(json.dumps({"mode": mode, "fault": "rollout", **seen}), flush=True)
                gcs = next(child for child in process.children() if child.name() == "gcs_server")
                seen = asyncio.run(watch(route.url, signal.SIGKILL, gcs))
                print(json.dumps({"mode": mode, "fault": "GCS killed", **seen}), flush=True)


if __name__ == "__main__":
    main()
