"""Whose pages a thread of HiCache reads or writes: a request's isolation domain, which SGLang's backends do not see.

A backend is given page hashes. The salt is in them (a sequence's first hash is seeded with it), but it cannot be taken
out again, and the key that seals a page depends on it. What SGLang has is followed: an operation that reads carries the
request's key with the salt; one that writes carries a tree node's bare tokens, so `keep_domain` puts the node's salt
beside them. `storage` asks `current` in the thread that serves the operation. Hooked by `hooks`; where no tier is
attached nothing reads what is kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from hanmaru_worker.plugin.tier.sealing import domain_digest

_T = TypeVar("_T")

SPECS = (
    "sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore.build_storage_backup_spec",
    "sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore.build_storage_backup_spec",
)
SERVED = (
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController._storage_hit_query",
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController._page_transfer",
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController._page_backup",
)


@dataclass(frozen=True, slots=True)
class Serving:
    """The operation that a thread is at."""

    domain: bytes
    """Digest of the isolation domain."""
    end_pages: int
    """Where the pages that an operation writes end, from the sequence's beginning."""


_current: ContextVar[Serving | None] = ContextVar("hanmaru_tier_serving", default=None)


def current() -> Serving | None:
    """Of this thread. None: the domain is not known, and then no page is read or written."""
    return _current.get()


def keep_domain(spec: Any, core: Any, node_id: Any, *_args: Any, **_kwargs: Any) -> Any:
    """AFTER a core has said what of a node is to be written: its tokens become a key with the node's salt."""
    if spec is None:
        return None
    from sglang.srt.mem_cache.radix_cache import RadixKey

    extra_key, cache_salt = core.prefetch_anchor_info(node_id)
    return spec._replace(token_ids=RadixKey(spec.token_ids, extra_key=extra_key, cache_salt=cache_salt))


def serve_domain(original: Callable[..., _T], controller: Any, operation: Any) -> _T:
    """AROUND what serves one operation."""
    token = _current.set(_serving(operation))
    try:
        return original(controller, operation)
    finally:
        _current.reset(token)


def _serving(operation: Any) -> Serving | None:
    cache_salt = getattr(operation.token_ids, "cache_salt", None)
    if not cache_salt:
        # A page without a salt would be for everybody. Gateways always give one; whoever does without has no tier.
        return None
    end_pages = len(operation.prefix_keys or ()) + len(operation.hash_value or ())
    return Serving(domain_digest(operation.token_ids.extra_key, cache_salt), end_pages)
