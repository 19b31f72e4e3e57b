"""Real Redis installations of every kind, on loopback: one server, behind sentinels, a cluster; each with TLS or not.

All from the binary of `redis_server`: it is a sentinel by `--sentinel` and a cluster's node by `cluster-enabled`; TLS
is a `TlsFront` before each. Times are short, so that a failover takes seconds. Every server has the ACL users;
the default user, which the servers use among themselves, may do anything.
"""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from hanmaru_cluster.ports import free_port
from hanmaru_contracts.redis_keys import ACL_RULES
from hanmaru_redis.settings import Access, RedisSettings
from redis.backoff import NoBackoff
from redis.retry import Retry

from hanmaru_testing.certificates import TlsFiles
from hanmaru_testing.redis_server import redis_server_path, user_lines
from hanmaru_testing.tls_front import TlsFront

START_DEADLINE_S = 15.0
LOST_AFTER_MS = 700
"""Until a server that shows no life is taken for lost."""
HOST = "127.0.0.1"
PRIMARY = "mymaster"


@dataclass
class Server:
    """One redis-server process of any kind."""

    folder: Path
    lines: list[str]
    port: int
    """Where clients and other servers reach it."""
    own_port: int
    """Where it listens itself."""
    tls: TlsFiles | None = None
    password: str = ""
    """Of the administrator."""
    user: str | None = None
    """The administrator, where it is not the default user."""
    is_sentinel: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    front: TlsFront | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "redis.conf"
        if not self.is_sentinel or not file.exists():  # sentinels keep in it what they learn
            file.write_text("\n".join(self.lines) + "\n")
        if self.tls is not None and self.front is None:
            self.front = TlsFront(self.port, self.own_port, self.tls)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [redis_server_path(), str(file), *(["--sentinel"] if self.is_sentinel else [])],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        wait_for(lambda: bool(self.ask("PING")), f"{self.folder.name} does not start; see {self.log}")

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "log"

    def kill(self) -> None:
        """As a lost machine, but for the port, which refuses."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(5)
            self.process = None

    def end(self) -> None:
        """For good."""
        self.kill()
        if self.front is not None:
            self.front.close()
            self.front = None

    def pause(self) -> None:
        """Make it hang."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ask(self, *command: str) -> Any:
        """One command of the administrator's."""
        with self.admin() as client:
            return client.execute_command(*command)

    def admin(self) -> redis.Redis:
        """A client that may do anything; the caller closes it."""
        no_retry = Retry(NoBackoff(), 0)
        return redis.Redis(
            host=HOST,
            port=self.own_port,
            username=self.user,
            password=self.password,
            socket_timeout=2.0,
            retry=no_retry,
        )


