"""`ModelFacts`: what the planner knows of a model, its parameters by class, and its compact form for a pod's message.

`config_json` reads them from a checkpoint's `config.json`; `memory` and `engine` calculate with them. Kept on purpose
to a transformer with grouped-query attention, dense or with routed experts, each layer with a window or without.
Shapes that would be counted wrongly (latent attention, state-space layers) never become facts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hanmaru_contracts.errors import ErrorCode, HanmaruError


class WeightClass(StrEnum):
    """Parts of a model that are split or quantised in ways of their own."""

    ATTENTION = "attention"
    ROUTED_EXPERTS = "routed experts"
    SHARED_EXPERTS = "shared experts"
    DENSE = "dense FFN"
    EMBEDDING = "embeddings"
    HEAD = "LM head"
    MTP = "MTP"
    OTHER = "router and norms"


DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
NEVER_QUANTISED = frozenset({WeightClass.EMBEDDING, WeightClass.HEAD, WeightClass.OTHER})
"""No published method touches the first and the last; heads are counted whole to be on the safe side."""
MAX_LAYERS = 512
MAX_JSON_BYTES = 4096
"""A pod's termination message."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's shape and the form of its weights. Layers are counted from 0; a window of None sees every token."""

    architecture: str
    model_type: str
    licence: str | None
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    windows: tuple[int | None, ...]
    """One for each main layer: tokens it attends, the query's own included."""
    mtp_windows: tuple[int | None, ...]
    """One for each layer that drafts."""
    sparse: tuple[bool, ...]
    """One for each main layer: whether it has routed experts. MTP layers have none."""
    dense_width: int
    expert_width: int
    experts: int
    experts_per_token: int
    shared_experts: int
    tied_embeddings: bool
    has_attention_bias: bool
    dtype: str
    """Of activations, KV and whatever is not quantised."""
    weights: str
    """Type of the quantised weights (`fp8`, `nvfp4`, …), or `dtype` again."""
    weight_bits: float
    """Bits of one quantised weight, its share of the scales included."""
    unquantised: frozenset[WeightClass] = NEVER_QUANTISED

    @property
    def layers(self) -> int:
        """Main layers."""
        return len(self.windows)

    @property
    def global_layers(self) -> int:
        """Main layers that see every token."""
        return self.windows.count(None)

    @property
    def sliding_layers(self) -> int:
        """Main layers with a window."""
        return len(self.windows) - self.windows.count(None)

    @property
    def widest_window(self) -> int:
        """Tokens of the widest window; 0 without sliding layers."""
        return max((window for window in self.windows if window is not None), default=0)

    @property
    def mtp_layers(self) -> int:
        """Layers that draft."""
        return len(self.mtp_windows)

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one unquantised value."""
        return DTYPE_BYTES[self.dtype]

    @property
    def bits(self) -> float:
        """Bits of one unquantised weight."""
        return 8.0 * self.dtype_bytes

    def class_bits(self, part: WeightClass) -> float:
        """Bits of one weight of a class."""
        return self.bits if part in self.unquantised else self.weight_bits

    @property
    def attention_parameters(self) -> int:
        """Of one layer: the four projections, biases where there are any."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        bias = query + 2 * keys + self.hidden if self.has_attention_bias else 0
        return self.hidden * (2 * query + 2 * keys) + bias

    @property
    def expert_parameters(self) -> int:
        """Of one expert: gate, up and down projection."""
        return 3 * self.hidden * self.expert_width

    @property
    def dense_parameters(self) -> int:
        """Of one dense FFN."""
        return 3 * self.hidden * self.dense_width

    @property
    def mtp_layer_parameters(self) -> int:
        """Of one drafting layer: it joins two hidden states, attends and has a dense FFN (K-EXAONE's block)."""
        return 2 * self.hidden**2 + self.attention_parameters + self.dense_parameters + 6 * self.hidden

    def parameters(self) -> dict[WeightClass, int]:
        """Parameters of the whole model by class."""
        sparse = self.sparse.count(True)
        norms = (2 * self.hidden + 2 * self.head_dim) * self.layers + self.hidden
        return {
            WeightClass.ATTENTION: self.attention_parameters * self.layers,
            WeightClass.ROUTED_EXPERTS: self.expert_parameters * self.experts * sparse,
            WeightClass.SHARED_EXPERTS: self.expert_parameters * self.shared_experts * sparse,
            WeightClass.DENSE: self.dense_parameters * (self.layers - sparse),
            WeightClass.EMBEDDING: self.vocabulary * self.hidden,
            WeightClass.HEAD: 0 if self.tied_embeddings else self.vocabulary * self.hidden,
            WeightClass.MTP: self.mtp_layer_parameters * self.mtp_layers,
            WeightClass.OTHER: (self.hidden + 1) * self.experts * sparse + norms,
        }

    def weight_bytes(self) -> dict[WeightClass, int]:
        """Bytes of the checkpoint's tensors by class."""
        return {part: int(count * self.class_bits(part) / 8) for part, count in self.parameters().items()}

    @property
    def total_parameters(self) -> int:
        """Without the MTP layers, as model names count."""
        counts = self.parameters()
        return sum(counts.values()) - counts[WeightClass.MTP]

    @property
    def active_parameters(self) -> int:
        """That one token passes through, embeddings and head included."""
        idle_experts = (self.experts - self.experts_per_token) * self.sparse.count(True)
        return self.total_parameters - self.expert_parameters * idle_experts

    def to_json(self) -> str:
        """One line; `MAX_JSON_BYTES` hold it whatever the model."""
        text = json.dumps(
            {
                "architecture": self.architecture,
                "modelType": self.model_type,
                "licence": self.licence,
                **{name: getattr(self, attribute) for attribute, name in _NUMBERS.items()},
                "windows": _pack(self.windows),
                "mtpWindows": _pack(self.mtp_windows),
                "sparse": "".join("1" if value else "0" for value in self.sparse),
                "tied": self.tied_embeddings,
                "bias": self.has_attention_bias,
                "dtype": self.dtype,
                "weights": self.weights,
                "weightBits": self.weight_bits,
                "unquantised": sorted(self.unquantised),
            },
            separators=(",", ":"),
        )
        assert len(text) <= MAX_JSON_BYTES, "bounds of config_json keep this from happening"
        return text

    @classmethod
    def from_json(cls, text: str) -> ModelFacts:
        """The facts that `to_json` wrote. Raises HanmaruError (CONFIGURATION) on anything else."""
        try:
            found: dict[str, Any] = json.loads(text)
            return cls(
                architecture=str(found["architecture"]),
                model_type=str(found["modelType"]),
                licence=found["licence"],
                **{attribute: int(found[name]) for attribute, name in _NUMBERS.items()},
                windows=_unpack(found["windows"]),
                mtp_windows=_unpack(found["mtpWindows"]),
                sparse=tuple(letter == "1" for letter in found["sparse"]),
                tied_embeddings=bool(found["tied"]),
                has_attention_bias=bool(found["bias"]),
                dtype=_known_dtype(found["dtype"]),
                weights=str(found["weights"]),
                weight_bits=float(found["weightBits"]),
                unquantised=frozenset(WeightClass(part) for part in found["unquantised"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise HanmaruError(
                ErrorCode.CONFIGURATION, f"these are no model facts ({type(error).__name__}): {text[:80]!r}"
            ) from error


_NUMBERS = {
    "hidden": "hidden",
    "heads": "heads",
    "kv_heads": "kvHeads",
    "head_dim": "headDim",
    "vocabulary": "vocabulary",
    "context_tokens": "contextTokens",
    "dense_width": "denseWidth",
    "expert_width": "expertWidth",
    "experts": "experts",
    "experts_per_token": "expertsPerToken",
    "shared_experts": "sharedExperts",
}
"""Attribute -> name in JSON."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MAX_WINDOW_SIZES = len(_LETTERS)


def _pack(windows: tuple[int | None, ...]) -> dict[str, Any]:
    """Each size once and a letter a layer: 78 layers take about 110 characters."""
    sizes = sorted(set(windows), key=lambda window: window or 0)
    letter = dict(zip(sizes, _LETTERS, strict=False))
    return {"sizes": sizes, "layers": "".join(letter[window] for window in windows)}


def _unpack(packed: dict[str, Any]) -> tuple[int | None, ...]:
    sizes = [None if size is None else int(size) for size in packed["sizes"]]
    return tuple(sizes[_LETTERS.index(letter)] for letter in packed["layers"])


def _known_dtype(name: str) -> str:
    if name not in DTYPE_BYTES:
        raise ValueError(name)
    return name
