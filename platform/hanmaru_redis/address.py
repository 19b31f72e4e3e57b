"""What a Redis URL says: which kind of installation, its hosts, TLS or not. Pure.

`settings` reads it once. The three kinds have one form, so that one setting says where Redis is, whatever it is.
Credentials and files never stand in a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import REDIS_PORT

SENTINEL_PORT = 26379


class Kind(StrEnum):
    """Kinds of installations."""

    SINGLE = "single"
    """One server, or one address in front of some."""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Host:
    """Where something listens."""

    name: str
    """Host name or address, an IPv6 address without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is."""

    kind: Kind
    hosts: tuple[Host, ...]
    """The server, the sentinels, or some of a cluster's nodes."""
    has_tls: bool
    primary: str = ""
    """Name under which the sentinels watch the primary."""
    database: int = 0


_SCHEMES = {
    "redis": (Kind.SINGLE, False),
    "rediss": (Kind.SINGLE, True),
    "redis+sentinel": (Kind.SENTINEL, False),
    "rediss+sentinel": (Kind.SENTINEL, True),
    "redis+cluster": (Kind.CLUSTER, False),
    "rediss+cluster": (Kind.CLUSTER, True),
}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")


def read_address(url: str) -> Address:
    """The URL's meaning. Raises HanmaruError (CONFIGURATION), which quotes nothing that could be a password."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise _wrong(f"a Redis URL begins with one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    if "@" in rest:
        raise _wrong("a Redis URL holds no user and no password; name the user and the password's file beside it")
    if "?" in rest or "#" in rest:
        raise _wrong("a Redis URL has no options; timeouts, TLS files and names are settings of their own")
    kind, has_tls = _SCHEMES[scheme]
    hosts_part, _, path = rest.partition("/")
    hosts = tuple(_read_host(text, kind) for text in hosts_part.split(","))
    if kind is Kind.SINGLE and len(hosts) > 1:
        raise _wrong(f"{scheme}:// has one host; several are written {scheme}+sentinel:// or {scheme}+cluster://")
    primary, database = _read_path(path, kind)
    return Address(kind, hosts, has_tls, primary, database)


def _read_host(text: str, kind: Kind) -> Host:
    found = _HOST.fullmatch(text)
    port = int((found and found["port"]) or (SENTINEL_PORT if kind is Kind.SENTINEL else REDIS_PORT))
    if found is None or not 0 < port < 65536:
        raise _wrong(f"{text!r} in the Redis URL is no host; write host:port, several with commas between them")
    return Host(found["v6"] or found["name"], port)


def _read_path(path: str, kind: Kind) -> tuple[str, int]:
    """(name of the primary, database)."""
    primary, _, database = path.rstrip("/").partition("/") if kind is Kind.SENTINEL else ("", "", path.rstrip("/"))
    if kind is Kind.SENTINEL and not primary:
        raise _wrong("the Redis URL does not name the primary that the sentinels watch; end it with /mymaster")
    if database and not database.isdecimal():
        raise _wrong(f"{database!r} at the end of the Redis URL is no number of a database")
    if kind is Kind.CLUSTER and int(database or 0):
        raise _wrong("a Redis Cluster has database 0 alone; leave the number out of the URL")
    return primary, int(database or 0)


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
