"""`hanmaru plan`: what the operator would plan for the pools and deployments in files, without any cluster.

Effects are reading files and printing; every decision is `hanmaru_operator.plan`'s. Exit status 0 when each deployment
fits at least one pool it lists, 1 when one fits none, 2 when a file is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hanmaru_contracts.crd.kinds import API_VERSION
from hanmaru_contracts.crd.schema import Schema
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import DeploymentPool, ModelDeploymentSpec, Source
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.plan.config_json import MAX_CONFIG_BYTES, read_model
from hanmaru_operator.plan.engine import EnginePlan, Refused, plan_engine
from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.model import ModelFacts
from hanmaru_operator.plan.pools import PoolClaim, assign_nodes
from hanmaru_operator.plan.refusal import gib
from hanmaru_operator.plan.spec import Naming, engine_spec
from hanmaru_operator.quantity import parse_quantity
from hanmaru_operator.render.source import checkpoint_path
from hanmaru_operator.types import NodeFacts, NodeName, PoolName
from pydantic import ValidationError

MAX_FILE_BYTES = 8 << 20

SpecT = TypeVar("SpecT", bound=Schema)


@dataclass(slots=True)
class Documents:
    """What the files hold, in their order."""

    pools: dict[str, AcceleratorPoolSpec] = field(default_factory=dict)
    deployments: dict[str, ModelDeploymentSpec] = field(default_factory=dict)
    """By `namespace/name`."""
    nodes: list[NodeFacts] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One deployment on one pool."""

    deployment: str
    pool: EnginePool
    facts: ModelFacts
    spec: ModelDeploymentSpec
    entry: DeploymentPool
    nodes: int | None
    """Of the pool, among the files' nodes; None when the files have none."""
    found: EnginePlan | Refused


def run(files: Sequence[Path], configs: Mapping[str, Path], tokens: int, output: str) -> Iterator[str | int]:
    """Lines to print and, last, the exit status. `configs` are files by source, with "" for all others."""
    documents = read(files)
    outcomes = list(_outcomes(documents, configs))
    if output == "table":
        for outcome in outcomes:
            yield from _table(outcome, tokens)
    else:
        specs = [_spec(outcome) for outcome in outcomes if isinstance(outcome.found, EnginePlan)]
        yield from _dump(specs, output)
        for outcome in outcomes:
            if isinstance(outcome.found, Refused):
                yield f"# {outcome.deployment} on {outcome.pool.name}: {outcome.found.message}"
    fitting = {outcome.deployment for outcome in outcomes if isinstance(outcome.found, EnginePlan)}
    yield 0 if fitting == set(documents.deployments) else 1


def configs_by_source(given: Iterable[str]) -> dict[str, Path]:
    """`[SOURCE=]FILE` as given on the command line; "" for a file without a source."""
    return {source: Path(file) for source, _, file in (one.rpartition("=") for one in given)}


def read(files: Iterable[Path]) -> Documents:
    """All documents of our kinds, and nodes. Raises HanmaruError (CONFIGURATION)."""
    documents = Documents()
    for file in files:
        for document in _documents(file):
            _take(document, file, documents)
    if not documents.deployments:
        raise _wrong("the files have no ModelDeployment; give one with -f")
    return documents


