"""Layouts of one replica: which parallel sizes a model divides into, and how their ranks spread over pods. Pure.

`engine` tries them in the order given here. What the engine refuses at start is refused here first; the rules are
SGLang's (`models/exaone_moe.py`, `parallel_hook`, `validation_hook`, read in 0.5.23).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hanmaru_contracts.crd.v1alpha1.model_deployment import ServingParallelism
from hanmaru_contracts.wire.engine_spec import EngineType, Parallelism

from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.model import ModelFacts
from hanmaru_operator.plan.refusal import Reason, Refusal
from hanmaru_operator.plan.weights import stage_layers

EXPERT_PARALLEL = "expert-parallel"
MAX_RANKS = 128
"""Of a planned replica. Larger ones must be asked for."""
PIPELINE_STAGES = (2, 3, 4, 6, 8)
"""Tried where splitting layers alone does not do."""
VOCABULARY_BLOCK = 64
"""SGLang pads the vocabulary to a multiple of it before it splits it."""
WIDTH_BLOCK = {"fp8": 128, "nvfp4": 16, "mxfp4": 32, "int4": 128}
"""Scales belong to blocks so wide, so a rank's share of an expert must hold whole ones."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One layout."""

    sizes: Parallelism
    pods: int
    ranks_per_pod: int

    @property
    def text(self) -> str:
        """`tensor 16, expert 4 over 2 pods`."""
        named = (("expert", self.sizes.expert), ("pipeline", self.sizes.pipeline), ("data", self.sizes.data))
        parts = [f"tensor {self.sizes.tensor}", *(f"{name} {size}" for name, size in named if size > 1)]
        return ", ".join(parts) + (f" over {self.pods} pods" if self.pods > 1 else "")


def candidates(facts: ModelFacts, pool: EnginePool, wanted: ServingParallelism) -> Iterator[Shape | Refusal]:
    """Layouts that divide, made as they are asked for: those without stages first, each kind from the fewest ranks up.

    Refusals come only for sizes that were asked for.
    """
    data = wanted.data or 1
    # Who fixes the tensor group has fixed the devices: stages are not added to it unasked.
    unasked = (1,) if wanted.tensor else (1, *PIPELINE_STAGES)
    for stages in (wanted.pipeline,) if wanted.pipeline else unasked:
        if wanted.tensor:
            tensors: Iterable[int] = (wanted.tensor,)
        elif stages > 1 and not wanted.pipeline:
            # Stages are worth a thought only between whole nodes: inside one, splitting layers is better.
            tensors = (pool.ranks_per_node,)
        else:
            # Most sizes do not even divide the heads: they are left out before a sentence is made of it.
            most = min(facts.heads * data, MAX_RANKS)
            tensors = (size for size in range(data, most + 1, data) if facts.heads * data % size == 0)
        for tensor in tensors:
            found = tensor_refusal(facts, tensor, data) or _shape(facts, pool, wanted, tensor, stages)
            if isinstance(found, Shape) or wanted.tensor:
                yield found


