"""`quantization_config` of a checkpoint -> how many bits its weights take, and which parts stay whole. Pure.

Called by `config_json`. Lists of unquantised modules may hold regular expressions: they come from outside, so they are
never run. A part counts as whole as soon as one entry names it, which can only say too many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_operator.plan.model import DTYPE_BYTES, NEVER_QUANTISED, WeightClass


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How weights are stored."""

    name: str
    """As pools list it in `capabilities.dtypes`."""
    bits: float
    """Of one weight, its share of the scales included."""
    unquantised: frozenset[WeightClass]


_SCALE_BITS = {"fp8": 32 / 2048, "int8": 16 / 128, "nvfp4": 8 / 16, "mxfp4": 8 / 32, "int4": 20 / 128}
"""Scales a weight takes part in: one byte for each 16 weights in NVFP4 (its block size), for each 32 in MXFP4; 16 bits
and a 4-bit zero for each 128 in INT4; four bytes a row, which has about 2,048 weights, in FP8 (a block shares less)."""
_WIDTHS = {"fp8": 8, "int8": 8, "nvfp4": 4, "mxfp4": 4, "int4": 4}

_PLACES = {
    WeightClass.ATTENTION: ("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
    WeightClass.SHARED_EXPERTS: ("shared_expert",),
    WeightClass.ROUTED_EXPERTS: (".experts", "mlp.experts"),
    WeightClass.DENSE: ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_up_proj"),
    WeightClass.MTP: ("mtp", "nextn"),
}
_MAX_ENTRIES = 1 << 14


def read_quantisation(found: object, dtype: str) -> Quantisation:
    """Of a model whose other values are `dtype`. Raises HanmaruError (CONFIGURATION) on a method it does not know."""
    if found is None:
        return Quantisation(dtype, 8.0 * DTYPE_BYTES[dtype], NEVER_QUANTISED)
    if not isinstance(found, dict):
        raise _wrong(f"quantization_config is a {type(found).__name__}; expected an object")
    name = _name(found)
    return Quantisation(name, _WIDTHS[name] + _SCALE_BITS[name], NEVER_QUANTISED | frozenset(_whole_parts(found)))


def _name(found: Mapping[str, Any]) -> str:
    method = str(found.get("quant_method") or "").lower()
    algorithm = str(found.get("quant_algo") or "").lower()
    if algorithm in _WIDTHS or method in _WIDTHS:
        return algorithm if algorithm in _WIDTHS else method
    if method == "compressed-tensors":
        return _compressed(found)
    if method in ("gptq", "awq") and found.get("bits", 4) in (4, 8):
        return f"int{found.get('bits', 4)}"
    raise _wrong(
        f"quantization_config has quant_method={method[:40]!r}, quant_algo={algorithm[:40]!r};"
        f" expected compressed-tensors, gptq, awq, or one of {', '.join(_WIDTHS)}"
    )


def _compressed(found: Mapping[str, Any]) -> str:
    """compressed-tensors says bits and kind for each group of layers; the widest counts."""
    groups = found.get("config_groups")
    weights = [
        group["weights"]
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]
    widths = {(group.get("num_bits"), group.get("type")) for group in weights if _is_plain(group)}
    named = {(8, "float"): "fp8", (8, "int"): "int8", (4, "float"): "nvfp4", (4, "int"): "int4"}
    known = [named[width] for width in widths if width in named]
    if not widths or len(known) != len(widths):
        raise _wrong("quantization_config.config_groups name no weights; expected 4 or 8 bits, int or float")
    return max(known, key=lambda name: _WIDTHS[name] + _SCALE_BITS[name])


def _is_plain(group: Mapping[str, Any]) -> bool:
    return isinstance(group.get("num_bits"), int) and isinstance(group.get("type"), str)


def _whole_parts(found: Mapping[str, Any]) -> Iterator[WeightClass]:
    entries = [
        entry
        for key in ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules")
        for entry in (found.get(key) if isinstance(found.get(key), list) else ()) or ()
        if isinstance(entry, str)
    ]
    if len(entries) > _MAX_ENTRIES:
        raise _wrong(f"quantization_config lists {len(entries)} unquantised modules; expected at most {_MAX_ENTRIES}")
    # Expressions escape their dots: `re:.*self_attn.*`, `model\\.layers\\.0`.
    plain = [entry.replace("\\", "") for entry in entries]
    for part, words in _PLACES.items():
        if any(word in entry for entry in plain for word in words):
            yield part


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
