"""Bytes of weights on one rank, and of a whole replica. Pure; as SGLang 0.5.23 splits `exaone_moe` and its like.

Attention splits over the ranks that share one copy of it, KV projections no further than the KV heads; experts, FFNs,
embeddings and head over the tensor group; router and norms stand on every rank. Read in `models/exaone_moe.py`.
"""

from __future__ import annotations

from hanmaru_contracts.wire.engine_spec import Parallelism

from hanmaru_operator.plan.model import ModelFacts, WeightClass


def stage_layers(layers: int, stages: int, stage: int) -> range:
    """Layers of one pipeline stage; the last ones have one more. SGLang: `distributed.utils.get_pp_indices`."""
    base, more = divmod(layers, stages)
    first = stage * base + max(0, stage - (stages - more))
    return range(first, first + base + (1 if stage >= stages - more else 0))


def stage_weight_bytes(facts: ModelFacts, sizes: Parallelism, stage: int, *, with_mtp: bool) -> int:
    """On one rank of a pipeline stage. MTP weights are loaded on the last stage, and only for speculation."""
    layers = stage_layers(facts.layers, sizes.pipeline, stage)
    count = len(layers)
    sparse = facts.sparse[layers.start : layers.stop].count(True)
    tensor, ranks = sizes.tensor, sizes.tensor // sizes.data
    attention = _attention_parameters(facts, ranks)
    head = facts.vocabulary * facts.hidden / tensor
    is_last = stage == sizes.pipeline - 1
    parts = {
        WeightClass.ATTENTION: attention * count,
        WeightClass.ROUTED_EXPERTS: facts.expert_parameters * facts.experts * sparse / tensor,
        WeightClass.SHARED_EXPERTS: facts.expert_parameters * facts.shared_experts * sparse / tensor,
        WeightClass.DENSE: facts.dense_parameters * (count - sparse) / tensor,
        WeightClass.OTHER: (facts.hidden + 2) * facts.experts * sparse + 2 * (facts.hidden + facts.head_dim) * count,
        # Copies of the attention layers each keep the embeddings whole.
        WeightClass.EMBEDDING: (facts.vocabulary * facts.hidden if sizes.data > 1 else head) if stage == 0 else 0,
        WeightClass.HEAD: head if is_last and not facts.tied_embeddings else 0,
        # The block joining two hidden states is a plain layer, whole on every rank.
        WeightClass.MTP: facts.mtp_layers * (2 * facts.hidden**2 + attention + facts.dense_parameters / tensor)
        if is_last and with_mtp
        else 0,
    }
    return int(sum(parameters * facts.class_bits(part) for part, parameters in parts.items()) / 8)


def replica_weight_bytes(facts: ModelFacts, sizes: Parallelism, *, with_mtp: bool) -> int:
    """On all ranks together, copies included."""
    stages = range(sizes.pipeline)
    return sizes.tensor * sum(stage_weight_bytes(facts, sizes, stage, with_mtp=with_mtp) for stage in stages)


def _attention_parameters(facts: ModelFacts, ranks: int) -> float:
    query = facts.heads * facts.head_dim / ranks
    keys = max(1.0, facts.kv_heads / ranks) * facts.head_dim
    bias = query + 2 * keys + facts.hidden if facts.has_attention_bias else 0
    return facts.hidden * (2 * query + 2 * keys) + bias