def tensor_refusal(facts: ModelFacts, tensor: int, data: int) -> Refusal | None:
    """Why layers do not split so; None when they do. Beyond the KV heads each rank keeps a copy: that is allowed."""
    if tensor % data:
        return Refusal(Reason.HEADS_DO_NOT_DIVIDE, f"data={data} does not divide tensor={tensor}")
    ranks = tensor // data
    if facts.heads % ranks:
        return Refusal(
            Reason.HEADS_DO_NOT_DIVIDE,
            f"tensor={tensor}: {facts.heads} attention heads do not divide by {ranks}; {_near(facts.heads, ranks)}",
        )
    if facts.kv_heads % ranks and ranks % facts.kv_heads:
        return Refusal(
            Reason.HEADS_DO_NOT_DIVIDE,
            f"tensor={tensor}: {facts.kv_heads} KV heads neither divide by {ranks} nor into it",
        )
    padded = -(-facts.vocabulary // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
    shared_width = facts.expert_width * facts.shared_experts
    widths = (
        ("padded vocabulary", padded),
        ("dense width", facts.dense_width),
        ("shared experts' width", shared_width),
    )
    for name, width in widths:
        if width % tensor:
            return Refusal(Reason.WIDTHS_DO_NOT_DIVIDE, f"tensor={tensor} does not divide the {name} of {width}")
    if facts.experts and tensor > facts.experts:
        return Refusal(Reason.EXPERTS_DO_NOT_DIVIDE, f"tensor={tensor} is more than {facts.experts} experts")
    return None


def _shape(
    facts: ModelFacts, pool: EnginePool, wanted: ServingParallelism, tensor: int, stages: int
) -> Shape | Refusal:
    expert = _expert_size(facts, pool, wanted, tensor)
    if isinstance(expert, Refusal):
        return expert
    refused = _stages_refusal(facts, pool, stages)
    if refused is not None:
        return refused
    ranks = tensor * stages
    if ranks > MAX_RANKS and not (wanted.tensor or wanted.pipeline):
        return Refusal(Reason.MORE_DEVICES, f"{ranks} devices are more than are planned unasked ({MAX_RANKS})")
    sizes = Parallelism(tensor=tensor, expert=expert, pipeline=stages, data=wanted.data or 1)
    pods = _pods(ranks, pool.ranks_per_node)
    return Shape(sizes, pods, ranks // pods)


def _stages_refusal(facts: ModelFacts, pool: EnginePool, stages: int) -> Refusal | None:
    if stages == 1:
        return None
    if pool.engine is not EngineType.SGLANG:
        return Refusal(Reason.NOT_FOR_THIS_ENGINE, f"pipeline={stages}: {pool.engine} is planned without stages")
    if stages > facts.layers:
        return Refusal(Reason.LAYERS_DO_NOT_DIVIDE, f"pipeline={stages} is more than {facts.layers} layers")
    if facts.global_layers and facts.sliding_layers:
        for stage in range(stages):
            part = stage_layers(facts.layers, stages, stage)
            if facts.windows[part.start : part.stop].count(None) in (0, len(part)):
                return Refusal(
                    Reason.LAYERS_DO_NOT_DIVIDE,
                    f"pipeline={stages}: stage {stage} would have only sliding or only global layers",
                )
    return None


def _expert_size(facts: ModelFacts, pool: EnginePool, wanted: ServingParallelism, tensor: int) -> int | Refusal:
    """1 where an expert's width splits over the tensor group, as in LG's own command line; else the least that does."""
    if not facts.experts:
        if (wanted.expert or 1) > 1:
            return Refusal(Reason.EXPERTS_DO_NOT_DIVIDE, f"expert={wanted.expert}: the model has no routed experts")
        return 1
    if wanted.expert:
        refused = _experts_refusal(facts, tensor, wanted.expert)
        if refused is None and wanted.expert > 1 and not pool.offers(EXPERT_PARALLEL):
            return Refusal(
                Reason.EXPERT_PARALLEL_NOT_OFFERED,
                f"expert={wanted.expert}: pool {pool.name} does not list {EXPERT_PARALLEL} in capabilities.features",
            )
        return refused or wanted.expert
    first = _experts_refusal(facts, tensor, 1)
    if first is None or not pool.offers(EXPERT_PARALLEL):
        return first or 1
    sizes = (size for size in range(2, tensor + 1) if _experts_refusal(facts, tensor, size) is None)
    return next(sizes, first)


def _experts_refusal(facts: ModelFacts, tensor: int, expert: int) -> Refusal | None:
    if tensor % expert:
        return Refusal(Reason.EXPERTS_DO_NOT_DIVIDE, f"expert={expert} does not divide tensor={tensor}")
    if facts.experts % expert:
        return Refusal(
            Reason.EXPERTS_DO_NOT_DIVIDE,
            f"expert={expert} does not divide {facts.experts} experts; {_near(facts.experts, expert)}",
        )
    share, block = facts.expert_width // (tensor // expert), WIDTH_BLOCK.get(facts.weights, 1)
    if facts.expert_width % (tensor // expert) or share % block:
        return Refusal(
            Reason.WIDTHS_DO_NOT_DIVIDE,
            f"tensor={tensor}, expert={expert}: an expert's width of {facts.expert_width} does not split into"
            f" {tensor // expert} parts of whole blocks of {block}",
        )
    return None


def _pods(ranks: int, per_node: int) -> int:
    """Fewest pods with equally many ranks each, at most a node's."""
    least = -(-ranks // per_node)
    return next(pods for pods in range(least, ranks + 1) if ranks % pods == 0)


def _near(whole: int, wrong: int) -> str:
    """Sizes that would do, next to one that does not."""
    below = max(size for size in range(1, wrong + 1) if whole % size == 0)
    above = next((size for size in range(wrong, whole + 1) if whole % size == 0), None)
    return f"use {below}" + (f" or {above}" if above and above != below else "")
