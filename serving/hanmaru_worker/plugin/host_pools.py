"""HiCache's host memory on the native CPU platform: plain memory, copied by torch.

SGLang pins its host pools for an NVIDIA driver and moves pages with compiled kernels, also where the device is the CPU.
`hooks` puts the functions below around the two transfers, `cpu` calls `allow_plain_memory`; both touch only pools whose
device is the CPU. There is no stream to wait for: a copy is done when it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LOAD = "sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost.load_to_device_per_layer"
BACKUP = "sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost.backup_from_device_all_layer"

RESERVE_BYTES = 1024**3
"""Of the machine's memory, left to others when a host pool is made. SGLang leaves 10 GiB: too much for a laptop."""


LAYOUTS = ("layer_first", "page_first")
"""Of host memory, in which a layer is addressed by token."""


def refuse_other_layouts(flags: Any) -> None:
    """Raise a ValueError that names the flag. `flags` has SGLang's of the hierarchical cache."""
    if flags.hicache_mem_layout not in LAYOUTS:
        raise ValueError(
            f"--hicache-mem-layout {flags.hicache_mem_layout}: the native CPU platform has {' and '.join(LAYOUTS)}"
        )
    if flags.hicache_io_backend != "kernel":
        raise ValueError(
            f"--hicache-io-backend {flags.hicache_io_backend}: the native CPU platform copies by torch; leave it out"
        )


def allow_plain_memory() -> None:
    """Effects: SGLang's table of allocators by device, and how much memory a host pool leaves."""
    from sglang.srt.mem_cache.pool_host import base, common

    common.ALLOC_MEMORY_FUNCS["cpu"] = plain_memory
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = RESERVE_BYTES


def plain_memory(dims: tuple[int, ...], dtype: torch.dtype, device: str, **_pinning: Any) -> torch.Tensor:
    """Memory of this shape that nobody pins. Pages that are not written yet take nothing."""
    return torch.empty(dims, dtype=dtype, device=device)


def load_layer(
    original: Callable[..., None],
    pool: Any,
    device_pool: Any,
    host_indices: torch.Tensor,
    device_indices: torch.Tensor,
    layer_id: int,
    io_backend: str,
    *,
    is_draft: bool = False,
) -> None:
    """AROUND: one layer's keys and values from host memory into the device's pool."""
    if not _is_plain(pool):
        original(pool, device_pool, host_indices, device_indices, layer_id, io_backend, is_draft=is_draft)
    elif is_draft or 0 <= layer_id < pool.target_layer_num:
        pool.device_k_buffers[layer_id][device_indices] = pool.k_data_refs[layer_id][host_indices]
        pool.device_v_buffers[layer_id][device_indices] = pool.v_data_refs[layer_id][host_indices]


def backup_layers(
    original: Callable[..., None],
    pool: Any,
    device_pool: Any,
    host_indices: torch.Tensor,
    device_indices: torch.Tensor,
    io_backend: str,
) -> None:
    """AROUND: all layers' keys and values from the device's pool into host memory."""
    if not _is_plain(pool):
        original(pool, device_pool, host_indices, device_indices, io_backend)
        return
    for host, device in (
        (pool.k_data_refs, pool.device_k_buffers),
        (pool.v_data_refs, pool.device_v_buffers),
    ):
        for to, source in zip(host, device, strict=True):
            to[host_indices] = source[device_indices]


def _is_plain(pool: Any) -> bool:
    return bool(pool.device_k_buffers[0].device.type == "cpu")
