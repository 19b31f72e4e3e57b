"""A client of the primary that the sentinels name at the moment.

`opening` makes it. The library asks the sentinels with each new connection; what is added: all of it is closed
together, and a new primary is told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

from hanmaru_contracts.log import log_event
from redis.asyncio import Redis
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.exceptions import RedisError

from hanmaru_redis.address import Address, Host
from hanmaru_redis.tls import SentinelTlsConnection

log = logging.getLogger(__name__)


class SentinelRedis(Redis):
    """Behaves as a client of one server; which one that is may change."""

    def __init__(self, sentinels: Sequence[Redis], address: Address, **options: Any) -> None:
        """Owns `sentinels`; `options` are for connections to the primary."""
        asked = _Sentinels(sentinels)
        kind = SentinelTlsConnection if address.has_tls else SentinelManagedConnection
        pool = _PrimaryPool(address.primary, asked, connection_class=kind, db=address.database, **options)
        super().__init__(connection_pool=pool)
        self._asked = asked

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close connections to the primary and to the sentinels."""
        await self.connection_pool.aclose()
        await self._asked.aclose()


class _Sentinels(Sentinel):
    """Asked one after the other; who answered last is asked first."""

    def __init__(self, clients: Sequence[Redis]) -> None:
        super().__init__([])
        self.sentinels = list(clients)

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The library's, but that it says why, and loses no sentinel when several ask at once. Raises
        MasterNotFoundError.
        """
        problem: Exception | None = None
        for client in tuple(self.sentinels):
            try:
                states = cast("dict[str, dict[str, Any]]", await client.sentinel_masters())
            except (RedisError, OSError) as error:
                problem = error
                continue
            state = states.get(service_name)
            if state and self.check_master_state(state, service_name):
                # Another task may have put them in another order since.
                self.sentinels.sort(key=lambda sentinel: sentinel is not client)
                return state["ip"], state["port"]
        raise MasterNotFoundError(f"no sentinel names a primary {service_name} that lives") from problem


class _PrimaryPool(SentinelConnectionPool):
    """Connections to the primary; idle ones are dropped when it is another."""

    async def get_master_address(self) -> tuple[str, int]:
        """Ask the sentinels, and tell when the answer is new."""
        before = self.master_address
        address: tuple[str, int] = await super().get_master_address()
        if address != before:
            event = "redis.primary_found" if before is None else "redis.primary_changed"
            log_event(log, logging.INFO, event, name=self.service_name, address=str(Host(*address)))
        return address
