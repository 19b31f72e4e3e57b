"""All tenants and routes together: planned, handed to the directory that keeps Redis so, and said in statuses.

Keys and names are unique across tenants and routes across deployments, so all of it is one key of the queue. Nothing is
handed on before the store has been filled once: a tenant that was not read yet must not be taken out.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping

from hanmaru_contracts.crd.v1alpha1.model_deployment import Access
from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec, TenantStatus
from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.directory import routes_table, tenants_table
from pydantic import ValidationError

from hanmaru_operator import kinds
from hanmaru_operator.apply import Applier
from hanmaru_operator.directory import Directory
from hanmaru_operator.events import Recorder, notes
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.tenant import (
    OfferedModel,
    TenantFacts,
    TenantObject,
    TenantSettings,
    TenantVerdict,
    plan_tenants,
)
from hanmaru_operator.reconcile.namespaces import namespace_labels
from hanmaru_operator.reconcile.routes import Routes, claim_of
from hanmaru_operator.status import merge_conditions
from hanmaru_operator.types import ObjectKey


class TenantsReconciler:
    """For the one key that means all tenants."""

    def __init__(
        self,
        *,
        store: Store,
        routes: Routes,
        applier: Applier,
        directory: Directory,
        settings: TenantSettings,
        record: Recorder,
        now: Callable[[], float],
    ) -> None:
        """`now`: Unix seconds."""
        self._store = store
        self._routes = routes
        self._applier = applier
        self._directory = directory
        self._settings = settings
        self._record = record
        self._now = now

    async def reconcile(self, _: ObjectKey) -> float | None:
        """Plan everything anew; seconds until the next key expires. Raises ClusterError."""
        routes = self._routes.plan()
        tenants = self._store.of_kind(kinds.TENANTS.kind)
        now = self._now()
        plan = plan_tenants(
            TenantFacts(
                tenants=[_tenant(entry) for entry in tenants if not entry.is_terminating],
                secrets=self._secrets(),
                models=self._models(),
                namespaces=namespace_labels(self._store),
                settings=self._settings,
                is_store_reachable=self._directory.is_reachable,
                now=now,
            )
        )
        self._directory.want(routes=routes_table(routes.routes), tenants=tenants_table(plan.specs))
        for entry in tenants:
            verdict = plan.verdicts.get((entry.key.namespace, entry.key.name))
            if verdict is not None:
                await self._show(entry, verdict)
        return None if plan.next_change_at is None else max(0.0, plan.next_change_at - now)

    def _secrets(self) -> dict[tuple[str, str], Mapping[str, bytes]]:
        return {
            (entry.key.namespace, entry.key.name): {name: _decoded(text) for name, text in entry.data.items()}
            for entry in self._store.of_kind(kinds.SECRETS.kind)
        }

    def _models(self) -> dict[ModelId, OfferedModel]:
        routes = self._routes.plan()
        models = {}
        for entry in self._store.of_kind(kinds.MODEL_DEPLOYMENTS.kind):
            if not entry.is_terminating:
                claim = claim_of(entry)
                models[claim.model] = OfferedModel(claim.route, _access(entry), routes.owns(claim))
        return models

    async def _show(self, entry: Entry, verdict: TenantVerdict) -> None:
        old = entry.status.get("conditions") or ()
        conditions = merge_conditions(old, verdict.statements, generation=entry.generation, now=self._now())
        status = TenantStatus(
            observed_generation=entry.generation,
            credentials=verdict.credentials,
            models=verdict.models,
            conditions=conditions,
        )
        await self._applier.ensure_status(entry, status.model_dump(mode="json", by_alias=True, exclude_none=True))
        for note in notes(old, conditions):
            self._record(entry, note)


def _tenant(entry: Entry) -> TenantObject:
    spec, problem = None, ""
    try:
        spec = TenantSpec.model_validate_json(entry.spec_json)
    except ValidationError as error:
        # Places and reasons only: the input holds keys' hashes.
        problem = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    return TenantObject(
        entry.key.namespace, entry.key.name, entry.uid, entry.generation, entry.created_at, spec, problem
    )


def _access(deployment: Entry) -> Access:
    """An access that cannot be read grants nobody but its own namespace."""
    try:
        return Access.model_validate(deployment.spec.get("access") or {})
    except ValidationError:
        return Access()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