@dataclass
class Installation:
    """Servers, and how a role reaches them."""

    url: str
    servers: list[Server]
    passwords: dict[str, str]
    folder: Path
    tls: TlsFiles | None = None
    sentinels: list[Server] = field(default_factory=list)
    sentinel_password: str | None = None

    def settings(self, role: str) -> dict[str, Any]:
        """Fields of `RedisSettings` for that role; its secrets lie in files."""
        given: dict[str, Any] = {
            "redis_url": self.url,
            "redis_user": role,
            "redis_password_file": self._secret(f"{role}.password", self.passwords[role]),
        }
        if self.tls is not None:
            given |= {
                "redis_ca_file": self.tls.ca,
                "redis_cert_file": self.tls.cert,
                "redis_key_file": self.tls.key,
            }
        if self.sentinel_password is not None:
            given["redis_sentinel_password_file"] = self._secret("sentinel.password", self.sentinel_password)
        return given

    def access(self, role: str, **changes: Any) -> Access:
        """How that role gets in."""
        return RedisSettings(**self.settings(role) | changes).redis_access(lambda path, what: path.read_text())

    def primary(self) -> Server:
        """The server that says that it is the primary; of an installation with one."""
        return next(s for s in self.servers if s.process is not None and s.ask("ROLE")[0] == b"master")

    def stop(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _secret(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path


@contextmanager
def single(folder: Path, *, tls: TlsFiles | None = None) -> Iterator[Installation]:
    """One server."""
    passwords = _passwords()
    server = _server(folder / "redis", passwords, tls)
    with Installation(f"{_scheme(tls)}://{HOST}:{server.port}/0", [server], passwords, folder, tls) as made:
        server.start()
        yield made


@contextmanager
def sentinel(folder: Path, *, sentinels: int = 3, tls: TlsFiles | None = None) -> Iterator[Installation]:
    """A primary with a replica, watched by sentinels that ask for a password of their own."""
    passwords, own = _passwords(), secrets.token_hex(8)
    servers = [_server(folder / f"redis-{index}", passwords, tls) for index in range(2)]
    watchers = [
        _sentinel(folder / f"sentinel-{i}", servers[0].port, servers[0].password, own, sentinels // 2 + 1, tls)
        for i in range(sentinels)
    ]
    url = f"{_scheme(tls)}+sentinel://{','.join(f'{HOST}:{w.port}' for w in watchers)}/{PRIMARY}"
    with Installation(url, servers, passwords, folder, tls, watchers, own) as made:
        servers[0].start()
        servers[1].lines.append(f"replicaof {HOST} {servers[0].port}")
        servers[1].start()
        wait_for(lambda: servers[1].ask("ROLE")[3] == b"connected", "the replica does not come up")
        for watcher in watchers:
            watcher.start()
        wait_for(
            lambda: all(_sees(watcher, replicas=1, others=sentinels - 1) for watcher in watchers),
            "the sentinels do not find each other and the replica",
        )
        yield made


@contextmanager
def cluster(folder: Path, *, replicas: int = 0, tls: TlsFiles | None = None) -> Iterator[Installation]:
    """Three primaries, each with so many replicas."""
    passwords = _passwords()
    nodes = [_node(folder / f"node-{index}", passwords, tls) for index in range(3 + 3 * replicas)]
    url = f"{_scheme(tls)}+cluster://{HOST}:{nodes[0].port},{HOST}:{nodes[1].port}"
    with Installation(url, nodes, passwords, folder, tls) as made:
        for node in nodes:
            node.start()
        _join(nodes)
        yield made


def _join(nodes: list[Server]) -> None:
    share = 16384 // 3 + 1
    for index, node in enumerate(nodes[:3]):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(index + 1))
        first, last = index * share, min((index + 1) * share, 16384)
        node.ask("CLUSTER", "ADDSLOTS", *(str(slot) for slot in range(first, last)))
    for node in nodes[1:]:
        nodes[0].ask("CLUSTER", "MEET", HOST, str(node.port), str(node.own_port + 10000))
    wait_for(lambda: all(len(node_ids(node)) == len(nodes) for node in nodes), "the nodes do not find each other")
    for index, node in enumerate(nodes[3:]):
        node.ask("CLUSTER", "REPLICATE", node_id(nodes[index % 3]))
    wait_for(
        lambda: (
            all(node.ask("CLUSTER INFO")["cluster_state"] == "ok" for node in nodes)
            and all(node.ask("ROLE")[3] == b"connected" for node in nodes[3:])
        ),
        "the cluster does not come up",
    )


def node_id(node: Server) -> str:
    """Its name in the cluster."""
    found: bytes | str = node.ask("CLUSTER MYID")
    return found.decode() if isinstance(found, bytes) else found


def node_ids(node: Server) -> list[str]:
    """The nodes that this one has shaken hands with, itself included."""
    return [str(one["node_id"]) for one in node.ask("CLUSTER NODES").values() if "handshake" not in one["flags"]]


def serving(installation: Installation, slot: int) -> Server:
    """The living node that says it serves the slot."""
    for node in installation.servers:
        if node.process is not None and any(first <= slot <= last for first, last in _own_slots(node)):
            return node
    raise AssertionError(f"nobody serves slot {slot}")


def _own_slots(node: Server) -> Iterator[tuple[int, int]]:
    me = node_id(node)
    for one in node.ask("CLUSTER NODES").values():
        if one["node_id"] == me and "master" in one["flags"]:
            yield from ((int(slots[0]), int(slots[-1])) for slots in one["slots"])


def wait_for(claim: Callable[[], bool], problem: str, *, within_s: float = START_DEADLINE_S) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if claim():
                return
        except (redis.RedisError, OSError, KeyError, IndexError):
            pass
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)


_ADMIN = secrets.token_hex(8)


def _server(folder: Path, passwords: dict[str, str], tls: TlsFiles | None, *more: str) -> Server:
    own_port = _free_port()
    port = _free_port() if tls else own_port
    lines = [
        f"bind {HOST}",
        f"port {own_port}",
        f"requirepass {_ADMIN}",
        f"masterauth {_ADMIN}",
        'save ""',
        "appendonly no",
        "repl-diskless-sync yes",
        "repl-diskless-sync-delay 0",
        f"replica-announce-ip {HOST}",
        f"replica-announce-port {port}",
        f"dir {folder}",
        *more,
        *user_lines(passwords),
    ]
    return Server(folder, lines, port, own_port, tls, _ADMIN)


def _node(folder: Path, passwords: dict[str, str], tls: TlsFiles | None) -> Server:
    node = _server(
        folder,
        passwords,
        tls,
        "cluster-enabled yes",
        "cluster-config-file nodes.conf",
        f"cluster-node-timeout {LOST_AFTER_MS}",
        "cluster-replica-validity-factor 0",
        "cluster-require-full-coverage no",
        f"cluster-announce-ip {HOST}",
    )
    node.lines += [f"cluster-announce-port {node.port}", f"cluster-announce-bus-port {node.own_port + 10000}"]
    return node


def _sentinel(
    folder: Path, primary_port: int, password: str, own_password: str, quorum: int, tls: TlsFiles | None
) -> Server:
    own_port = _free_port()
    port = _free_port() if tls else own_port
    lines = [
        f"bind {HOST}",
        f"port {own_port}",
        f"requirepass {own_password}",
        f"sentinel announce-ip {HOST}",
        f"sentinel announce-port {port}",
        f"sentinel monitor {PRIMARY} {HOST} {primary_port} {quorum}",
        f"sentinel auth-pass {PRIMARY} {password}",
        f"sentinel down-after-milliseconds {PRIMARY} {LOST_AFTER_MS}",
        f"sentinel failover-timeout {PRIMARY} 4000",
        f"dir {folder}",
    ]
    return Server(folder, lines, port, own_port, tls, own_password, is_sentinel=True)


def _sees(watcher: Server, *, replicas: int, others: int) -> bool:
    with watcher.admin() as client:
        state = client.sentinel_master(PRIMARY)
    return int(state["num-slaves"]) == replicas and int(state["num-other-sentinels"]) == others


def _scheme(tls: TlsFiles | None) -> str:
    return "rediss" if tls else "redis"


def _passwords() -> dict[str, str]:
    return {role: secrets.token_hex(8) for role in ACL_RULES}


def _free_port() -> int:
    """One whose cluster bus port (10000 above) is free too."""
    while True:
        port = free_port()
        with socket.socket() as bus, suppress(OSError):
            bus.bind((HOST, port + 10000))
            return port
