"""A model on a pool: how one replica of its engine looks there, or why it cannot. Pure and without memory of its own.

`plan_engine` settles what was asked for, tries the layouts of `shapes` from the fewest devices up, and takes the first
that holds the context and a reasonable number of requests. What was asked for is honoured or refused, never changed.
A plan depends on the model, the pool's spec and the deployment alone; nodes can only refuse it, so a broken device
never changes the shape of what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hanmaru_contracts.crd.v1alpha1.model_deployment import KvCacheTier, Serving, SpeculativeType
from hanmaru_contracts.wire.engine_spec import EngineType, Parallelism

from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.fit import REASONABLE_REQUESTS, Fit, Request, fit, is_possible
from hanmaru_operator.plan.memory import ModelCache, model_cache
from hanmaru_operator.plan.model import DTYPE_BYTES, ModelFacts
from hanmaru_operator.plan.node_fitness import fit_nodes, pool_refusal
from hanmaru_operator.plan.refusal import Reason, Refusal, gib
from hanmaru_operator.plan.shapes import Shape, candidates
from hanmaru_operator.plan.weights import replica_weight_bytes
from hanmaru_operator.types import NodeFacts

HYBRID_KV = "hybrid-kv"
MTP = "mtp"
WEIGHT_ONLY = "-weight-only"
"""Suffix of a dtype that a device can store and not compute with: `fp8-weight-only` on A100."""
DEFAULT_DRAFT_TOKENS = 3
"""LG's own command line for K-EXAONE."""
DEFAULT_PAGE_SIZE = 16
"""The largest page whose answers our tests compare with the reference (`docs/sglang-plugin.md`)."""
MOST_ALTERNATIVES = 8


@dataclass(frozen=True, slots=True)
class Alternative:
    """A layout that was not taken, and why."""

    layout: str
    ranks: int
    why: Refusal


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One replica of the engine on one pool."""

    pool: str
    resource: str
    engine: EngineType
    sizes: Parallelism
    pods: int
    ranks_per_pod: int
    devices_per_pod: int
    """Of the pool's resource: what a pod asks for."""
    dtype: str
    """Of activations and cache."""
    weights: str
    """Type of the weights as they are stored."""
    weight_bytes: int
    """Of the whole replica, copies included."""
    cache: ModelCache
    """What the architecture needs."""
    fit: Fit
    """What the engine holds on each rank."""
    tier: KvCacheTier | None
    """The shared cache, where one was asked for and the engine has one; its memory is not the engine's."""
    device_bytes: int
    features: tuple[str, ...]
    notes: tuple[str, ...]
    """What is special about the plan."""
    experimental: tuple[str, ...]
    """Why the plan is Experimental; empty when it is not."""
    alternatives: tuple[Alternative, ...]

    @property
    def devices(self) -> int:
        """Of the resource, of the whole replica."""
        return self.pods * self.devices_per_pod

    @property
    def layout(self) -> str:
        """For people: `tensor 16 over 2 pods`."""
        return self.fit.shape.text

    @property
    def context_tokens(self) -> int:
        """Longest prompt and output together."""
        return self.request.context_tokens

    @property
    def global_tokens(self) -> int:
        """Tokens that the replica's global layers hold, over all copies of the attention layers."""
        return self.fit.pools.global_tokens * self.sizes.data

    @property
    def sliding_tokens(self) -> int:
        """Tokens that its sliding layers hold; 0 where all layers share one pool."""
        return self.fit.pools.sliding_tokens * self.sizes.data

    @property
    def request(self) -> Request:
        """What was settled before layouts were compared."""
        return self.fit.request

    @property
    def kv_bytes_per_rank(self) -> int:
        """Bytes of the pools on one rank."""
        return self.fit.pool_bytes

    def sequences(self, tokens_each: int) -> int:
        """How many sequences of that length run at once."""
        fitting = self.fit.pools.global_tokens // max(1, tokens_each) * self.sizes.data
        return min(self.fit.running_requests, fitting)


