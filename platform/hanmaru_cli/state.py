"""The folder that `hanmaru up` keeps: secrets that outlive a run, the lock that says one is running, and its record.

Used by `up`, `down` and whoever wants to reach a running copy (`read_running`). Everything in it is for its owner
alone. What stands in the planned files is decided in `laptop`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ENV_HOME

_OWNER_ONLY = 0o600
_OWNER_ONLY_FOLDER = 0o700
_SAME_START_S = 5.0


def home(environment: Mapping[str, str]) -> Path:
    """Folder for all state of this machine."""
    return Path(environment.get(ENV_HOME) or Path.home() / ".cache" / "hanmaru").expanduser().absolute()


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What a running `hanmaru up` tells other commands about itself."""

    pid: int
    up_id: str
    """Every process of this run carries it in its environment (`HANMARU_UP_ID`)."""
    started_at: float
    """Unix seconds of the start of process `pid`: tells it from a later process with the same number."""
    ready: bool
    """False while it starts."""
    http_url: str
    grpc_address: str
    metrics_url: str
    route: str
    """What callers put in `model`."""
    otlp_endpoint: str | None
    temporary: str
    """Folder of sockets and Ray's files, gone when the run ends."""
    logs: str

    def lives(self) -> bool:
        """Whether process `pid` is still the one that wrote this."""
        try:
            # Numbers are used again. A corrected clock moves start times by seconds; numbers come back much later.
            return abs(psutil.Process(self.pid).create_time() - self.started_at) < _SAME_START_S
        except psutil.NoSuchProcess:
            return False


class StateFolder:
    """Paths below `<home>/up`, and the effects on them. Errors of the file system come out as `HanmaruError`."""

    def __init__(self, home: Path) -> None:
        self.root = home / "up"
        self.logs = self.root / "logs"
        self.running = self.root / "running.json"

    def prepare(self) -> None:
        """Make the folders, for their owner alone."""
        try:
            for folder in (self.root, self.logs, self.root / "redis"):
                folder.mkdir(parents=True, exist_ok=True, mode=_OWNER_ONLY_FOLDER)
                folder.chmod(_OWNER_ONLY_FOLDER)
        except OSError as error:
            raise self._unusable(error) from error

    def try_lock(self) -> int | None:
        """An open descriptor that holds the folder's lock, or None while another run holds it.

        The kernel frees the lock when its last holder ends, however that happens: a lock is never stale.
        """
        try:
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def keep(self, name: str, make: Callable[[], str]) -> str:
        """The one-line secret in file `name`: made the first time, the same ever after."""
        path = self.root / name
        with suppress(FileNotFoundError):
            kept = path.read_text().strip()
            if kept:
                return kept
        made = make()
        self.write(path, made + "\n")
        return made

    def write(self, path: Path, content: str) -> None:
        """Replace the file as a whole; only its owner may read it."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OWNER_ONLY)
            with os.fdopen(descriptor, "w") as file:
                file.write(content)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise self._unusable(error) from error

    def write_running(self, running: Running) -> None:
        """Say what runs."""
        self.write(self.running, msgspec.json.encode(running).decode())

    def read_running(self) -> Running | None:
        """What the last run said about itself; whether it still runs, only the lock tells."""
        try:
            return msgspec.json.decode(self.running.read_bytes(), type=Running)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def forget_running(self) -> None:
        """Nothing runs any more."""
        self.running.unlink(missing_ok=True)

    def _unusable(self, error: OSError) -> HanmaruError:
        return HanmaruError(
            ErrorCode.CONFIGURATION,
            f"cannot write below {self.root}: {error.strerror or error}; free space there, or set {ENV_HOME} to a"
            " folder that can be written",
        )
