"""Sums and products of two quantized tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph.queries import is_operator
from fgq.kernels.operators.elementwise import Add, Multiply
from fgq.quantization.scheme import Quantizer
from fgq.runtime.orders import Order
from fgq.runtime.quantizers import Quantized, Requantization, overflows, read_quantized, read_result
from fgq.runtime.steps.registry import operator
from fgq.runtime.steps.step import Array, Call, Orders, Step, broadcast


class BinaryStep(Step):
    """An Add or Mul of two quantized tensors of one shape.

    Parameters
    ----------
    node : onnx_ir.Node
    operands : pair of Quantized
    result : onnx_ir.Value
        The integers of the sum or product.
    requantization : Requantization
    """

    dtype = np.uint8

    def __init__(
        self,
        node: ir.Node,
        operands: tuple[Quantized, Quantized],
        result: ir.Value,
        requantization: Requantization,
    ) -> None:
        self._node, self.operands, self.result = node, operands, result
        self.requantization = requantization
        self.sources = operands[0].source, operands[1].source

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self._node.name)

    @property
    def op_type(self) -> str:
        """Add or Mul."""
        return self._node.op_type

    @property
    def kernel(self) -> str:
        """Which operation it is."""
        return {"Add": "quantized_add", "Mul": "quantized_multiply"}[self.op_type]

    @property
    def same_shape(self) -> bool:
        """Whether both operands are known to have one shape."""
        one, other = (value.shape for value in self.sources)
        return one is not None and other is not None and one == other

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        order = max(given, key=lambda order: order is not None)
        return Orders((order, order), order)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return broadcast(self.name, *(array.shape for array in arrays))

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        quantizers = [operand.quantizer for operand in self.operands]
        operation: type[Add | Multiply] = Add if self.op_type == "Add" else Multiply
        return bind_binary(operation, arrays, quantizers, out, self.requantization, threads)


def bind_binary(
    operation: type[Add | Multiply],
    arrays: Sequence[Array],
    quantizers: Sequence[Quantizer],
    out: Array,
    made: Requantization,
    threads: int,
) -> Call:
    """Return the call that adds or multiplies two quantized tensors whose shapes broadcast.

    Parameters
    ----------
    operation : type
        `Add` or `Multiply`.
    arrays : pair of ndarray of uint8
        The operands, C order.
    quantizers : pair of Quantizer
        Theirs.
    out : ndarray of uint8
        Written, of the shape to which they broadcast.
    made : Requantization
        How the result becomes integers.
    threads : int
        How many threads to use.
    """
    if not _repeats(arrays[0].shape, arrays[1].shape, out.shape):
        # shapes that repeat in some other way: operands are copied in full first
        full = [np.empty(out.shape, np.uint8) for _ in arrays]
        call = bind_binary(operation, full, quantizers, out, made, threads)

        def run() -> None:
            for whole, array in zip(full, arrays, strict=True):
                np.copyto(whole, array)
            call()

        return run
    (a, b), (one, other) = arrays, quantizers
    return operation(
        a, b, out,
        scales=(one.scale, other.scale, made.quantizer.scale),
        zeros=(one.zero_point, other.zero_point, made.quantizer.zero_point),
        lowest=made.lowest, highest=made.highest, fused=not made.narrowed, threads=threads,
    )  # fmt: skip


def _repeats(one: tuple[int, ...], other: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Tell whether one operand is whole, and the other one too or the same for all pixels of an image."""
    small = other if one == whole else one
    if whole not in (one, other) or len(whole) < 2:
        return one == other == whole
    return small == whole or small == (whole[0], *(1 for _ in whole[1:-1]), whole[-1])


@operator
def read_binary(node: ir.Node) -> BinaryStep | None:
    """Recognise an Add or Mul of two quantized tensors of one rank."""
    if not is_operator(node, "Add", "Mul"):
        return None
    one, other = (read_quantized(value) for value in node.inputs)
    if one is None or other is None:
        return None
    result, made = read_result(node.outputs[0])
    if made is None or overflows(node):
        return None
    # onnxruntime's sums of int8 round otherwise than those of the uint8 128 above them
    if any(value.dtype != ir.DataType.UINT8 for value in (one.source, other.source, result)):
        return None
    shapes = [operand.source.shape for operand in (one, other)]
    if any(shape is None for shape in shapes) or len(shapes[0]) != len(shapes[1]):  # type: ignore[arg-type]
        return None
    return BinaryStep(node, (one, other), result, made)