@dataclass(frozen=True, slots=True)
class Refused:
    """No replica can run there; at least one reason."""

    pool: str
    refusals: tuple[Refusal, ...]
    alternatives: tuple[Alternative, ...] = ()

    @property
    def message(self) -> str:
        """All reasons in one sentence each."""
        return "; ".join(refusal.message for refusal in self.refusals)


def plan_engine(
    facts: ModelFacts, pool: EnginePool, serving: Serving, nodes: Sequence[NodeFacts] = ()
) -> EnginePlan | Refused:
    """How a replica looks on this pool. Without nodes the pool's spec is taken at its word.

    `serving` is what the installation can give: who calls leaves out a shared cache for which there is no Redis.
    """
    pool = _beside_tier(pool, serving)
    settled = _settle(facts, pool, serving)
    if isinstance(settled, Refused):
        return settled
    found = _choose(settled, pool, serving)
    if isinstance(found, Refused):
        return found
    chosen, lost = found
    usable, unfit = fit_nodes(nodes, pool, chosen.shape.ranks_per_pod)
    if nodes and not usable:
        return Refused(pool.name, _by_reason(unfit), lost)
    return _plan(settled, pool, chosen, lost, unfit, len(nodes))


def _beside_tier(pool: EnginePool, serving: Serving) -> EnginePool:
    """Where the engine computes in the memory of the node, a shared cache's pages on their way lie there too."""
    tier = _tier(pool, serving)
    if tier is None or not pool.is_cpu:
        return pool
    return replace(pool, device_bytes=max(0, pool.device_bytes - tier.host_gigabytes * 10**9))


def _tier(pool: EnginePool, serving: Serving) -> KvCacheTier | None:
    """SGLang's alone: other engines keep caches of their own."""
    return serving.kv_cache.tier if pool.engine is EngineType.SGLANG else None


@dataclass(frozen=True, slots=True)
class _Settled:
    """What does not depend on the layout."""

    facts: ModelFacts
    """With the dtype that the pool computes in."""
    request: Request
    drafts_asked: bool
    """Speculation was asked for, so it stays on whatever the layout."""
    notes: tuple[str, ...]
    experimental: tuple[str, ...]
    tier: KvCacheTier | None


def _settle(facts: ModelFacts, pool: EnginePool, serving: Serving) -> _Settled | Refused:
    notes: list[str] = []
    experimental: list[str] = []
    refusals = [found for found in (pool_refusal(pool),) if found is not None]
    typed = _settle_dtype(facts, pool, notes, experimental)
    context = _settle_context(facts, pool, serving)
    drafts = _settle_drafts(facts, pool, serving, notes)
    refusals += [found for found in (typed, context, drafts) if isinstance(found, Refusal)]
    if refusals or isinstance(typed, Refusal) or isinstance(context, Refusal) or isinstance(drafts, Refusal):
        return Refused(pool.name, tuple(refusals))
    hybrid = _settle_hybrid(facts, pool, notes)
    if serving.kv_cache.tier is not None:
        notes.append(_tier_note(pool, serving.kv_cache.tier))
    request = Request(
        context_tokens=context,
        page_size=min(serving.kv_cache.page_size or DEFAULT_PAGE_SIZE, context),
        draft_tokens=drafts,
        hybrid=hybrid,
        memory_fraction=serving.kv_cache.memory_fraction,
    )
    return _Settled(
        typed, request, serving.speculative is not None, tuple(notes), tuple(experimental), _tier(pool, serving)
    )


