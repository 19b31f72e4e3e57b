"""The worker's settings, read once from its environment and the files it names.

`launch` calls `read_settings`; nobody reads the environment later, except that the engine inherits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ReplicaId
from hanmaru_contracts.wire.engine_spec import EngineSpec
from hanmaru_redis.settings import Access, read_access
from pydantic import ValidationError

from hanmaru_worker.secret_files import read_key, read_secret


@dataclass(frozen=True, slots=True)
class GroupRank:
    """This worker's place in its group: one rank a machine, rank 0 serves."""

    index: int = 0
    size: int = 1
    address: str | None = None
    """`host:port` where rank 0 waits for the others; None in a group of one."""
    peers: tuple[str, ...] = ()
    """Host names of all ranks in order of rank. Empty: nobody's connections are refused by address."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank serves and registers."""
        return self.index == 0

    @property
    def leader_host(self) -> str:
        """Host of rank 0, where its supervisor answers too. Only for groups of more than one."""
        assert self.address is not None
        return self.address.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything one worker process is told."""

    spec: EngineSpec
    replica: ReplicaId
    replica_key: bytes = field(repr=False)
    redis: Access
    rank: GroupRank
    advertise_host: str
    """Gateways reach the engine here, and it is the one address that the engine and the supervisor listen on."""
    log_dir: Path

    @property
    def engine_port(self) -> int:
        """Of this rank."""
        return self.spec.http_port + self._port_offset(self.rank.index)

    @property
    def engine_address(self) -> str:
        """`host:port` of this rank's engine."""
        host = f"[{self.advertise_host}]" if ":" in self.advertise_host else self.advertise_host
        return f"{host}:{self.engine_port}"

    @property
    def supervisor_port(self) -> int:
        """Of this rank."""
        return self.spec.supervisor_port + self._port_offset(self.rank.index)

    @property
    def peers(self) -> tuple[tuple[str, int], ...]:
        """Host and supervisor's port of each rank, in order; empty where nobody said their names."""
        return tuple(
            (host, self.spec.supervisor_port + self._port_offset(index)) for index, host in enumerate(self.rank.peers)
        )

    def _port_offset(self, index: int) -> int:
        """Ranks on loopback share a machine; elsewhere each has an address of its own, and all have the same ports."""
        return index if is_loopback(self.advertise_host) else 0


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from the variables in `names`. Raises HanmaruError (CONFIGURATION) that names what is wrong."""
    home = Path(environ.get(names.ENV_HOME) or Path.home() / ".cache" / "hanmaru")
    spec = _read_spec(Path(_required(environ, names.ENV_ENGINE_SPEC)))
    if spec.shared_cache is not None:
        # The engine reads what they name; that they are missing is better said here.
        for variable in (names.ENV_TIER_KEY_FILE, names.tier_variable(names.ENV_REDIS_URL)):
            _required(environ, variable)
    return Settings(
        spec=spec,
        replica=ReplicaId(_required(environ, names.ENV_REPLICA_ID)),
        replica_key=read_key(Path(_required(environ, names.ENV_REPLICA_KEY_FILE)), "replica key"),
        redis=read_access(environ, lambda path, _what: read_secret(path)),
        rank=_read_rank(environ),
        advertise_host=environ.get(names.ENV_ADVERTISE_HOST) or "127.0.0.1",
        log_dir=Path(environ.get(names.ENV_LOG_DIR) or home / "logs"),
    )


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise _wrong(f"{name} is not set")
    return value


def _read_spec(path: Path) -> EngineSpec:
    try:
        return EngineSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _wrong(f"cannot read the engine spec {path}: {error.strerror}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise _wrong(f"the engine spec {path} is not valid: {faults}") from error


def _read_rank(environ: Mapping[str, str]) -> GroupRank:
    index = _whole_number(environ, names.ENV_GROUP_RANK, default=0)
    size = _whole_number(environ, names.ENV_GROUP_SIZE, default=1)
    address = environ.get(names.ENV_GROUP_ADDRESS) or None
    if size < 1 or not 0 <= index < size:
        raise _wrong(f"{names.ENV_GROUP_RANK}={index} is not a rank of a group of {names.ENV_GROUP_SIZE}={size}")
    if size > 1:
        host, _, port = (address or "").rpartition(":")
        if not host or not port.isdecimal():
            raise _wrong(f"a group of {size} needs {names.ENV_GROUP_ADDRESS}=host:port of rank 0; it is {address!r}")
    peers = tuple(filter(None, environ.get(names.ENV_GROUP_PEERS, "").split(",")))
    if peers and len(peers) != size:
        raise _wrong(f"{names.ENV_GROUP_PEERS} names {len(peers)} hosts of a group of {size}; name each rank's")
    return GroupRank(index, size, address if size > 1 else None, peers if size > 1 else ())


def _whole_number(environ: Mapping[str, str], name: str, *, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    if not text.isdecimal():
        raise _wrong(f"{name}={text!r} is not a whole number")
    return int(text)


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
