"""A deeper model that begins as a trained shallower one: what saves a deeper checkpoint most of its training.

Each new layer is a copy of the last trained layer of its kind with outputs of zero: the grown model says exactly what
the shallow one says, and training moves all layers from there (function-preserving growth: Chen et al., Net2Net, 2016).
`make.py` calls it for every depth but the committed one. The shallow model has to have a whole pattern behind its dense
layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hanmaru_checkpoint.model import FeedForward, Layer, Model, SparseFeedForward
from hanmaru_checkpoint.shape import GLOBAL_EVERY


@torch.no_grad()
def grown(shallow: Model, num_layers: int) -> Model:
    """A model of `num_layers`, a multiple of `GLOBAL_EVERY` and more than `shallow` has."""
    have = shallow.shape.num_layers
    if num_layers <= have or num_layers % GLOBAL_EVERY:
        raise ValueError(f"cannot grow {have} layers to {num_layers}; expected a larger multiple of {GLOBAL_EVERY}")
    deep = Model(replace(shallow.shape, num_layers=num_layers))
    weights = shallow.state_dict()
    for index in range(have, num_layers):
        source = f"layers.{have - GLOBAL_EVERY + index % GLOBAL_EVERY}."
        copied = {name: tensor for name, tensor in weights.items() if name.startswith(source)}
        weights |= {name.replace(source, f"layers.{index}.", 1): tensor for name, tensor in copied.items()}
    deep.load_state_dict(weights)
    for layer in deep.layers[have:]:
        assert isinstance(layer, Layer)
        _silence(layer)
    return deep


def _silence(layer: Layer) -> None:
    layer.attention.out.zero_()
    ffn = layer.ffn
    if isinstance(ffn, SparseFeedForward):
        ffn.down.zero_()
        ffn = ffn.shared
    if isinstance(ffn, FeedForward):
        ffn.down.zero_()
