"""Tenants on their way from a file into Redis, and from Redis into this process's directory of keys.

`TenantFileSource` runs where a tenants file is given (a laptop; on a cluster the operator writes Redis); `TenantStore`
runs in every gateway. Both are loops for the composition root's TaskGroup: they outlive a Redis that is gone, broken
or emptied. A change in the file is in force `FILE_POLL_S + STORE_POLL_S` and a little later, under 2 s.

Redis answers bytes here (`decode_responses` off). Any gateway may write; the file read last wins until it changes.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from hanmaru_contracts.crd.schema import Name
from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import TenantId
from hanmaru_contracts.redis_keys import TENANTS, TENANTS_VERSION
from hanmaru_contracts.wire.directory import Table, tenants_table
from hanmaru_redis import UNREACHABLE, Redis
from hanmaru_redis.explaining import explain
from pydantic import TypeAdapter, ValidationError

from hanmaru_gateway.admission.identity import Directory
from hanmaru_gateway.admission.tenants_file import load_tenants_file

FILE_POLL_S = 1.0
STORE_POLL_S = 0.5
CALL_TIMEOUT_S = 1.0
"""For one exchange with Redis."""

_log = logging.getLogger(__name__)

_names: TypeAdapter[str] = TypeAdapter(Name)


class TenantFileSource:
    """Keeps Redis's tenants equal to a file's; a broken file leaves them as they were."""

    def __init__(self, redis: Redis, path: Path, *, poll_s: float = FILE_POLL_S) -> None:
        self._redis = redis
        self._path = path
        self._poll_s = poll_s
        self._seen: tuple[int, int, int] | None = None
        self._table: Table | None = None
        self._must_write = False
        self._is_reachable = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(self._poll_s)

    async def step(self) -> None:
        """Look at the file and at Redis once, and mend what differs."""
        await self._look_at_file()
        if self._table is None:
            return
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if self._must_write or await self._is_gone():
                    await self._write()
        except UNREACHABLE as error:
            if self._is_reachable:
                log_event(_log, logging.WARNING, "tenants.store_unreachable", problem=explain(error))
            self._is_reachable = False
        else:
            self._is_reachable = True

    async def _look_at_file(self) -> None:
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError:
            seen = (0, 0, 0)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            # In a thread: YAML of a thousand tenants takes a second, in which streams must go on.
            file = await asyncio.to_thread(load_tenants_file, self._path)
        except HanmaruError as error:
            log_event(_log, logging.ERROR, "tenants.file_broken", problem=error.message, kept=self._table is not None)
            return
        self._table = tenants_table({TenantId(tenant.name): tenant for tenant in file.tenants})
        self._must_write = True
        log_event(_log, logging.INFO, "tenants.file_read", tenants=len(file.tenants), version=self._table.digest[:12])

    async def _is_gone(self) -> bool:
        assert self._table is not None
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.exists(TENANTS_VERSION)
            pipe.exists(TENANTS)
            version, specs = await pipe.execute()
        return not version or (bool(self._table.entries) and not specs)

    async def _write(self) -> None:
        assert self._table is not None
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(TENANTS)
            if self._table.entries:
                pipe.hset(TENANTS, items=[part for entry in self._table.entries.items() for part in entry])
            pipe.set(TENANTS_VERSION, self._table.digest)
            await pipe.execute()
        self._must_write = False
        entries = self._table.entries
        log_event(_log, logging.INFO, "tenants.written", tenants=len(entries), version=self._table.digest[:12])


class TenantStore:
    """This process's directory of keys, as fresh as Redis allows; without Redis it stays what it was."""

    def __init__(self, redis: Redis, *, poll_s: float = STORE_POLL_S) -> None:
        self._redis = redis
        self._poll_s = poll_s
        self._version: bytes | None = None
        self._is_reachable = True
        self.directory = Directory({})
        """Whose keys are whose. Replaced as a whole."""
        self.loaded = asyncio.Event()
        """Set once tenants have been read for the first time."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(self._poll_s)

    async def step(self) -> None:
        """Ask Redis once, and rebuild the directory when tenants changed."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._refresh()
        except UNREACHABLE as error:
            if self._is_reachable:
                log_event(_log, logging.WARNING, "tenants.store_unreachable", problem=explain(error))
            self._is_reachable = False
        else:
            self._is_reachable = True

    async def _refresh(self) -> None:
        version = await self._redis.get(TENANTS_VERSION)
        if version is None:
            return  # an emptied Redis; whoever owns the tenants restores it, and keys stay good meanwhile
        if version != self._version:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(TENANTS_VERSION)
                pipe.hgetall(TENANTS)
                version, specs = await pipe.execute()
            if version is None:
                return
            self.directory = Directory(_read(specs))
            self._version = version
            self.loaded.set()
            if self.directory.shared_keys:
                log_event(_log, logging.ERROR, "tenants.keys_shared", credentials=", ".join(self.directory.shared_keys))
            log_event(_log, logging.INFO, "tenants.loaded", tenants=len(self.directory), version=_short(version))


def _read(specs: dict[bytes, bytes]) -> dict[TenantId, TenantSpec]:
    """Tenants by id. An entry that is no tenant is left out and said: one mistake does not lock out everybody."""
    tenants: dict[TenantId, TenantSpec] = {}
    for raw_name, raw_spec in specs.items():
        name = raw_name.decode("utf-8", "replace")
        try:
            _names.validate_python(name)  # ids become parts of Redis keys
            tenants[TenantId(name)] = TenantSpec.model_validate_json(raw_spec)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            problem = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:3])
            log_event(_log, logging.ERROR, "tenants.entry_skipped", tenant=name, problem=problem)
    return tenants


def _short(version: bytes) -> str:
    return version[:12].decode("utf-8", "replace")
