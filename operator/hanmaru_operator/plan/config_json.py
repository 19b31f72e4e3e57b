"""A checkpoint's `config.json` -> `ModelFacts`. Pure; whoever holds the bytes calls it (a pod, the command line).

The file comes from outside: every field is bounded, and a refusal names the field, what was seen and what is expected.
What it cannot count rightly it refuses, because a plan from wrong numbers costs hours of loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_operator.plan.model import DTYPE_BYTES, MAX_LAYERS, MAX_WINDOW_SIZES, ModelFacts
from hanmaru_operator.plan.quantisation import read_quantisation

MAX_CONFIG_BYTES = 1 << 20
"""K-EXAONE's has about 4 KiB; the longest seen, with lists of unquantised modules, about 200 KiB."""

LICENCES = {"exaone_moe": "K-EXAONE AI Model License"}
"""By `model_type`, for checkpoints whose config names no licence. K-EXAONE's travels with every derivative (§2.1)."""

_LIMITS = {
    "hidden_size": 1 << 17,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 25,
    "intermediate_size": 1 << 20,
    "moe_intermediate_size": 1 << 20,
    "num_experts": 1 << 14,
    "num_experts_per_tok": 1 << 14,
    "num_shared_experts": 1024,
    "num_nextn_predict_layers": 64,
    "sliding_window": 1 << 25,
    "first_k_dense_replace": MAX_LAYERS,
}
"""Several times what the largest model of 2026 has: beyond it a number is a mistake or an attack."""

_NOT_COUNTED = {
    "kv_lora_rank": "latent attention",
    "linear_attn_config": "linear attention",
    "ssm_state_size": "state-space layers",
    "mamba_d_state": "state-space layers",
}


def read_model(text: str | bytes) -> ModelFacts:
    """Facts from a file's contents. Raises HanmaruError (CONFIGURATION)."""
    if len(text) > MAX_CONFIG_BYTES:
        raise wrong(f"config.json has {len(text)} bytes; expected at most {MAX_CONFIG_BYTES}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(
            f"config.json is not JSON ({type(error).__name__}); expected a checkpoint's configuration"
        ) from error
    if not isinstance(found, dict):
        raise wrong(f"config.json holds {_seen(found)}; expected an object")
    return read_config(found)


