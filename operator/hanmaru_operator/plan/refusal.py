"""Why a model, a pool, a node or a layout is refused: a word for programs and a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why not. Part of conditions, so no value changes its meaning."""

    TOO_SMALL = "TooSmall"
    """Weights and a useful cache do not fit, over however many devices."""
    MIG_SLICES = "MigSlices"
    SHARED_DEVICES = "SharedDevices"
    """Time slices or MPS: more devices are advertised than exist."""
    FEWER_DEVICES = "FewerDevices"
    """A node gives fewer devices than one pod of a replica needs."""
    SMALLER_DEVICES = "SmallerDevices"
    """A node's devices have less memory than the pool says."""
    HEADS_DO_NOT_DIVIDE = "HeadsDoNotDivide"
    WIDTHS_DO_NOT_DIVIDE = "WidthsDoNotDivide"
    EXPERTS_DO_NOT_DIVIDE = "ExpertsDoNotDivide"
    LAYERS_DO_NOT_DIVIDE = "LayersDoNotDivide"
    """More pipeline stages than layers, or a stage without the layers the engine needs in each."""
    DTYPE_NOT_LISTED = "DtypeNotListed"
    CONTEXT_BEYOND_POOL = "ContextBeyondPool"
    CONTEXT_BEYOND_MODEL = "ContextBeyondModel"
    MTP_NOT_OFFERED = "MtpNotOffered"
    MTP_NOT_IN_MODEL = "MtpNotInModel"
    EXPERT_PARALLEL_NOT_OFFERED = "ExpertParallelNotOffered"
    NOT_FOR_THIS_ENGINE = "NotForThisEngine"
    MORE_DEVICES = "MoreDevices"
    """A layout that works and was not chosen: fewer devices do."""
    UNPROVEN = "Unproven"
    """A layout that should work and is chosen only when asked for."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason, with its numbers."""

    reason: Reason
    message: str


GIB = 1 << 30


def gib(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.1f} MiB"
