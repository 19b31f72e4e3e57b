"""`make bench-shared-cache`: what one rank's pages take on their way to a Redis on loopback and back.

Prints what it was measured on, what was seen, and one JSON line last; it takes seconds. The pages are those of one of
eight ranks of K-EXAONE's global layers. Left out: SGLang, its copies between pools and devices, and any network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from hanmaru_contracts.names import ModelId
from hanmaru_redis.settings import access_to
from hanmaru_testing.machine import machine
from hanmaru_testing.redis_server import RedisServer
from hanmaru_worker.plugin.tier import scripts
from hanmaru_worker.plugin.tier.client import Client
from hanmaru_worker.plugin.tier.naming import Naming, PageShape, Ranks
from hanmaru_worker.plugin.tier.sealing import OVERHEAD_BYTES, domain_digest, page_key, seal, unseal
from hanmaru_worker.plugin.tier.store import Frame, Limits

_T = TypeVar("_T")

PAGE_TOKENS, PAGES = 64, 64
TOKEN_BYTES = 48 * 1024 // 8
"""Of a rank: keys and values of 12 global layers, one KV head of 128 in bf16."""
PAYLOAD_BYTES = PAGE_TOKENS * TOKEN_BYTES
FRAME_BYTES = PAYLOAD_BYTES + OVERHEAD_BYTES
DEADLINE_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    seen = machine()
    print(json.dumps(seen))
    failures: Counter[str] = Counter()
    with RedisServer(acl=True) as server:
        access = access_to(server.url, "tier", server.passwords["tier"])
        limits = Limits(2**30, 3_600_000, DEADLINE_S, DEADLINE_S, DEADLINE_S)
        client = Client(access, limits, lambda reason: failures.update([reason]))
        try:
            rounds = [_round(client) for _ in range(args.rounds)]
        finally:
            client.close()
    if failures:
        raise SystemExit(f"Redis failed: {dict(failures)}")
    summary: dict[str, object] = {"pages": PAGES, "page_bytes": PAYLOAD_BYTES, "rounds": args.rounds}
    print(f"{PAGES} pages of {PAYLOAD_BYTES:,} bytes, {args.rounds} rounds: median (least to most)")
    for step in rounds[0]:
        found = sorted(measured[step] for measured in rounds)
        summary[step] = [round(number, 1) for number in (found[0], statistics.median(found), found[-1])]
        print(f"  {step:20} {statistics.median(found):8.1f} ({found[0]:.1f} to {found[-1]:.1f})")
    print(json.dumps({**summary, "machine": seen}))


def _round(client: Client) -> dict[str, float]:
    """Fresh pages, once through every step."""
    shape = PageShape("kv", "bfloat16", PAGE_TOKENS, "page_first", 12, 1, 128, 128, PAYLOAD_BYTES)
    naming = Naming(ModelId("bench/model"), "0" * 32, Ranks(0, 8), shape)
    names = [naming.page(os.urandom(32).hex()) for _ in range(PAGES)]
    payloads = [os.urandom(PAYLOAD_BYTES) for _ in range(PAGES)]
    entries = [name.entry for name in names]
    key = page_key(os.urandom(32), naming.content, domain_digest(None, "salt"))

    frames, seal_s = _timed(
        lambda: [Frame(name, seal(key, name.entry, payload)) for name, payload in zip(names, payloads, strict=True)]
    )
    unsaid: list[int | None] = [None]
    said, write_s = _timed(lambda: client.call(lambda store: store.write(frames), DEADLINE_S, unsaid))
    found, look_up_s = _timed(
        lambda: client.call(lambda store: store.look_up(entries, [FRAME_BYTES] * PAGES), DEADLINE_S, [False])
    )
    nothing: list[bytes | None] = [None] * PAGES
    read, read_s = _timed(lambda: client.call(lambda store: store.read(entries, FRAME_BYTES), DEADLINE_S, nothing))
    right, unseal_s = _timed(
        lambda: [unseal(key, entry, frame or b"", PAYLOAD_BYTES) for entry, frame in zip(entries, read, strict=True)]
    )
    if set(said) != {scripts.STORED} or not all(found) or [bytes(payload or b"") for payload in right] != payloads:
        raise SystemExit("pages did not come back as they were")
    megabytes = PAGES * PAYLOAD_BYTES / 1e6
    return {
        "look_up_ms": 1000 * look_up_s,
        "read_mb_per_s": megabytes / read_s,
        "unseal_mb_per_s": megabytes / unseal_s,
        "seal_mb_per_s": megabytes / seal_s,
        "write_mb_per_s": megabytes / write_s,
    }


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


if __name__ == "__main__":
    main()
