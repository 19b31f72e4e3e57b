"""HiCache's storage on Redis: pages out of host memory into Redis, sealed, and back, believed only if unsealed.

SGLang makes `TierStorage` in each rank's process (`--hicache-storage-backend dynamic`) and calls it from its storage
threads: `batch_exists_v2` for a prompt that is not in memory, `batch_get_*` for what was found, `batch_set_*` for what
the radix tree keeps. Nothing here raises for anything that Redis does or holds: a page is then not there. Names, seals,
lengths and deadlines are decided in `naming`, `sealing`, `prefixes` and `store`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import sglang
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from hanmaru_worker.plugin.tier import domains, prefixes, scripts
from hanmaru_worker.plugin.tier.client import Client
from hanmaru_worker.plugin.tier.events import tell
from hanmaru_worker.plugin.tier.meters import Meters
from hanmaru_worker.plugin.tier.naming import Naming, PageName, PageShape, Ranks
from hanmaru_worker.plugin.tier.sealing import OVERHEAD_BYTES, page_key, seal, unseal
from hanmaru_worker.plugin.tier.settings import read_settings
from hanmaru_worker.plugin.tier.store import Frame
from hanmaru_worker.plugin.tier.weights import content_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pool:
    """One of SGLang's host pools."""

    host: Any
    naming: Naming

    @property
    def name(self) -> str:
        return self.naming.shape.pool

    @property
    def payload_bytes(self) -> int:
        return self.naming.shape.payload_bytes

    @property
    def frame_bytes(self) -> int:
        return self.payload_bytes + OVERHEAD_BYTES

    def payload(self, index: int) -> memoryview:
        page = self.host.get_data_page(index, flat=True)
        return memoryview(page.contiguous().view(torch.uint8).numpy())

    def restore(self, index: int, payload: memoryview) -> None:
        page = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        self.host.set_from_flat_data_page(index, page.view(self.host.dtype))


