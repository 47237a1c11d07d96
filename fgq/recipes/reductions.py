"""A layer as plain matrix products: what it reads as rows of x, what it gives as rows of y.

The K products of one output are ordered as the groups of the weight run: kernel positions outermost, input
channels innermost (one kernel position for matrices).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer
from fgq.graph.windows import pads_of, spans

Single = NDArray[np.float32]


MOST_INPUTS = 8192
"""Longer reductions are not refined: a matrix of this length squared takes half a gigabyte."""


def is_reduction(layer: Layer) -> bool:
    """Tell whether a layer is a matrix product of its input with one matrix, or one for each conv group.

    Layers in subgraphs, whose inputs cannot be observed, and those of more than MOST_INPUTS products are not
    counted.
    """
    if layer.in_subgraph or layer.products > MOST_INPUTS:
        return False
    return layer.op_type == "Conv" or len(layer.shape) == 2


def conv_groups(layer: Layer) -> int:
    """Return how many independent reductions a layer holds: the groups of a convolution, else 1."""
    return int(layer.node.attributes.get_int("group", 1)) if layer.op_type == "Conv" else 1


def input_rows(layer: Layer, x: Single, picked: NDArray[np.intp] | None = None) -> Single:
    """Return what each output position reads, (conv groups, R, K).

    Parameters
    ----------
    layer : Layer
    x : ndarray of float32
        The layer's input.
    picked : ndarray of int, optional
        Only these positions of a convolution, of all in the order batch, height, width.
    """
    if layer.op_type == "Conv":
        return _patches(layer, x, picked)
    if layer.op_type == "Gemm" and layer.node.attributes.get_int("transA", 0) != 0:
        x = x.T
    if layer.weight_index == 0 and x.ndim > 1:
        x = np.swapaxes(x, -1, -2)
    return x.reshape(1, -1, x.shape[-1])


def output_rows(layer: Layer, y: Single, picked: NDArray[np.intp] | None = None) -> Single:
    """Return what each output position gives, (conv groups, R, M / conv groups).

    Parameters
    ----------
    layer : Layer
    y : ndarray of float32
        The layer's output.
    picked : ndarray of int, optional
        Only these positions.
    """
    axis = 1 if layer.op_type == "Conv" else -2 if layer.weight_index == 0 and y.ndim > 1 else -1
    rows = np.moveaxis(y, axis, -1).reshape(-1, y.shape[axis])
    rows = rows if picked is None else rows[picked]
    groups = conv_groups(layer)
    return rows.reshape(len(rows), groups, y.shape[axis] // groups).transpose(1, 0, 2)


def _patches(layer: Layer, x: Single, picked: NDArray[np.intp] | None) -> Single:
    attributes = layer.node.attributes
    kernel = layer.shape[2:]
    strides = attributes.get_ints("strides", [1, 1])
    dilations = attributes.get_ints("dilations", [1, 1])
    reach = spans(kernel, dilations)
    before, after = pads_of(layer.node, x.shape[2:], reach, strides)
    padded = np.pad(x.transpose(0, 2, 3, 1), ((0, 0), *zip(before, after, strict=True), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    B, OH, OW, C = windows.shape[:4]
    groups = conv_groups(layer)
    if picked is None:
        picked = np.arange(B * OH * OW)
    rows = windows[np.unravel_index(picked, (B, OH, OW))]  # (R, C, kh, kw)
    rows = rows.reshape(len(picked), groups, C // groups, *kernel).transpose(1, 0, 3, 4, 2)
    return np.ascontiguousarray(rows).reshape(groups, len(picked), C // groups * math.prod(kernel))