def _documents(file: Path) -> list[dict[str, Any]]:
    try:
        found = list(yaml.safe_load_all(_bytes(file, MAX_FILE_BYTES)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _wrong(f"{file} is not YAML: {str(error).splitlines()[0]}") from error
    found = [inner for one in found for inner in (one.get("items") or [] if _kind(one) == "List" else [one])]
    return [one for one in found if isinstance(one, dict)]


def _kind(document: object) -> str:
    return str(document.get("kind", "")) if isinstance(document, dict) else ""


def _take(document: dict[str, Any], file: Path, into: Documents) -> None:
    kind, metadata = _kind(document), document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = str(metadata.get("name", ""))
    if kind == "Node":
        into.nodes.append(_node(document, metadata, name))
    elif kind in ("AcceleratorPool", "ModelDeployment"):
        if not name or document.get("apiVersion") != API_VERSION:
            raise _wrong(f"{file}: a {kind} needs metadata.name and apiVersion {API_VERSION}")
        if kind == "AcceleratorPool":
            into.pools[name] = _parse(AcceleratorPoolSpec, document, f"{file}: pool {name}")
        else:
            key = f"{metadata.get('namespace', 'default')}/{name}"
            into.deployments[key] = _parse(ModelDeploymentSpec, document, f"{file}: deployment {key}")


def _parse(kind: type[SpecT], document: dict[str, Any], where: str) -> SpecT:
    try:
        return kind.model_validate(document.get("spec"), extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _wrong(f"{where}: spec.{place}: {first['msg']}") from error


def _node(document: dict[str, Any], metadata: dict[str, Any], name: str) -> NodeFacts:
    status, spec = document.get("status"), document.get("spec")
    allocatable = (status.get("allocatable") if isinstance(status, dict) else None) or {}
    return NodeFacts(
        name=NodeName(name),
        labels={str(key): str(value) for key, value in (metadata.get("labels") or {}).items()},
        allocatable={str(key): parse_quantity(value) for key, value in allocatable.items()},
        is_ready=True,
        is_schedulable=not (isinstance(spec, dict) and spec.get("unschedulable")),
    )


def _outcomes(documents: Documents, configs: Mapping[str, Path]) -> Iterator[Outcome]:
    claims = [
        PoolClaim(PoolName(name), str(place), place, spec.nodes.selector_terms)
        for place, (name, spec) in enumerate(documents.pools.items())
    ]
    assigned = assign_nodes(claims, documents.nodes)
    pools = {name: EnginePool.from_spec(name, spec) for name, spec in documents.pools.items()}
    for deployment, spec in documents.deployments.items():
        for entry in spec.pools:
            if entry.name not in pools:
                raise _wrong(f"deployment {deployment} names pool {entry.name}, which no file has; add it with -f")
            facts = _facts(entry.source or spec.source, entry.name, configs)
            nodes = assigned[PoolName(entry.name)].nodes
            found = plan_engine(facts, pools[entry.name], entry.serving or spec.serving, nodes)
            count = len(nodes) if documents.nodes else None
            yield Outcome(deployment, pools[entry.name], facts, spec, entry, count, found)


def source_names(source: Source) -> tuple[str, ...]:
    """What `--model-config SOURCE=FILE` may call a source."""
    if source.hugging_face is not None:
        return (source.hugging_face.repo,)
    if source.persistent_volume_claim is not None:
        claim = source.persistent_volume_claim
        return (f"{claim.claim_name}/{claim.path}".rstrip("/"), claim.claim_name)
    return (source.image.reference,) if source.image is not None else ()


def _facts(source: Source, pool: str, configs: Mapping[str, Path]) -> ModelFacts:
    names = (*source_names(source), pool)
    file = next((configs[name] for name in (*names, "") if name in configs), None)
    if file is None:
        raise _wrong(f"no config.json for {names[0]}: give --model-config FILE, or --model-config {names[0]}=FILE")
    return read_model(_bytes(file, MAX_CONFIG_BYTES))


def _bytes(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as opened:
            found = opened.read(limit + 1)
    except OSError as error:
        raise _wrong(f"{file} cannot be read: {error.strerror}") from error
    if len(found) > limit:
        raise _wrong(f"{file} has more than {limit} bytes")
    return found


def _spec(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome.found, EnginePlan)
    namespace, _, name = outcome.deployment.partition("/")
    naming = Naming(
        model=ModelRef(namespace=namespace, name=name),
        spec=outcome.spec,
        entry=outcome.entry,
        checkpoint=checkpoint_path(outcome.entry.source or outcome.spec.source),
    )
    spec = engine_spec(outcome.found, outcome.facts, outcome.pool, naming)
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _dump(specs: Sequence[dict[str, Any]], output: str) -> Iterator[str]:
    if output == "json":
        yield json.dumps(list(specs), indent=2)
    else:
        for spec in specs:
            yield "---\n" + yaml.safe_dump(spec, sort_keys=False, allow_unicode=True).rstrip()


def _table(outcome: Outcome, tokens: int) -> Iterator[str]:
    found = outcome.found
    yield f"{outcome.deployment} on pool {outcome.pool.name}"
    if isinstance(found, Refused):
        for refusal in found.refusals:
            yield f"  cannot run: {refusal.message} ({refusal.reason})"
    else:
        rows = [*_model_rows(outcome.facts, found), *_plan_rows(outcome, found, tokens)]
        width = max(len(name) for name, _ in rows)
        yield from (f"  {name:<{width}}  {value}" for name, value in rows)
        yield from (f"  Experimental: {reason}" for reason in found.experimental)
        yield from (f"  note: {note}" for note in found.notes)
    for other in found.alternatives:
        yield f"  not {other.layout}: {other.why.message}"
    yield ""


def _model_rows(facts: ModelFacts, plan: EnginePlan) -> Iterator[tuple[str, str]]:
    total, active = facts.total_parameters / 1e9, facts.active_parameters / 1e9
    yield "model", f"{facts.architecture}, {total:.2f} B parameters, {active:.2f} B active, weights {facts.weights}"
    yield "licence", facts.licence or "none named in config.json"
    sizes = [f"{part.value} {gib(count)}" for part, count in facts.weight_bytes().items() if count]
    yield "checkpoint", ", ".join(sizes)
    cache = plan.cache
    yield (
        "cache, model's need",
        f"{cache.global_token_bytes / 1024:g} KiB a token in {facts.global_layers} global layers,"
        f" {gib(cache.sequence_bytes)} a sequence in {facts.sliding_layers} sliding ones",
    )


def _plan_rows(outcome: Outcome, plan: EnginePlan, tokens: int) -> Iterator[tuple[str, str]]:
    fit, each = plan.fit, "rank" if outcome.pool.is_cpu else "device"
    nodes = (
        f"{outcome.nodes} nodes in the files" if outcome.nodes is not None else "nodes: none given, all assumed healthy"
    )
    yield "layout", f"{plan.layout}: {plan.pods} x {plan.devices_per_pod} {plan.resource} ({nodes})"
    yield (
        f"weights a {each}",
        f"{gib(fit.weight_bytes)} of {gib(plan.device_bytes)}; {gib(plan.weight_bytes)} a replica",
    )
    yield f"cache a {each}", f"{gib(plan.kv_bytes_per_rank)} in pools of {plan.engine}"
    sliding = f", {plan.sliding_tokens:,} sliding" if plan.sliding_tokens else ""
    yield "tokens that fit", f"{plan.global_tokens:,} global{sliding}"
    shown = min(tokens, plan.context_tokens)
    yield "requests at once", f"{fit.running_requests} at most; {plan.sequences(shown)} of {shown:,} tokens each"
    drafts = f", {plan.request.draft_tokens} draft tokens" if plan.request.draft_tokens else ""
    yield "context", f"{plan.context_tokens:,} tokens{drafts}"
    ratio = f", sliding pool {fit.sliding_ratio:.4f} of the global one" if fit.sliding_ratio else ""
    share = f", memory fraction {fit.memory_fraction}" if fit.memory_fraction else ""
    yield "engine", f"pages of {plan.request.page_size}, prefill chunks of {fit.chunk_tokens}{ratio}{share}"


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
