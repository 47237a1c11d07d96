"""What random models are drawn from."""

from __future__ import annotations

from collections.abc import Callable

from drawing import Graph
from layer_blocks import (
    LAYERS,
    attention,
    branches,
    conv,
    conv_bn_relu,
    conv_transpose,
    gemm,
    joined,
    layer,
    matmul,
    pooled,
    product_of_two,
    residual,
)
from operator_blocks import (
    activation,
    add_many,
    batch_norm,
    binary,
    clip,
    concat,
    conditional,
    contributed,
    gate,
    gelu,
    layer_norm,
    layout,
    other_norm,
    pieces,
    pool,
    prelu,
    reduce,
    scalar_arithmetic,
    softmax,
)

__all__ = ["BLOCKS", "LAYERS", "NETWORK"]

Block = Callable[[Graph, str], str | None]

BLOCKS: tuple[tuple[Block, float], ...] = (
    (conv, 5), (conv_bn_relu, 5), (branches, 6), (pooled, 4), (matmul, 4), (gemm, 3), (residual, 8),
    (activation, 6), (clip, 1.5), (gelu, 2), (gate, 1.5), (scalar_arithmetic, 1.5), (binary, 6),
    (add_many, 1), (concat, 3), (pool, 6), (layout, 6), (reduce, 2), (softmax, 1.5), (layer_norm, 2),
    (batch_norm, 1.5), (other_norm, 0.5), (attention, 2.5), (conditional, 1), (pieces, 3), (prelu, 0.5),
    (conv_transpose, 0.4), (contributed, 0.5), (product_of_two, 0.7),
)  # fmt: skip
"""What models are drawn from, and how often each."""

NETWORK: tuple[tuple[Block, float], ...] = (
    (conv_bn_relu, 6), (residual, 8), (branches, 5), (pooled, 6), (layer, 6), (joined, 5), (pool, 2),
    (activation, 3), (gelu, 1), (gate, 1.5), (layout, 2), (attention, 2), (layer_norm, 1), (binary, 1),
)  # fmt: skip
"""The same for models of which little is left to onnxruntime: layers behind layers."""
