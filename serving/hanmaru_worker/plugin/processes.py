"""How the engine's processes begin on the native CPU platform: forked from the server, which has imported everything.

SGLang spawns its schedulers and its detokenizer, so that each imports torch, transformers and SGLang anew: most of an
engine's start on a laptop. `hooks` puts the two functions below around SGLang's own launchers. A fork is only as good
as what the parent is at that moment, so the server forks while it has one thread of its own, which then holds no lock,
and spawns as upstream does otherwise, and on other systems than Linux. A forked process puts back what a spawned one
would find before it runs SGLang's own function.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEDULERS = "sglang.srt.entrypoints.engine.Engine._launch_scheduler_processes"
DETOKENIZERS = "sglang.srt.entrypoints.engine.Engine._launch_detokenizer_subprocesses"


def launch_schedulers(
    original: Callable[..., Any],
    engine: type,
    server_args: Any,
    port_args: Any,
    run_scheduler_process_func: Callable[..., Any],
    **placement: Any,
) -> Any:
    """SGLang's launcher of one scheduler for each rank; hooked AROUND it."""
    from sglang.srt.runtime_context import get_parallel

    # With data parallelism schedulers are children of a controller that has threads by then.
    if not _can_fork() or get_parallel().num_dp_ranks > 1:
        return original(engine, server_args, port_args, run_scheduler_process_func, **placement)
    with _forking():
        return original(engine, server_args, port_args, _as_if_spawned(run_scheduler_process_func), **placement)


def launch_detokenizers(
    original: Callable[..., Any],
    engine: type,
    server_args: Any,
    port_args: Any,
    run_detokenizer_process_func: Callable[..., Any],
) -> Any:
    """SGLang's launcher of the detokenizer; hooked AROUND it."""
    if not _can_fork():
        return original(engine, server_args, port_args, run_detokenizer_process_func)
    with _forking():
        return original(engine, server_args, port_args, _as_if_spawned(run_detokenizer_process_func))


def _can_fork() -> bool:
    """Threads are the kernel's count: those of native libraries are among them, which Python does not know."""
    return sys.platform == "linux" and len(list(Path("/proc/self/task").iterdir())) == 1


@contextmanager
def _forking() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def _as_if_spawned(run: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(_run_as_if_spawned, run)


def _run_as_if_spawned(run: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    from sglang.srt.runtime_context import reset_context

    multiprocessing.set_start_method("spawn", force=True)
    # The server's own handler would end the server's children.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # What was imported stays: collecting it would copy every page that parent and child still share.
    gc.freeze()
    reset_context()
    run(*args, **kwargs)
