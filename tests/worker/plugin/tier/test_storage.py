"""`TierStorage` as HiCache calls it: SGLang's own host pools in this process, on a real Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hanmaru_contracts.errors import HanmaruError
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.shared_cache import TIER_KEY, tier_environment
from hanmaru_worker.plugin.tier.breaker import FAILURES

pytestmark = [pytest.mark.usefixtures("plugin_loaded"), pytest.mark.timeout(180)]

PAGE_TOKENS, PAGES = 16, 12
HASHES = [f"{number:064x}" for number in range(1, PAGES + 1)]
WINDOW_PAGES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as running:
        yield running


@pytest.fixture
def empty(server: RedisServer) -> RedisServer:
    with server.client() as admin:
        admin.flushall()
    return server


class Rank:
    """One rank's storage with a global and a sliding pool of its own."""

    def __init__(self, storage: Any, seed: int) -> None:
        from hanmaru_worker.plugin.host_pools import allow_plain_memory
        from sglang.srt.mem_cache.hicache_storage import PoolName

        allow_plain_memory()
        self.storage = storage
        self.pools = {PoolName.KV: host_pool(2, seed), PoolName.SWA: host_pool(6, seed + 1)}
        storage.register_mem_pool_host(self.pools[PoolName.KV])
        for name, pool in self.pools.items():
            storage.register_mem_host_pool_v2(pool, name)
        storage.on_host_pools_registered()

    def page(self, name: str, number: int) -> torch.Tensor:
        return self.pools[name].get_data_page(number * PAGE_TOKENS, flat=True).clone()

    def wipe(self) -> None:
        for pool in self.pools.values():
            pool.kv_buffer.zero_()

    def write(self, hashes: Sequence[str] = HASHES, salt: str | None = "salt", before: Sequence[str] = ()) -> None:
        def set_all() -> None:
            told = info(before)
            assert all(self.storage.batch_set_v2([sliding(hashes, len(hashes))], told)["swa"])
            assert all(self.storage.batch_set_v1(list(hashes), indices(len(hashes)), told))

        serve(salt, set_all, before, hashes)

    def exists(self, hashes: Sequence[str] = HASHES, salt: str | None = "salt", before: Sequence[str] = ()) -> Any:
        return serve(salt, lambda: self.storage.batch_exists_v2(list(hashes), [window()], info(before)))

    def read(self, hashes: Sequence[str] = HASHES, salt: str | None = "salt") -> tuple[list[bool], list[bool]]:
        def get_all() -> tuple[list[bool], list[bool]]:
            kv = self.storage.batch_get_v1(list(hashes), indices(len(hashes)), info())
            return kv, self.storage.batch_get_v2([sliding(hashes, len(hashes))], info())["swa"]

        return serve(salt, get_all)


def host_pool(layers: int, seed: int) -> Any:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    device = MHATokenToKVPool(
        size=PAGES * PAGE_TOKENS,
        page_size=PAGE_TOKENS,
        dtype=torch.bfloat16,
        head_num=2,
        head_dim=8,
        layer_num=layers,
        device="cpu",
        enable_memory_saver=False,
    )
    pool = MHATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        2.0,
        0,
        PAGE_TOKENS,
        "page_first",
        device_capacity_tokens=device.size,
        start_layer=0,
        end_layer=layers,
    )
    pool.kv_buffer.copy_(torch.randn(pool.kv_buffer.shape, generator=torch.Generator().manual_seed(seed)))
    return pool


def indices(pages: int) -> torch.Tensor:
    return torch.arange(pages * PAGE_TOKENS)


def info(before: Sequence[str] = ()) -> Any:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageExtraInfo

    return HiCacheStorageExtraInfo(prefix_keys=list(before))


def sliding(hashes: Sequence[str], pages: int) -> Any:
    from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

    return PoolTransfer(PoolName.SWA, indices(pages), keys=list(hashes), hit_policy=PoolHitPolicy.TRAILING_PAGES)


def window() -> Any:
    return sliding(["__placeholder__"] * WINDOW_PAGES, WINDOW_PAGES)


def serve(salt: str | None, work: Callable[[], Any], before: Sequence[str] = (), hashes: Sequence[str] = ()) -> Any:
    """As HiCache's threads do, with an operation of that domain."""
    from hanmaru_worker.plugin.tier import domains
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey([], cache_salt=salt)
    operation = SimpleNamespace(token_ids=key, prefix_keys=list(before), hash_value=list(hashes))
    return domains.serve_domain(lambda _controller, _operation: work(), None, operation)


Make = Callable[..., Rank]


