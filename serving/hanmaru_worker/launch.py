"""`hanmaru worker`: settings -> model files -> one supervised engine; errors become exit codes here.

The command line calls `main`; whoever starts the process restarts it with back-off when it exits with anything but 0.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import configure_logging, log_event
from hanmaru_contracts.wire.worker import pack_artifact

from hanmaru_worker.artifact import read_artifact, read_capabilities
from hanmaru_worker.leader import Model
from hanmaru_worker.registry import PackedArtifact
from hanmaru_worker.settings import Settings, read_settings
from hanmaru_worker.stop import Stop
from hanmaru_worker.supervisor import supervise

_log = logging.getLogger(__name__)

EXIT_FAILED = 1
"""The engine could not start, died or hung: starting again may help."""
EXIT_MISCONFIGURED = 2
"""A setting or file is wrong: starting again does not help."""


def main(argv: Sequence[str]) -> int:
    """Run one worker until it is asked to stop; the exit code."""
    argparse.ArgumentParser(
        prog="hanmaru worker",
        description="Supervise one engine; settings come from HANMARU_* environment variables.",
    ).parse_args(argv)
    configure_logging("worker")
    try:
        settings = read_settings(os.environ)
        model = _read_model(settings) if settings.rank.is_leader else None
        with tempfile.TemporaryDirectory(prefix="hanmaru-worker-") as scratch:  # mode 0700
            asyncio.run(_run(settings, model, Path(scratch)))
    except HanmaruError as error:
        log_event(_log, logging.ERROR, "worker.failed", code=error.code, message=error.message)
        return EXIT_MISCONFIGURED if error.code is ErrorCode.CONFIGURATION else EXIT_FAILED
    except OSError as error:  # a full disk, a lost mount
        log_event(_log, logging.ERROR, "worker.failed", code=ErrorCode.INTERNAL, message=str(error))
        return EXIT_FAILED
    log_event(_log, logging.INFO, "worker.ended")
    return 0


async def _run(settings: Settings, model: Model | None, scratch: Path) -> None:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    await supervise(settings, model, scratch, stop)


def _read_model(settings: Settings) -> Model:
    try:
        digest, packed = pack_artifact(read_artifact(Path(settings.spec.checkpoint)))
    except ValueError as error:
        raise HanmaruError(ErrorCode.CONFIGURATION, str(error)) from error
    return Model(PackedArtifact(digest, packed), read_capabilities(settings.spec))