class TierStorage(HiCacheStorage):  # type: ignore[misc]  # SGLang ships no types
    """One rank's way to the tier."""

    def __init__(self, storage_config: HiCacheStorageConfig, _options: object = None) -> None:
        """Raises HanmaruError (CONFIGURATION): a tier that can never work is told at the start. Asks Redis nothing.

        One whose files are gone holds no page.
        """
        self._settings = read_settings(storage_config.extra_config or {}, os.environ)
        told = self._settings.told
        # Our plugin decides the numbers too: windows, attention and experts.
        self._content = content_digest(told.checkpoint, told.variant, sglang.__version__, version("hanmaru"))
        self._ranks = _ranks(storage_config)
        self._meters = Meters()
        self._client = Client(self._settings.access, self._settings.limits, self._meters.failed)
        self._pools: dict[str, _Pool] = {}
        if self._settings.missing:
            tell(log, logging.WARNING, "tier.left_out", missing=", ".join(self._settings.missing))
        else:
            tell(log, logging.INFO, "tier.on", model=told.model, content=self._content, ranks=str(self._ranks))

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """The pool of the global layers."""
        super().register_mem_pool_host(mem_pool_host)
        self.register_mem_host_pool_v2(mem_pool_host, PoolName.KV)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Any pool."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        name = str(host_pool_name)
        naming = Naming(self._settings.model, self._content, self._ranks, _shape(name, host_pool))
        self._pools[name] = _Pool(host_pool, naming)

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """Which prefixes of these pages could be read."""
        others = list(pool_transfers or ())
        places = keys[: self._pages_left(extra_info)]
        if domains.current() is None or not places or not all(self._knows(other) for other in others):
            return PoolTransferResult.empty()
        kv, others_found = self._look_up(places, others)
        lengths = prefixes.restorable_pages([kv, *others_found])
        hits = {str(PoolName.KV): prefixes.longest(kv)} | {
            str(other.name): prefixes.longest(found) for other, found in zip(others, others_found, strict=True)
        }
        outcome = "miss" if not lengths else "hit" if lengths[-1] == len(keys) else "partial"
        self._meters.looked_up(outcome)
        named = {PoolName(name): pages for name, pages in hits.items() if pages}
        return PoolTransferResult(lengths[-1] if lengths else 0, named, lengths)

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """The same for a model with nothing but global layers."""
        return int(self.batch_exists_v2(keys, None, extra_info).kv_hit_pages)

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Read pages of the global layers into host memory."""
        return self._get(self._pools[str(PoolName.KV)], keys, host_indices)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Read pages of other pools."""
        return {
            transfer.name: self._get(self._pools[str(transfer.name)], transfer.keys or [], transfer.host_indices)
            if self._knows(transfer)
            else [False] * len(transfer.keys or ())
            for transfer in transfers
        }

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Write pages of the global layers."""
        return self._set(self._pools[str(PoolName.KV)], keys, host_indices, extra_info)

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Write pages of other pools."""
        return {
            transfer.name: self._set(
                self._pools[str(transfer.name)], transfer.keys or [], transfer.host_indices, extra_info
            )
            if self._knows(transfer)
            else [False] * len(transfer.keys or ())
            for transfer in transfers
        }

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        """Nothing: SGLang's older interface, which it uses only without `interface_v1`."""
        return None

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[None]:
        """Nothing, as above."""
        return [None] * len(keys)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Nothing, as above."""
        return False

    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """Nothing, as above."""
        return False

    def exists(self, key: str) -> bool:
        """No, as above."""
        return False

    def clear(self) -> None:
        """Refused: other replicas read the same pages, and all of them lapse."""
        raise NotImplementedError("the shared cache is not cleared by one of its replicas; its pages lapse")

    def close(self) -> None:
        """End the connections. SGLang calls it by name when it detaches a storage."""
        self._client.close()

    def _knows(self, transfer: PoolTransfer) -> bool:
        return str(transfer.name) in self._pools and transfer.hit_policy is not PoolHitPolicy.BLOCK_GROUPS

    def _pages_left(self, extra_info: HiCacheStorageExtraInfo | None) -> int:
        """How many pages behind those that precede a call may still be stored."""
        before = len((extra_info and extra_info.prefix_keys) or ())
        return max(0, self._most_pages - before)

    @property
    def _most_pages(self) -> int:
        page_tokens = self._pools[str(PoolName.KV)].naming.shape.page_tokens
        return self._settings.told.max_prefix_tokens // page_tokens

    def _look_up(self, keys: list[str], others: list[PoolTransfer]) -> tuple[prefixes.Pool, list[prefixes.Pool]]:
        pools = [self._pools[str(PoolName.KV)], *(self._pools[str(other.name)] for other in others)]
        names = [pool.naming.page(key).entry for pool in pools for key in keys]
        sizes = [pool.frame_bytes for pool in pools for _ in keys]
        found = self._client.call(
            lambda store: store.look_up(names, sizes), self._settings.limits.lookup_s, [False] * len(names)
        )
        parts = [found[first : first + len(keys)] for first in range(0, len(found), len(keys))]
        return prefixes.Pool(parts[0]), [
            prefixes.Pool(part, _trailing_pages(other)) for other, part in zip(others, parts[1:], strict=True)
        ]

    def _get(self, pool: _Pool, keys: Sequence[str], host_indices: torch.Tensor | None) -> list[bool]:
        serving = domains.current()
        places = _places(pool, keys, host_indices)
        if serving is None or not places:
            return [False] * len(keys)
        names = [pool.naming.page(key) for key in keys]
        entries = [name.entry for name in names]
        nothing: list[bytes | None] = [None] * len(keys)
        frames = self._client.call(
            lambda store: store.read(entries, pool.frame_bytes), self._settings.limits.read_s, nothing
        )
        key = page_key(self._settings.tier_key, self._content, serving.domain)
        read, refused = [False] * len(keys), list[PageName]()
        for place, (name, index, frame) in enumerate(zip(names, places, frames, strict=True)):
            payload = None if frame is None else unseal(key, name.entry, frame, pool.payload_bytes)
            if payload is not None:
                pool.restore(index, payload)
                read[place] = True
            elif frame is not None:
                refused.append(name)
        used = [name for name, is_read in zip(names, read, strict=True) if is_read]
        if used:
            self._client.begin(lambda store: store.touch(used, pool.frame_bytes))
        if refused:
            self._client.begin(lambda store: store.drop(refused, pool.frame_bytes))
            tell(log, logging.WARNING, "tier.pages_refused", pool=pool.name, pages=len(refused))
        self._meters.pages(pool.name, "hit", len(used))
        self._meters.pages(pool.name, "refused", len(refused))
        self._meters.pages(pool.name, "miss", len(keys) - len(used) - len(refused))
        self._meters.moved("read", len(used) * pool.payload_bytes)
        return read

    def _set(
        self,
        pool: _Pool,
        keys: Sequence[str],
        host_indices: torch.Tensor | None,
        extra_info: HiCacheStorageExtraInfo | None,
    ) -> list[bool]:
        serving = domains.current()
        places = _places(pool, keys, host_indices)
        if serving is None or not places or not self._is_wanted(serving):
            # What is left out on purpose is no failure, of which SGLang would warn each time.
            return [True] * len(keys)
        key = page_key(self._settings.tier_key, self._content, serving.domain)
        count = min(len(keys), self._pages_left(extra_info))
        said: list[int | None] = []
        step = max(1, _SEALED_AT_ONCE_BYTES // pool.frame_bytes)
        for first in range(0, count, step):
            if self._client.is_paused:  # sealing would cost a copy and a MAC for each page
                self._meters.failed("paused")
                break
            frames = list(_sealed(pool, key, keys[first : min(count, first + step)], places[first:]))
            said += self._client.call(
                lambda store, frames=frames: store.write(frames),  # type: ignore[misc]
                self._settings.limits.write_s,
                [None] * len(frames),
            )
            if None in said:
                break
        stored = said.count(scripts.STORED)
        self._meters.pages(pool.name, "stored", stored)
        full = said.count(scripts.REFUSED_BY_BOUND) + said.count(scripts.REFUSED_BY_REDIS)
        self._meters.pages(pool.name, "full", full)
        self._meters.pages(pool.name, "lost", count - stored - full)
        self._meters.moved("written", stored * pool.payload_bytes)
        return [True] * len(keys)

    def _is_wanted(self, serving: domains.Serving) -> bool:
        """A sliding window is written where a node of the tree ends: beyond the bound the rest would be of no use."""
        return len(self._pools) == 1 or serving.end_pages <= self._most_pages


_SEALED_AT_ONCE_BYTES = 64 * 1024 * 1024
"""Frames are copies: so much of them exists at a time."""


def _sealed(pool: _Pool, key: bytes, keys: Sequence[str], places: Sequence[int]) -> Iterator[Frame]:
    for page_hash, index in zip(keys, places, strict=False):
        name = pool.naming.page(page_hash)
        yield Frame(name, seal(key, name.entry, pool.payload(index)))


def _places(pool: _Pool, keys: Sequence[str], host_indices: torch.Tensor | None) -> list[int]:
    """Where each page begins in host memory; empty where SGLang gave other than one page for each key."""
    page_tokens = pool.naming.shape.page_tokens
    if host_indices is None or host_indices.numel() != len(keys) * page_tokens:
        return []
    starts: list[int] = host_indices[::page_tokens].tolist()
    return starts


def _trailing_pages(transfer: PoolTransfer) -> int | None:
    return max(1, len(transfer.keys or ())) if transfer.hit_policy is PoolHitPolicy.TRAILING_PAGES else None


def _ranks(config: HiCacheStorageConfig) -> Ranks:
    # Where every rank has the same bytes, one writes and all read them.
    tensor, tensors = (0, 1) if config.is_mla_model else (config.tp_rank, config.tp_size)
    return Ranks(tensor, tensors, config.pp_rank, config.pp_size, config.attn_cp_rank, config.attn_cp_size)


def _shape(name: str, host: Any) -> PageShape:
    return PageShape(
        pool=name,
        dtype=str(host.dtype).removeprefix("torch."),
        page_tokens=host.page_size,
        layout=host.layout,
        layers=host.layer_num,
        heads=getattr(host, "head_num", 0),
        key_dim=getattr(host, "head_dim", 0),
        value_dim=getattr(host, "v_head_dim", 0),
        payload_bytes=host.get_data_page(0, flat=True).nbytes,
    )