@pytest.fixture
def make(
    empty: RedisServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Rank]]:
    from hanmaru_worker.plugin.tier import storage
    from hanmaru_worker.plugin.tier.meters import Meters
    from prometheus_client import CollectorRegistry
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

    monkeypatch.setattr(storage, "Meters", lambda: Meters(CollectorRegistry()))
    made: list[Rank] = []

    def one(
        *, rank: int = 0, ranks: int = 1, key: str = TIER_KEY, seed: int = 1, gone: str | None = None, **told: Any
    ) -> Rank:
        for variable, value in tier_environment(tmp_path, empty, key).items():
            monkeypatch.setenv(variable, value)
            if variable == gone:
                Path(value).unlink()
        extra = {"model": "default/k", "checkpoint": str(checkpoint), "variant": "a", "max_bytes": 2**30, "life_s": 60}
        config = HiCacheStorageConfig(
            tp_rank=rank,
            tp_size=ranks,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=False,
            enable_storage_metrics=False,
            is_page_first_layout=True,
            model_name="k",
            extra_config={**extra, "max_prefix_tokens": 16_384, **told},
        )
        made.append(Rank(storage.TierStorage(config, {}), seed))
        return made[-1]

    yield one
    for rank in made:
        rank.storage.close()


def test_pages_come_back_bit_for_bit_into_another_process_memory(make: Make) -> None:
    first = make()
    first.write()
    second = make(seed=99)
    second.wipe()
    found = second.exists()
    assert found.kv_hit_pages == PAGES
    assert found.restorable_prefix_pages == list(range(1, PAGES + 1))
    assert second.read() == ([True] * PAGES, [True] * PAGES)
    for name in second.pools:
        for number in range(PAGES):
            assert torch.equal(first.page(name, number).view(torch.uint8), second.page(name, number).view(torch.uint8))


def test_a_prefix_ends_where_its_window_was_stored(make: Make) -> None:
    rank = make()
    serve("salt", lambda: rank.storage.batch_set_v1(HASHES, indices(PAGES), info()), hashes=HASHES)
    assert rank.exists().kv_hit_pages == 0
    tail = HASHES[4:7]
    serve("salt", lambda: rank.storage.batch_set_v2([sliding(tail, 3)], info(HASHES[:4])), hashes=HASHES)
    found = rank.exists()
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (7, [7])
    assert found.extra_pool_hit_pages == {"kv": PAGES, "swa": 7}


def test_a_drafts_pools_go_with_the_targets(make: Make) -> None:
    from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

    first, second = make(), make(seed=99)
    for rank, seed in ((first, 7), (second, 77)):
        for number, name in enumerate((PoolName.DRAFT, PoolName.DRAFT_SWA)):
            rank.pools[name] = host_pool(1, seed + number)
            rank.storage.register_mem_host_pool_v2(rank.pools[name], name)

    def whole(keys: list[str] | None) -> Any:
        return PoolTransfer(PoolName.DRAFT, indices(PAGES), keys=keys, indices_from_pool=PoolName.KV)

    def trailing(keys: list[str]) -> Any:
        policy = PoolHitPolicy.TRAILING_PAGES
        return PoolTransfer(PoolName.DRAFT_SWA, indices(len(keys)), keys=keys, hit_policy=policy)

    first.write()
    asked = [window(), whole(None), trailing(["__placeholder__"] * WINDOW_PAGES)]
    assert serve("salt", lambda: second.storage.batch_exists_v2(HASHES, asked, info())).kv_hit_pages == 0
    drafts = [whole(HASHES), trailing(HASHES[-WINDOW_PAGES:])]
    serve("salt", lambda: first.storage.batch_set_v2(drafts, info()), hashes=HASHES)
    found = serve("salt", lambda: second.storage.batch_exists_v2(HASHES, asked, info()))
    assert found.restorable_prefix_pages == [PAGES]
    assert serve("salt", lambda: second.storage.batch_get_v2(drafts, info())) == {
        "draft": [True] * PAGES,
        "draft_swa": [True] * WINDOW_PAGES,
    }
    for name, count in ((PoolName.DRAFT, PAGES), (PoolName.DRAFT_SWA, WINDOW_PAGES)):
        for number in range(count):
            assert torch.equal(first.page(name, number).view(torch.uint8), second.page(name, number).view(torch.uint8))