def _settle_dtype(
    facts: ModelFacts, pool: EnginePool, notes: list[str], experimental: list[str]
) -> ModelFacts | Refusal:
    if facts.weights in pool.dtypes:
        return facts
    if facts.weights + WEIGHT_ONLY in pool.dtypes:
        experimental.append(
            f"{facts.weights} weights on pool {pool.name} are stored so and computed with in {facts.dtype}"
            f" ({facts.weights}{WEIGHT_ONLY}); unproven upstream on these devices"
        )
        return facts
    wider = "float32"
    if facts.weights == facts.dtype and DTYPE_BYTES[facts.dtype] < DTYPE_BYTES[wider] and wider in pool.dtypes:
        notes.append(f"the checkpoint's {facts.dtype} becomes {wider}: twice the bytes, nothing lost")
        return replace(facts, dtype=wider, weights=wider, weight_bits=8.0 * DTYPE_BYTES[wider])
    listed = ", ".join(sorted(pool.dtypes))
    hint = f" (or {facts.weights}{WEIGHT_ONLY} where devices only store it)" if facts.weights != facts.dtype else ""
    return Refusal(
        Reason.DTYPE_NOT_LISTED,
        f"the checkpoint's weights are {facts.weights} and pool {pool.name} lists {listed}; give the pool a source of"
        f" its own, or list {facts.weights}{hint} in capabilities.dtypes if its devices can",
    )


def _settle_context(facts: ModelFacts, pool: EnginePool, serving: Serving) -> int | Refusal:
    wanted = serving.context_tokens
    if wanted is None:
        return min(facts.context_tokens, pool.max_context_tokens)
    if wanted > pool.max_context_tokens:
        return Refusal(
            Reason.CONTEXT_BEYOND_POOL,
            f"contextTokens={wanted} is beyond pool {pool.name}, whose engine takes {pool.max_context_tokens}",
        )
    if wanted > facts.context_tokens:
        return Refusal(
            Reason.CONTEXT_BEYOND_MODEL, f"contextTokens={wanted} is beyond the model's {facts.context_tokens}"
        )
    return wanted


def _settle_drafts(facts: ModelFacts, pool: EnginePool, serving: Serving, notes: list[str]) -> int | Refusal | None:
    asked = serving.speculative
    if asked is not None and asked.type is SpeculativeType.NONE:
        return None
    if asked is None:
        if facts.mtp_layers and pool.offers(MTP):
            return DEFAULT_DRAFT_TOKENS
        if facts.mtp_layers:
            notes.append(f"without MTP: pool {pool.name} does not list {MTP} in capabilities.features")
        return None
    if not facts.mtp_layers:
        return Refusal(Reason.MTP_NOT_IN_MODEL, "speculative.type=MTP and the checkpoint has no MTP layers")
    if not pool.offers(MTP):
        return Refusal(
            Reason.MTP_NOT_OFFERED,
            f"speculative.type=MTP and pool {pool.name} does not list {MTP} in capabilities.features",
        )
    return asked.mtp.draft_tokens if asked.mtp is not None else DEFAULT_DRAFT_TOKENS


def _settle_hybrid(facts: ModelFacts, pool: EnginePool, notes: list[str]) -> bool:
    if not facts.global_layers or not facts.sliding_layers:
        return False
    if not pool.offers(HYBRID_KV):
        times = facts.layers / facts.global_layers
        notes.append(
            f"pool {pool.name} does not list {HYBRID_KV}: all {facts.layers} layers keep every token, {times:.1f} times"
            f" the bytes a long context needs"
        )
        return False
    sizes = sorted({window for window in facts.windows if window is not None})
    if len(sizes) > 1:
        notes.append(
            f"windows of {', '.join(map(str, sizes))} tokens share one sliding pool, planned for the widest; SGLang"
            f" 0.5.23 itself knows one window"
        )
    return True


def _tier_note(pool: EnginePool, tier: KvCacheTier) -> str:
    if pool.engine is not EngineType.SGLANG:
        return (
            f"without a shared cache (kvCache.tier): pool {pool.name} runs {pool.engine.value}, and only SGLang has one"
        )
    whose = "of what the pool gives a rank" if pool.is_cpu else "of the node's memory a rank, which is not planned for"
    return f"a shared cache takes {tier.host_gigabytes} GB {whose}"


