"""Outputs that onnxruntime rounds, as it moves the quantizer behind them before them (docs/runtime.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from drawing import Array, Feeds, session
from onnx import numpy_helper

MOVING = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "MaxPool"}
)
"""Operators that a quantizer is moved across."""


def is_moved(model: onnx.ModelProto, name: str, ours: Array, theirs: Array, feeds: Feeds) -> bool:
    """Tell whether an output differs only because the quantizer behind it stands before it in onnxruntime.

    Parameters
    ----------
    model : onnx.ModelProto
    name : str
        Of the output.
    ours, theirs : ndarray
    feeds : dict of str to ndarray
    """
    maker = next((node for node in model.graph.node if name in node.output), None)
    if maker is not None and maker.op_type == "MaxPool" and name in maker.output[1:]:
        return any(
            _same_maxima(model, maker, quantizer, ours, theirs, feeds)
            for quantizer in _quantizers(model, maker.output[0])
        )
    return any(
        _is_rounded(ours, theirs, *quantizer) for quantizer in _quantizers(model, name, behind_moves=True)
    )


def _quantizers(
    model: onnx.ModelProto, name: str, *, behind_moves: bool = False
) -> list[tuple[np.float32, int]]:
    """Return scales and zero points of the quantizers that read a value, moved or not."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.input[:1] != [name]:
            continue
        if node.op_type == "QuantizeLinear" and not behind_moves:
            found.append((np.float32(constants[node.input[1]]), int(constants[node.input[2]])))
        elif node.op_type in MOVING:
            found += _quantizers(model, node.output[0])
    return found


def _integers(array: Array, scale: np.float32, zero: int) -> Array:
    integers: Array = np.clip(np.rint(array.astype(np.float64) / scale) + zero, 0, 255)
    return integers


def _is_rounded(ours: Array, theirs: Array, scale: np.float32, zero: int) -> bool:
    """Tell whether an output is another one, rounded to the steps of a quantizer and cut to its range."""
    on_steps = scale * (_integers(theirs, scale, zero) - zero)
    steps = _integers(ours, scale, zero) - _integers(theirs, scale, zero)
    return bool(np.allclose(theirs, on_steps, 1e-5, 1e-6 * scale) and np.abs(steps).max(initial=0) <= 1)


def _same_maxima(
    model: onnx.ModelProto,
    pool: onnx.NodeProto,
    quantizer: tuple[np.float32, int],
    ours: Array,
    theirs: Array,
    feeds: Feeds,
) -> bool:
    """Tell whether Indices point at values that the quantizer makes one integer of."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.append(onnx.ValueInfoProto(name=pool.input[0]))
    image = session(exposed.SerializeToString(), optimized=False).run([pool.input[0]], feeds)[0].ravel()
    if theirs.min(initial=0) < 0 or theirs.max(initial=0) >= image.size:
        return False
    return np.array_equal(_integers(image[ours], *quantizer), _integers(image[theirs], *quantizer))


def differences_are_moved(
    model: onnx.ModelProto,
    feeds: Feeds,
    ours: Sequence[Array],
    theirs: Sequence[Array],
    close: Sequence[bool],
) -> bool:
    """Tell whether each output that is not close is one that onnxruntime rounds.

    Parameters
    ----------
    model : onnx.ModelProto
    feeds : dict of str to ndarray
    ours, theirs : sequence of ndarray
    close : sequence of bool
        For each output, whether the engines agree.
    """
    entries = zip(model.graph.output, ours, theirs, close, strict=True)
    return all(near or is_moved(model, value.name, one, other, feeds) for value, one, other, near in entries)