OTHERS: dict[str, dict[str, Any]] = {
    "rank": {"rank": 1, "ranks": 2},
    "number of ranks": {"ranks": 2},
    "model": {"model": "default/l"},
    "flags": {"variant": "b"},
    "key": {"key": "a5" * 32},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_does_not_read_them(make: Make, what: str) -> None:
    make().write()
    other = make(seed=99, **OTHERS[what])
    before = other.page("kv", 0)
    assert other.read() == ([False] * PAGES, [False] * PAGES)
    assert torch.equal(other.page("kv", 0), before)


@pytest.mark.parametrize("whose", ["sglang", "hanmaru"])
def test_another_release_does_not_read_them(make: Make, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both compute what a page holds."""
    from hanmaru_worker.plugin.tier import storage

    make().write()
    if whose == "sglang":
        monkeypatch.setattr("sglang.__version__", "0.0.0")
    else:
        monkeypatch.setattr(storage, "version", lambda _distribution: "0.0.0")
    assert make().exists().kv_hit_pages == 0


def test_another_domain_does_not_read_them_even_at_the_same_hash(make: Make) -> None:
    rank = make()
    rank.write()
    assert rank.read(salt="another") == ([False] * PAGES, [False] * PAGES)


def test_without_a_domain_nothing_is_written_looked_for_or_read(make: Make, empty: RedisServer) -> None:
    rank = make()
    rank.write(salt=None)
    with empty.client() as admin:
        assert admin.dbsize() == 0
    rank.write()
    assert rank.exists(salt=None).kv_hit_pages == 0
    assert rank.read(salt=None) == ([False] * PAGES, [False] * PAGES)


def test_prefixes_beyond_the_bound_are_neither_stored_nor_looked_for(make: Make, empty: RedisServer) -> None:
    rank = make(max_prefix_tokens=6 * PAGE_TOKENS)
    rank.write(HASHES[:6])
    assert rank.exists(HASHES[:6]).kv_hit_pages == 6
    with empty.client() as admin:
        stored = admin.dbsize()
        rank.write(HASHES)  # one node that ends beyond: its window would not be there
        rank.write(HASHES[6:], before=HASHES[:6])
        assert admin.dbsize() == stored
    assert rank.exists(HASHES[6:], before=HASHES[:6]).kv_hit_pages == 0


def test_a_refused_page_is_taken_out_so_that_a_right_one_can_come(make: Make, empty: RedisServer) -> None:
    rank = make()
    rank.write()
    with empty.client() as admin:
        (forged,) = admin.scan_iter(f"*:kv:{HASHES[3]}")
        admin.set(forged, b"\0" * admin.strlen(forged))
    kv, _ = rank.read()
    assert kv == [number != 3 for number in range(PAGES)]
    rank.write()
    assert rank.read()[0] == [True] * PAGES


def test_what_sglang_asks_wrongly_is_a_miss(make: Make) -> None:
    rank = make()
    rank.write()
    assert serve("salt", lambda: rank.storage.batch_get_v1(HASHES, indices(3), info())) == [False] * PAGES
    assert serve("salt", lambda: rank.storage.batch_get_v1(HASHES, None, info())) == [False] * PAGES


def test_without_redis_every_call_ends_with_nothing(make: Make, empty: RedisServer) -> None:
    rank = make()
    rank.write()
    empty.stop()
    try:
        for _ in range(5):
            assert rank.exists().kv_hit_pages == 0
            assert rank.read() == ([False] * PAGES, [False] * PAGES)
            rank.write()
    finally:
        empty.start()


@pytest.mark.parametrize("asked", [Rank.exists, Rank.read], ids=["looked for", "read"])
def test_while_redis_is_away_no_page_is_sealed(
    make: Make, empty: RedisServer, monkeypatch: pytest.MonkeyPatch, asked: Callable[[Rank], object]
) -> None:
    """A long prompt's backup would copy and hash hundreds of megabytes for nothing.

    A read that found nothing must not look like an answer of Redis either: there is nothing to touch after it.
    """
    rank = make()
    empty.stop()
    try:
        for _ in range(FAILURES):
            asked(rank)
        sealed: list[int] = []
        monkeypatch.setattr(type(rank.pools["kv"]), "get_data_page", lambda *_given, **_more: sealed.append(1))
        rank.write()
        assert not sealed
    finally:
        empty.start()


@pytest.mark.parametrize("file", ["KEY_FILE", "REDIS_PASSWORD_FILE"])
def test_a_tier_whose_files_are_gone_holds_nothing_and_is_told(
    make: Make, empty: RedisServer, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    """A replica of a revision that had one, made or restarted after the installation gave it up."""
    with caplog.at_level(logging.INFO):
        rank = make(gone=f"HANMARU_TIER_{file}")
    (record,) = (record for record in caplog.records if "tier." in record.getMessage())
    assert record.levelno == logging.WARNING
    assert f'tier.left_out {{"missing": "HANMARU_TIER_{file}=' in record.getMessage()
    rank.write()
    assert rank.exists().kv_hit_pages == 0
    assert rank.read() == ([False] * PAGES, [False] * PAGES)
    with empty.client() as admin:
        assert admin.dbsize() == 0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"key": "5a"}, "64 hexadecimal digits"),
    "checkpoint": ({"checkpoint": "/nowhere"}, "no safetensors files"),
    "bound": ({"max_bytes": 0}, "max_bytes"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_tier_that_can_never_work_is_told_at_the_start(
    make: Make, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    told, said = WRONG[what]
    with caplog.at_level(logging.INFO), pytest.raises(HanmaruError, match=said):
        make(**told)
    assert TIER_KEY not in caplog.text
