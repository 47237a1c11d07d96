"""The file format: how a quantized weight is written into, and recognised in, a standard ONNX model.

A weight of the packed form is one call of a model-local function, whose output feeds the ordinary
operator through a DequantizeLinear::

    w8 = fgq::Unpack<axis>(codes u8[P], table i8[256, n], alpha u8, group i32, shape i64)
    W  = DequantizeLinear(w8, row_scale, zeros)

``codes`` hold n codes a byte, ``table`` says which (`fgq.format.packing`): five ternary codes, two of tied
planes, two INT4 codes, or the sum ``c2 + 15 c1`` of two INT4 codes, one from each of two tensors, which lie
in the byte as two codes of one tensor do. ``alpha`` has the weight's shape with the group axis cut to the
number of groups, or 1 where a scale is shared, and ``group`` names the group of each position on that
axis.
The function (`fgq.format.functions`) is made of plain operators of opset 13, so any runtime that inlines
functions can run it; onnxruntime folds it to int8 when it loads the model.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import FgqError, ModelError
from fgq.format import onnx_file
from fgq.format.functions import UNPACK, called, inputs_of, recognise
from fgq.format.packing import table, unpack_codes
from fgq.graph.queries import constant
from fgq.quantization.scheme import Codes, Granularity, WeightScheme
from fgq.quantization.tensor import Plane, QuantizedTensor

LEAST_IR_VERSION = 8
"""Model-local functions exist from here on."""

FORM_KEY = "fgq.form"
"""The key under which a converted model's metadata name the form of its weights."""

SCALED_KEY = "fgq.scaled"
"""The key under which they tell of scales of channels that weights took (`converters.passes.move_scales`)."""

_MOST_AXES = 32

PACKED = tuple(codes for codes in Codes if codes.spec.packed)
"""Codes that a table says how to read from bytes; INT8 is written as it is."""

ACTIVATION_BOUNDS = {4: (0, 15), 8: (0, 255)}
"""The integers of an activation by its bits; both are stored as uint8."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model, and find which of its functions are ours (`fgq.format.functions.recognise`).

    Parameters
    ----------
    path : path-like

    Raises
    ------
    ModelError
        If the model cannot be read, or holds calls of our functions that none of them takes.
    """
    model = onnx_file.load(path)
    recognise(model, str(path))
    return model


def is_unpack(node: ir.Node | None) -> bool:
    """Tell whether a node is a call of ``fgq::Unpack`` with our body (`fgq.format.functions.recognise`)."""
    return called(node) == UNPACK


def sign(model: ir.Model, form: str) -> None:
    """Write into a converted model who made it, and the form of its weights."""
    model.producer_name, model.producer_version = "fgq", version("fgq")
    model.metadata_props[FORM_KEY] = form


