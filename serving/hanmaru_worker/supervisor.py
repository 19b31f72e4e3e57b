"""One worker's process: its engine, its health page, and the part its rank plays, ended together.

`launch` calls `supervise`. Rank 0 is a `leader`, other ranks are `follower`s. However a life ends, the registration
goes first, then the engine with all its processes.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from pathlib import Path

from hanmaru_contracts import keys
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.log import log_event

from hanmaru_worker.engine import Engine
from hanmaru_worker.engines import ENGINES, Launch
from hanmaru_worker.follower import Follower
from hanmaru_worker.health import Phase, Status, listening_failed, serving_health
from hanmaru_worker.leader import Leader, Model
from hanmaru_worker.peers import find_peers
from hanmaru_worker.settings import Settings
from hanmaru_worker.stop import Stop, first_of, when

_log = logging.getLogger(__name__)


async def supervise(settings: Settings, model: Model | None, scratch: Path, stop: Stop) -> None:
    """Run until asked to stop. `model` is rank 0's; `scratch` a private folder that the caller removes.

    Raises HanmaruError: CONFIGURATION before the engine starts, ENGINE_FAILED when it failed, with its log's place.
    """
    status = Status(secrets.token_hex(8), settings.rank.index, time.monotonic)
    host = settings.advertise_host
    api_key = keys.engine_api_key(settings.replica_key)
    config_file = _write_config(scratch, api_key)
    launch = Launch(
        spec=settings.spec,
        rank=settings.rank,
        host=host,
        port=settings.engine_port,
        config_file=config_file,
        scratch=scratch,
        cpus=sorted(os.sched_getaffinity(0)),
        inherited=os.environ,
    )
    kind = ENGINES[settings.spec.engine]
    argv = kind.argv(launch)
    _check_port_is_free(host, settings.engine_port)
    engine: Engine | None = None

    async def engine_metrics() -> bytes:
        return await engine.metrics() if engine and status.phase is not Phase.LOADING else b""

    async with serving_health(status, engine_metrics, host, settings.supervisor_port):
        found = find_peers(settings.peers, settings.spec.startup_timeout_s)
        peers = await first_of(found, when(stop.asked, None))
        if peers is None:
            return
        engine = await Engine.start(
            argv,
            kind.environment(launch, peers),
            kind.interface(settings.spec),
            scratch=scratch,
            origin=f"http://{settings.engine_address}",
            api_key=api_key,
            log_path=settings.log_dir / f"engine-{settings.replica}-{settings.rank.index}.log",
        )
        log_event(_log, logging.INFO, "engine.started", pid=engine.pid, log=str(engine.log_path))
        try:
            if model is not None:
                await Leader(settings, model, engine, status, stop, config_file).live()
            else:
                await Follower(settings, engine, status, stop).live()
        except HanmaruError:
            log_event(_log, logging.ERROR, "engine.failed", log=str(engine.log_path), tail=engine.tail())
            raise
        finally:
            status.phase = Phase.STOPPING
            if engine.status is None:
                await engine.kill()
            await engine.close()
            log_event(_log, logging.INFO, "engine.ended", status=engine.status)


def _write_config(scratch: Path, api_key: str) -> Path:
    """The engine's keys, as the YAML file of `--config`; JSON is YAML, and quoted digits stay text.

    The admin key is known to the engine alone: nobody has a use for its admin routes.
    """
    path = scratch / "keys.yaml"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"api-key": api_key, "admin-api-key": secrets.token_hex(32)}, file)
    return path


def _check_port_is_free(host: str, port: int) -> None:
    """Told now instead of after the engine has loaded for a minute. Raises HanmaruError (CONFIGURATION)."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise listening_failed("engine", "httpPort", host, port, error) from error