def read_config(config: Mapping[str, Any]) -> ModelFacts:
    """Facts from a parsed file. Raises HanmaruError (CONFIGURATION)."""
    inner = config.get("text_config")
    fields = _Fields({**config, **inner} if isinstance(inner, dict) and "hidden_size" not in config else config)
    fields.refuse_what_is_not_counted()
    layers = fields.number("num_hidden_layers")
    heads = fields.number("num_attention_heads")
    kv_heads = fields.number("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise wrong(f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}")
    hidden = fields.number("hidden_size")
    head_dim = fields.number("head_dim", default=max(1, hidden // heads))
    experts = fields.number("num_experts", "num_local_experts", "n_routed_experts", default=0)
    sparse = _sparse_layers(fields, layers, has_experts=experts > 0)
    has_sparse = any(sparse)
    per_token = fields.number("num_experts_per_tok", default=None if has_sparse else 0)
    if per_token > experts:
        raise wrong(f"num_experts_per_tok={per_token} is more than num_experts={experts}")
    dtype = _dtype(fields)
    quantisation = read_quantisation(fields.get("quantization_config"), dtype)
    drafting = fields.number("num_nextn_predict_layers", default=0)
    windows, mtp_windows = _windows(fields, layers, drafting)
    return ModelFacts(
        architecture=fields.first_architecture(),
        model_type=fields.text("model_type", limit=64),
        licence=_licence(fields),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=fields.number("vocab_size"),
        context_tokens=fields.number("max_position_embeddings"),
        windows=windows,
        mtp_windows=mtp_windows,
        sparse=sparse,
        dense_width=_dense_width(fields, sparse, drafting),
        expert_width=fields.number("moe_intermediate_size", "intermediate_size") if has_sparse else 0,
        experts=experts if has_sparse else 0,
        experts_per_token=per_token if has_sparse else 0,
        shared_experts=fields.number("num_shared_experts", "n_shared_experts", default=0) if has_sparse else 0,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        has_attention_bias=fields.flag("attention_bias"),
        dtype=dtype,
        weights=quantisation.name,
        weight_bits=quantisation.bits,
        unquantised=quantisation.unquantised,
    )


def wrong(message: str) -> HanmaruError:
    """What this module raises."""
    return HanmaruError(ErrorCode.CONFIGURATION, message)


class _Fields:
    """Typed and bounded access to a configuration."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def get(self, name: str) -> Any:
        """As it stands; None where it is absent or null."""
        return self._values.get(name)

    def number(self, name: str, *others: str, default: int | None = None) -> int:
        """A whole number of at least 1 under the first of these names that has one; 0 only as `default`."""
        used = next((key for key in (name, *others) if self._values.get(key) is not None), None)
        if used is None:
            if default is None:
                raise wrong(f"config.json has no {name}; expected a whole number")
            return default
        value, limit = self._values[used], _LIMITS[name]
        low = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= limit:
            raise wrong(f"{used}={_seen(value)}; expected a whole number from {low} to {limit}")
        return value

    def flag(self, name: str) -> bool:
        """Absent or null: False."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(f"{name}={_seen(value)}; expected true or false")
        return bool(value)

    def text(self, name: str, *, limit: int) -> str:
        """Absent: empty."""
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > limit or not _is_plain(value):
            raise wrong(f"{name}={_seen(value)}; expected printable ASCII of at most {limit} characters")
        return value

    def listed(self, name: str, length: int, *, at_least: bool = False) -> Sequence[Any] | None:
        """A list with one entry a layer (`at_least`: or more); None where it is absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong(f"{name}={_seen(value)}; expected a list with one entry for each of {length} layers")
        if len(value) < length or (len(value) > length and not at_least) or len(value) > MAX_LAYERS + 64:
            raise wrong(f"{name} has {len(value)} entries; expected one for each of {length} layers")
        return value

    def first_architecture(self) -> str:
        """Of `architectures`."""
        value = self._values.get("architectures")
        name = value[0] if isinstance(value, list) and value else None
        if not isinstance(name, str) or len(name) > 128 or not _is_plain(name):
            raise wrong(f"architectures={_seen(value)}; expected a list with the name of a model class")
        return name

    def refuse_what_is_not_counted(self) -> None:
        """Raise on a shape whose cache or weights these facts cannot express."""
        for name, what in _NOT_COUNTED.items():
            if self._values.get(name) is not None:
                raise wrong(f"config.json has {name}: {what} is not something this planner can count")


def _windows(fields: _Fields, layers: int, drafting: int) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Main and drafting layers. Of several descriptions the most exact one counts.

    A drafting layer has the window that a list gives it beyond the main layers, else that of layer 0: SGLang runs
    K-EXAONE's block as layer 0 (read in 0.5.23).
    """
    listed = fields.listed("sliding_windows", layers, at_least=True)
    if listed is not None:
        found = tuple(_window_entry(entry) for entry in listed)
        if len(found) not in (layers, layers + drafting):
            raise wrong(f"sliding_windows has {len(found)} entries; expected {layers}, or {layers + drafting} with MTP")
    else:
        found = _uniform_windows(fields, layers)
    if len(set(found)) > MAX_WINDOW_SIZES:
        raise wrong(f"sliding_windows has {len(set(found))} different sizes; expected at most {MAX_WINDOW_SIZES}")
    main, rest = found[:layers], found[layers:]
    return main, rest or (main[0],) * drafting


def _window_entry(value: Any) -> int | None:
    """null, 0 and -1 mean a layer that sees everything."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= _LIMITS["sliding_window"]:
        raise wrong(f"sliding_windows has {_seen(value)}; expected window sizes, or null, 0 or -1 for global layers")
    return value if value > 0 else None


def _uniform_windows(fields: _Fields, layers: int) -> tuple[int | None, ...]:
    """One size for all sliding layers, which `layer_types` or a pattern names."""
    types = fields.listed("layer_types", layers, at_least=True)
    pattern = fields.get("sliding_window_pattern")
    if fields.get("sliding_window") is None or fields.get("use_sliding_window") is False:
        if types is not None and "sliding_attention" in types[:layers]:
            raise wrong("layer_types has sliding_attention and sliding_window is absent; expected the window's size")
        return (None,) * layers
    window = fields.number("sliding_window")
    if types is not None:
        return tuple(window if _is_sliding(kind) else None for kind in types[:layers])
    if pattern is None or pattern == 0:
        return (window,) * layers
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return tuple(window if pattern[i % len(pattern)] == "L" else None for i in range(layers))
    if isinstance(pattern, int) and not isinstance(pattern, bool) and 0 < pattern <= MAX_LAYERS:
        return tuple(window if (i + 1) % pattern else None for i in range(layers))
    raise wrong(f"sliding_window_pattern={_seen(pattern)}; expected letters L and G, or a number of layers")


def _is_sliding(kind: Any) -> bool:
    if kind in ("sliding_attention", "full_attention"):
        return bool(kind == "sliding_attention")
    raise wrong(f"layer_types has {_seen(kind)}; expected sliding_attention or full_attention")


def _sparse_layers(fields: _Fields, layers: int, *, has_experts: bool) -> tuple[bool, ...]:
    listed = fields.listed("is_moe_layer", layers)
    if listed is not None:
        if not all(isinstance(value, bool) for value in listed):
            raise wrong("is_moe_layer has something else than true and false; expected one of them for each layer")
        found = tuple(bool(value) for value in listed)
    elif (kinds := fields.listed("mlp_layer_types", layers)) is not None:
        unknown = next((kind for kind in kinds if kind not in ("sparse", "dense")), None)
        if unknown is not None:
            raise wrong(f"mlp_layer_types has {_seen(unknown)}; expected sparse or dense")
        found = tuple(kind == "sparse" for kind in kinds)
    elif has_experts:
        dense = min(layers, fields.number("first_k_dense_replace", default=0))
        found = (False,) * dense + (True,) * (layers - dense)
    else:
        found = (False,) * layers
    if any(found) and not has_experts:
        raise wrong("config.json has sparse layers and no num_experts; expected the number of routed experts")
    return found


def _dense_width(fields: _Fields, sparse: tuple[bool, ...], drafting: int) -> int:
    """MTP layers have a dense FFN too, so only a model with sparse layers alone needs none."""
    if all(sparse) and not drafting:
        return 0
    return fields.number("intermediate_size")


def _dtype(fields: _Fields) -> str:
    name = fields.get("dtype") or fields.get("torch_dtype") or "bfloat16"
    if not isinstance(name, str) or name.removeprefix("torch.") not in DTYPE_BYTES:
        raise wrong(f"dtype={_seen(name)}; expected one of {', '.join(DTYPE_BYTES)}")
    return name.removeprefix("torch.")


def _licence(fields: _Fields) -> str | None:
    for name in ("license_name", "license"):
        named = fields.text(name, limit=200)
        if named:
            return named
    return LICENCES.get(fields.text("model_type", limit=64))


def _is_plain(text: str) -> bool:
    """Facts travel in a message of 4,096 bytes, where every other character takes six."""
    return text.isascii() and text.isprintable()


def _seen(value: Any) -> str:
    """A value as far as a message needs it."""
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'object'} with {len(value)} entries"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
