"""The facts of a deployment's checkpoints: kept in its ConfigMap, and asked of a pod where they are missing.

A deployment's reconcile calls `facts_of` each time. The pod mounts the source as the workers will; its ending brings
the next reconcile. What was found holds for as long as the source is written the same and no restart is asked for;
a failure is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hanmaru_contracts.crd.v1alpha1.model_deployment import Source
from hanmaru_contracts.errors import HanmaruError

from hanmaru_operator import kinds
from hanmaru_operator.apply import Applier
from hanmaru_operator.inspect_model import Report, read_report
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.model import ModelFacts
from hanmaru_operator.render.facts import facts_config_map, facts_config_map_name, model_facts_pod
from hanmaru_operator.render.identity import Owner
from hanmaru_operator.render.revision import digest, source_hash
from hanmaru_operator.render.settings import RenderSettings
from hanmaru_operator.types import ObjectKey

RETRY_S = 30.0
"""After a failure that may pass: the hub or the volume was away."""
RETRY_PERMANENT_S = 600.0
"""After one that will not pass by itself; somebody may have mended the file."""


@dataclass(frozen=True, slots=True)
class Known:
    """Read."""

    facts: ModelFacts
    revision: str
    """The commit of the checkpoint; empty where its source names none."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Not read yet, or not readable."""

    problem: str
    """Empty: the pod has not answered yet."""
    pod: str = ""
    """Who is to answer."""
    retry_at: float | None = None
    waits_for: str = ""
    """Why the pod does not start, if it says so."""


class ModelFactsReader:
    """Asks and remembers, in the cluster alone."""

    def __init__(self, store: Store, applier: Applier, settings: RenderSettings) -> None:
        self._store = store
        self._applier = applier
        self._settings = settings

    async def facts_of(
        self, owner: Owner, sources: Iterable[Source], restarted_at: str, now: float
    ) -> dict[str, Known | Unknown]:
        """By `source_hash`, each source's facts as far as they are known. Raises ClusterError, ForeignObject.

        With each new `restarted_at` they are read anew: a file was replaced, a branch has moved.
        """
        by_hash = {_reading(source, restarted_at): source for source in sources}
        key = ObjectKey(kinds.CONFIG_MAPS.kind, owner.namespace, facts_config_map_name(owner.name))
        kept = _kept(self._store.get(key))
        answers: dict[str, Known | Unknown] = {}
        found: dict[str, Mapping[str, Any]] = {}
        for reading, source in by_hash.items():
            known = _read(kept.get(reading))
            if known is None:
                answers[reading] = await self._ask(owner, reading, source, now)
                known_now = answers[reading]
                known = known_now if isinstance(known_now, Known) else None
            if known is not None:
                answers[reading] = known
                found[reading] = {"facts": json.loads(known.facts.to_json()), "revision": known.revision}
        if found:
            await self._applier.ensure(facts_config_map(owner, found))
        # Only now: a pod's answer must not be lost between the pod and the ConfigMap.
        await self._dismiss(owner, {reading for reading, answer in answers.items() if isinstance(answer, Unknown)})
        return {source_hash(source): answers[reading] for reading, source in by_hash.items()}

    async def _ask(self, owner: Owner, reading: str, source: Source, now: float) -> Known | Unknown:
        key = _pod_key(owner, reading)
        pod = self._store.get(key)
        if pod is None or pod.owner_uid != owner.uid:
            await self._applier.ensure(model_facts_pod(owner, source, key.name, self._settings))
            return Unknown("", key.name)
        if not pod.pod.has_ended or pod.is_terminating:
            return Unknown("", key.name, waits_for=pod.pod.trouble)
        report = _report(pod)
        if report.facts is not None:
            return Known(report.facts, report.revision)
        retry_at = pod.created_at + (RETRY_PERMANENT_S if report.is_permanent else RETRY_S)
        # Further ahead than any retry lies only a clock that jumped.
        if not now < retry_at < now + RETRY_PERMANENT_S + RETRY_S:
            await self._applier.delete(pod)
        return Unknown(report.error, key.name, retry_at)

    async def _dismiss(self, owner: Owner, asked: set[str]) -> None:
        """Pods that have been heard, or whose source nobody names any more."""
        meant = {_pod_key(owner, reading) for reading in asked}
        children = self._store.children(owner.namespace, owner.name)
        await self._applier.prune(
            child
            for child in children
            if child.key.kind == kinds.PODS.kind and child.pod.replica is None and child.key not in meant
        )


def _reading(source: Source, restarted_at: str) -> str:
    """Name of one reading of a source."""
    of_source = source_hash(source)
    return digest([of_source, restarted_at])[: len(of_source)] if restarted_at else of_source


def _pod_key(owner: Owner, reading: str) -> ObjectKey:
    return ObjectKey(kinds.PODS.kind, owner.namespace, f"{owner.name}-facts-{reading}")


def _kept(config_map: Entry | None) -> Mapping[str, str]:
    return config_map.data if config_map is not None else {}


def _read(text: str | None) -> Known | None:
    """What the ConfigMap says; None when a hand has spoilt it, which asks anew."""
    if text is None:
        return None
    try:
        report = read_report(text)
    except HanmaruError:
        return None
    return Known(report.facts, report.revision) if report.facts is not None else None


def _report(pod: Entry) -> Report:
    try:
        return read_report(pod.pod.report)
    except HanmaruError as error:
        return Report(None, "", f"{error.message}: see `kubectl describe pod {pod.key.name}`")