def _choose(settled: _Settled, pool: EnginePool, serving: Serving) -> tuple[Fit, tuple[Alternative, ...]] | Refused:
    """The first layout that holds context and enough requests; failing that the one with most requests."""
    lost: list[Alternative] = []
    refusals: list[Refusal] = []
    best: Fit | None = None
    for shape in candidates(settled.facts, pool, serving.parallelism):
        if isinstance(shape, Refusal):
            refusals.append(shape)
            continue
        if best is not None and (_is_enough(best) or shape.sizes.pipeline > best.shape.sizes.pipeline):
            if shape.sizes.ranks > best.shape.sizes.ranks:
                lost.append(_lost(shape, _more_devices(best, shape, pool)))
                if shape.sizes.pipeline > 1:
                    break
            elif is_possible(settled.facts, pool, _request(settled, shape), shape):
                lost.append(_lost(shape, _unproven_layout(best, shape, pool)))
                break
            continue
        found = fit(settled.facts, pool, _request(settled, shape), shape)
        if isinstance(found, Refusal):
            lost.append(_lost(shape, found))
        elif best is None or found.running_requests > best.running_requests:
            if best is not None:
                lost.append(_lost(best.shape, _too_few(best)))
            best = found
        else:
            lost.append(_lost(found.shape, _too_few(found)))
    if best is None:
        return Refused(pool.name, _why_none(settled, pool, refusals, lost), tuple(lost[-MOST_ALTERNATIVES:]))
    return best, tuple(_nearest(lost))


def _request(settled: _Settled, shape: Shape) -> Request:
    """Speculation over stages is unproven: it must be asked for."""
    if shape.sizes.pipeline > 1 and not settled.drafts_asked and settled.request.draft_tokens is not None:
        return replace(settled.request, draft_tokens=None)
    return settled.request


def _lost(shape: Shape, why: Refusal) -> Alternative:
    return Alternative(shape.text, shape.sizes.ranks, why)


def _is_enough(found: Fit) -> bool:
    return found.running_requests >= REASONABLE_REQUESTS * found.shape.sizes.data


def _too_few(found: Fit) -> Refusal:
    return Refusal(
        Reason.TOO_SMALL,
        f"holds {found.running_requests} requests at once; a plan with fewer than {REASONABLE_REQUESTS}"
        " loses to a larger one",
    )


def _more_devices(best: Fit, shape: Shape, pool: EnginePool) -> Refusal:
    noun = "nodes" if pool.is_cpu else "devices"
    return Refusal(Reason.MORE_DEVICES, f"{shape.sizes.ranks} {noun} where {best.shape.sizes.ranks} would do")


def _unproven_layout(best: Fit, shape: Shape, pool: EnginePool) -> Refusal:
    noun = "nodes" if pool.is_cpu else "devices"
    return Refusal(
        Reason.UNPROVEN,
        f"{shape.sizes.ranks} {noun} beside {best.shape.sizes.ranks}, each layer inside one node; stages have not been"
        " run by this project: planned when nothing else fits, or when asked for (serving.parallelism.pipeline)",
    )


def _nearest(lost: Sequence[Alternative]) -> list[Alternative]:
    """What a person would ask about: those too small, one with stages, and the next larger."""
    kinds = {
        reason: [other for other in lost if other.why.reason is reason]
        for reason in (Reason.MORE_DEVICES, Reason.UNPROVEN)
    }
    larger, staged = kinds[Reason.MORE_DEVICES], kinds[Reason.UNPROVEN]
    rest = [other for other in lost if other.why.reason not in kinds]
    return [*rest[-(MOST_ALTERNATIVES - 2) :], *staged[:1], *larger[:1]]


def _why_none(
    settled: _Settled, pool: EnginePool, refusals: Sequence[Refusal], lost: Sequence[Alternative]
) -> tuple[Refusal, ...]:
    if not lost:
        return tuple(dict.fromkeys(refusals)) or (
            Refusal(
                Reason.HEADS_DO_NOT_DIVIDE,
                f"no layout divides {settled.facts.heads} heads, the widths and {settled.facts.experts} experts under"
                " what serving.parallelism asks",
            ),
        )
    largest = max(lost, key=lambda other: other.ranks)
    whole = sum(settled.facts.weight_bytes().values())
    return (
        Refusal(
            Reason.TOO_SMALL,
            f"pool {pool.name} is too small for {gib(whole)} of weights and {settled.request.context_tokens} tokens of"
            f" context: even {largest.layout}, {largest.why.message}",
        ),
    )


