"""TLS to Redis: one context for all connections, made anew when one of its files changes, and a name to insist on.

The library makes a context for every connection, which reads and parses every authority of the system each time, and
has no way to check a certificate against another name than the address. Certificates are always verified.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import SentinelManagedConnection

_Stamp = tuple[tuple[int, int] | None, ...]


class Tls:
    """What to trust, who to be, and which name to expect."""

    def __init__(
        self, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None, name: str = ""
    ) -> None:
        """Without `ca_file` the system's authorities; without `name` the address must be in the certificate."""
        self._ca_file = ca_file
        self._cert_file = cert_file
        self._key_file = key_file
        self.name = name
        self._context: ssl.SSLContext | None = None
        self._stamp: _Stamp = ()

    def context(self) -> ssl.SSLContext:
        """As the files say now: whoever renews certificates restarts nothing. Raises HanmaruError (CONFIGURATION)."""
        stamp = tuple(_stamp_of(file) for file in (self._ca_file, self._cert_file, self._key_file))
        if self._context is None or stamp != self._stamp:
            self._context = self._make()
            self._stamp = stamp
        return self._context

    def _make(self) -> ssl.SSLContext:
        file, what = self._ca_file, "authorities for Redis"
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
            if self._cert_file is not None:
                file, what = self._cert_file, "client certificate for Redis and its key"
                context.load_cert_chain(self._cert_file, self._key_file)
        except (OSError, ssl.SSLError) as error:
            raise HanmaruError(
                ErrorCode.CONFIGURATION,
                f"the {what} cannot be read from {file}: {getattr(error, 'reason', None) or type(error).__name__}",
            ) from error
        return context


def _stamp_of(file: Path | None) -> tuple[int, int] | None:
    try:
        return (file.stat().st_mtime_ns, file.stat().st_ino) if file else None
    except OSError:
        return None


class TlsConnection(Connection):
    """A connection by a `Tls`."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, object]:
        try:
            context = self._tls.context()
        except HanmaruError as error:  # while somebody replaces the files
            raise OSError(error.message) from error
        return {**super()._connection_arguments(), "ssl": context, "server_hostname": self._tls.name or self.host}


class SentinelTlsConnection(SentinelManagedConnection, TlsConnection):
    """One to whatever the sentinels call the primary."""
