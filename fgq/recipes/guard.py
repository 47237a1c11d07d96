r"""The last word on a layer: no output is farther from the float network's than by the recipe ``fgq``.

Held-out data judge each step on the way, by sums and on some positions. This is about what is written: the
layer's float weights and bias are replaced by the quantized ones, it reads what it really will, at every
position of all calibration data, and the squared distance of each output channel from the float network's
is added up; once with what the recipe has chosen and once with what ``fgq`` would have. A channel that
``fgq`` brings nearer is as ``fgq`` has it. Where the result is added to a residual, the channel must also be
at least as near with what that has lost: a layer may make up for it only as far as its own output gains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer
from fgq.quantization.tensor import QuantizedTensor
from fgq.recipes.moments import Float, Single
from fgq.recipes.observation import Observed, lost_beside
from fgq.recipes.pieces import Piece, Prefix, Replacement

_TOGETHER = 1 << 22
"""Values whose squares are summed at a time."""


class Distance(NamedTuple):
    """Sums over all positions, one for each output channel.

    Parameters
    ----------
    own : ndarray of float64, shape (M,)
        The squared distance from the float network's output.
    summed : ndarray of float64, shape (M,)
        The same with what the value that the result is added to has lost.
    power : ndarray of float64, shape (M,)
        The squared float output.
    """

    own: Float
    summed: Float
    power: Float

    def is_farther(self, other: Distance, *, together: bool) -> NDArray[np.bool_]:
        """Tell which channels are farther than by another choice; all or none where they go together."""
        if together:
            worse = bool(self.own.sum() > other.own.sum() or self.summed.sum() > other.summed.sum())
            return np.full(self.own.shape, worse)
        return (self.own > other.own) | (self.summed > other.summed)


def distance(
    model: ir.Model,
    layer: Layer,
    quantized: Prefix,
    exact: Prefix,
    observed: Observed,
    tensor: QuantizedTensor,
    shift: Float,
) -> Distance:
    """Return how far a layer is from what the float network gives.

    Parameters
    ----------
    model : onnx_ir.Model
        With quantizers, and the layer's bias as it was.
    layer : Layer
    quantized, exact : Prefix
        Advanced to the layer.
    observed : Observed
        What its output should be.
    tensor : QuantizedTensor
        Its weight.
    shift : ndarray of float64, shape (M,)
        What is added to its bias.
    """
    name = str(layer.node.outputs[0].name)
    replaced = {layer.node: Replacement(layer.weight_index, tensor.dequantize())}
    run = Piece(model, [layer.node], [name], replaced)
    found = Distance(*(np.zeros(len(shift)) for _ in Distance._fields))
    read = str(layer.activation.name)
    batches = zip(observed.wanted, observed.inputs, quantized.batches, exact.batches, strict=True)
    for y, x, given, kept in batches:
        if not y.size:
            continue
        missing = y - run(given | {read: x})[name]
        lost = lost_beside(observed.residual, kept, given, y.shape)
        found.power[:] += _powers(layer, y, None)
        own = _powers(layer, missing, shift)
        found.own[:] += own
        found.summed[:] += own if isinstance(lost, float) else _powers(layer, missing + lost, shift)
    return found


def _powers(layer: Layer, values: Single, shift: Float | None) -> Float:
    """Return the squared sum of each channel of what a layer gives, less a shift."""
    axis = 1 if layer.op_type == "Conv" else -2 if layer.weight_index == 0 and values.ndim > 1 else -1
    channels = values.shape[axis]
    inner = int(np.prod(values.shape[axis:][1:]))
    blocks = values.reshape(-1, channels, inner)
    total = np.zeros(channels)
    less = None if shift is None else shift.astype(np.float32)[:, None]
    for block in _chunks(blocks):
        difference = block if less is None else block - less
        # Sums of some thousand squares in float32, of these in float64; what overflows is far from either.
        with np.errstate(over="ignore"):
            if inner > 1:
                total += np.einsum("bmr,bmr->bm", difference, difference).sum(0, dtype=np.float64)
            else:
                total += np.square(difference[..., 0]).sum(0, dtype=np.float64)
    return total


def _chunks(blocks: Single) -> Iterator[Single]:
    step = max(1, _TOGETHER // max(blocks[0].size, 1))
    for start in range(0, len(blocks), step):
        yield blocks[start : start + step]