def _by_reason(unfit: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """One for each reason, with how many nodes share it."""
    found: list[Refusal] = []
    for reason in dict.fromkeys(refusal.reason for refusal in unfit):
        alike = [refusal for refusal in unfit if refusal.reason is reason]
        more = f" ({len(alike) - 1} more nodes likewise)" if len(alike) > 1 else ""
        found.append(Refusal(reason, alike[0].message + more))
    return tuple(found)


def _plan(
    settled: _Settled,
    pool: EnginePool,
    chosen: Fit,
    lost: tuple[Alternative, ...],
    unfit: Sequence[Refusal],
    node_count: int,
) -> EnginePlan:
    facts, request, shape = settled.facts, chosen.request, chosen.shape
    notes = [*settled.notes, *_layout_notes(settled, pool, chosen)]
    if unfit:
        reasons = "; ".join(refusal.message for refusal in _by_reason(unfit))
        notes.append(f"{len(unfit)} of {node_count} nodes are of no use: {reasons}")
    drafts = request.draft_tokens is not None
    off = {MTP} if not drafts else set()
    off |= {HYBRID_KV} if not request.hybrid else set()
    return EnginePlan(
        pool=pool.name,
        resource=pool.resource,
        engine=pool.engine,
        sizes=shape.sizes,
        pods=shape.pods,
        ranks_per_pod=shape.ranks_per_pod,
        devices_per_pod=shape.ranks_per_pod * pool.devices_per_rank,
        dtype=facts.dtype,
        weights=facts.weights,
        weight_bytes=replica_weight_bytes(facts, shape.sizes, with_mtp=drafts),
        cache=model_cache(facts),
        fit=chosen,
        tier=settled.tier,
        device_bytes=pool.device_bytes,
        features=tuple(feature for feature in pool.features if feature not in off),
        notes=tuple(notes),
        experimental=(*settled.experimental, *_unproven(shape.sizes)),
        alternatives=lost,
    )


def _layout_notes(settled: _Settled, pool: EnginePool, chosen: Fit) -> list[str]:
    facts, request, sizes = settled.facts, chosen.request, chosen.shape.sizes
    notes = []
    ranks = sizes.tensor // sizes.data
    if ranks > facts.kv_heads:
        times = ranks // facts.kv_heads
        notes.append(
            f"tensor {sizes.tensor} replicates the {facts.kv_heads} KV heads: {times} times the KV bytes of tensor"
            f" {facts.kv_heads * sizes.data}"
        )
    if chosen.shape.pods > 1:
        notes.append(
            f"one replica spans {chosen.shape.pods} pods on {chosen.shape.pods} nodes of one topology domain: it starts"
            " whole and restarts whole"
        )
    if request.draft_tokens is None and settled.request.draft_tokens is not None:
        notes.append("without MTP: speculation over pipeline stages is unproven and must be asked for")
    if not _is_enough(chosen):
        notes.append(f"the cache holds {chosen.running_requests} requests at once, which is few")
    if chosen.memory_fraction is not None and request.memory_fraction is not None:
        notes.append(f"kvCache.memoryFraction={request.memory_fraction} as asked, instead of a planned reserve")
    if pool.engine is EngineType.FURIOSA_LLM:
        notes.append("furiosa-llm publishes no formula for its cache: its tokens are counted as SGLang would hold them")
    return notes


def _unproven(sizes: Parallelism) -> tuple[str, ...]:
    found = []
    if sizes.pipeline > 1:
        found.append(f"pipeline {sizes.pipeline}: stages with hybrid KV have not been run by this project")
    if sizes.data > 1:
        found.append(f"data {sizes.data}: copies of the attention layers have not been run by this project")
    return tuple(found)