def read_weight(value: ir.Value | None, *, group_axis: int, channel_axis: int) -> QuantizedTensor | None:
    """Read the quantized weight that an operator's input holds.

    Parameters
    ----------
    value : onnx_ir.Value or None
        The operator's weight input.
    group_axis, channel_axis : int
        The weight's reduction axis and its axis of output channels.

    Returns
    -------
    QuantizedTensor or None
        None where the value is not a quantized weight with zero points of 0 along `channel_axis`.

    Raises
    ------
    ModelError
        If the value is a call of ``fgq::Unpack`` whose arrays do not fit each other.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "" or len(node.inputs) < 2:
        return None
    row_scale = constant(node.inputs[1])
    written = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant(written)
    if row_scale is None or (zero is None) != (written is None):
        return None
    if zero is not None and (zero.dtype != np.int8 or not _one_each(zero, row_scale) or zero.any()):
        return None
    real = (0, int(ir.DataType.FLOAT))
    if node.attributes.get_int("block_size", 0) or node.attributes.get_int("output_dtype", 0) not in real:
        return None
    axis = node.attributes.get_int("axis", 1)
    tensor = read_integers(
        node.inputs[0], row_scale, name=str(node.name), group_axis=group_axis, channel_axis=channel_axis
    )
    if tensor is None or (row_scale.ndim and axis not in (channel_axis, channel_axis - len(tensor.shape))):
        return None
    return tensor


def _one_each(zero: NDArray[Any], row_scale: NDArray[Any]) -> bool:
    return zero.shape == row_scale.shape or zero.size == row_scale.size == 1


def read_integers(
    source: ir.Value | None,
    row_scale: NDArray[np.float32],
    *,
    name: str,
    group_axis: int,
    channel_axis: int,
) -> QuantizedTensor | None:
    """Read a quantized weight from its integers: a call of ``fgq::Unpack``, or constant int8.

    Parameters
    ----------
    source : onnx_ir.Value or None
        The integers.
    row_scale : ndarray of float32, shape (M,) or ()
    name : str
        What an error calls the weight.
    group_axis, channel_axis : int
        The weight's reduction axis and its axis of output channels.

    Returns
    -------
    QuantizedTensor or None
        None where the value is neither, or does not fit the scales.

    Raises
    ------
    ModelError
        As `read_weight`.
    """
    producer = None if source is None else source.producer()
    if is_unpack(producer):
        assert producer is not None
        plane, group, codes = _read_unpack(producer, group_axis)
        scheme = _scheme(plane, group, codes, row_scale)
    else:
        w8 = constant(source)
        if w8 is None or w8.dtype != np.int8 or w8.ndim <= group_axis or not w8.size:
            return None
        plane = Plane(codes=w8, alpha=np.ones((1,) * w8.ndim, np.uint8))
        group = np.zeros(w8.shape[group_axis], np.int32)
        scheme = WeightScheme(codes=Codes.INT8)
    tensor = QuantizedTensor(
        planes=(plane,),
        group=group,
        group_axis=group_axis,
        channel_axis=channel_axis,
        row_scale=row_scale,
        scheme=scheme,
    )
    try:
        tensor.validate()
    except FgqError as error:
        if not scheme.codes.spec.packed:  # a foreign weight that is quantized in another way
            return None
        raise ModelError(f"{name}: {error}") from None
    return tensor


def _scheme(
    plane: Plane, group: NDArray[np.int32], codes: Codes, row_scale: NDArray[np.float32]
) -> WeightScheme:
    """Tell which weights share one scale."""
    if plane.alpha.size == 1 and plane.alpha.item() == 1:
        granularity = Granularity.FILTER if row_scale.ndim else Granularity.LAYER
        return WeightScheme(codes=codes, granularity=granularity)
    size = max(1, int(np.count_nonzero(group == 0)))
    taps = plane.codes.size // max(1, plane.alpha.size)
    if size == 1 and group.size > 1 and taps > 1:
        return WeightScheme(codes=codes, granularity=Granularity.KERNEL)
    return WeightScheme(codes=codes, group_size=size)


def unpacked(node: ir.Node) -> NDArray[np.int8]:
    """Return the int8 weights that a call of ``fgq::Unpack`` computes.

    Parameters
    ----------
    node : onnx_ir.Node

    Raises
    ------
    ModelError
        If its arrays do not fit each other.
    """
    axis = node.attributes.get_int("axis", -1)
    plane, group, codes = _read_unpack(node, axis)
    tensor = QuantizedTensor(
        planes=(plane,),
        group=group,
        group_axis=axis,
        channel_axis=int(axis == 0),  # any other axis: one scale serves all channels
        row_scale=np.ones((), np.float32),
        scheme=WeightScheme(codes=codes),
    )
    try:
        tensor.validate()
    except FgqError as error:
        raise ModelError(f"{node.name}: {error}") from None
    return tensor.int8()


def _read_unpack(node: ir.Node, group_axis: int) -> tuple[Plane, NDArray[np.int32], Codes]:
    arrays = [array for value in node.inputs if (array := constant(value)) is not None]
    if len(arrays) != len(node.inputs):
        wanted = ", ".join(inputs_of(UNPACK))
        raise ModelError(f"{node.name}: found inputs that are computed, wanted the constants {wanted}")
    codes, rows, alpha, group, shape = arrays
    axis = node.attributes.get_int("axis", -1)
    if axis != group_axis:
        raise ModelError(f"{node.name}: found groups along axis {axis}, wanted axis {group_axis}")
    kind = next((kind for kind in PACKED if np.array_equal(rows, table(kind.largest))), None)
    if kind is None or rows.dtype != np.int8:
        raise ModelError(f"{node.name}: found an unknown table, wanted that of {', '.join(PACKED)} codes")
    if shape.dtype != np.int64 or shape.ndim != 1 or not 0 < shape.size <= _MOST_AXES or (shape < 1).any():
        whole = shape.ndim == 1 and shape.size <= _MOST_AXES
        found = shape.tolist() if whole else f"{shape.dtype}{list(shape.shape)}"
        raise ModelError(
            f"{node.name}: found the shape {found}, wanted int64 sizes of at least 1, {_MOST_AXES} at most"
        )
    try:
        unpacked_codes = unpack_codes(codes, tuple(int(size) for size in shape), kind.largest)
    except FgqError as error:
        raise ModelError(f"{node.name}: {error}") from None
    return Plane(codes=unpacked_codes, alpha=alpha), group, kind
