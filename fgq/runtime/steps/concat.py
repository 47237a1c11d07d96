"""Concatenation of quantized tensors."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import DataError
from fgq.graph.queries import is_operator
from fgq.kernels.operators.concat import Concat
from fgq.kernels.operators.lookup import requantization_table
from fgq.runtime.orders import Order, place_of
from fgq.runtime.quantizers import Quantized, Requantization, read_quantized, read_result
from fgq.runtime.steps.registry import operator
from fgq.runtime.steps.step import Array, Call, Orders, Step


class ConcatStep(Step):
    """A Concat of quantized tensors, each brought to the scale of the result.

    Parameters
    ----------
    node : onnx_ir.Node
    parts : sequence of Quantized
    result : onnx_ir.Value
        The integers that come out.
    made : Requantization
    rank : int
    """

    dtype = np.uint8
    kernel = "concat"

    def __init__(
        self,
        node: ir.Node,
        parts: Sequence[Quantized],
        result: ir.Value,
        made: Requantization,
        rank: int,
    ) -> None:
        self._node, self._parts, self.result, self._made = node, parts, result, made
        self.sources = tuple(part.source for part in parts)
        self._rank = rank
        self._axis = self._place(None)
        self._tables = [
            requantization_table(
                part.quantizer.scale, part.quantizer.zero_point, made.quantizer.scale,
                made.quantizer.zero_point, made.lowest, made.highest,
            )
            for part in parts
        ]  # fmt: skip

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self._node.name)

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        order = max(given, key=given.count)
        return Orders((order,) * len(given), order)

    def in_orders(self, orders: Orders) -> ConcatStep:
        """See `Runnable`."""
        step = copy(self)
        step._axis = self._place(orders.result)
        return step

    def _place(self, order: Order) -> int:
        return place_of(self._node.attributes["axis"].as_int(), order, self._rank)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        shape = list(arrays[0].shape)
        for array in arrays:
            shape[self._axis] = array.shape[self._axis]
            if list(array.shape) != shape:
                shapes = ", ".join(str(list(each.shape)) for each in arrays)
                raise DataError(
                    f"{self.name}: found parts of {shapes}, wanted equal sizes along all axes but one"
                )
        shape[self._axis] = sum(array.shape[self._axis] for array in arrays)
        return tuple(shape)

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        return Concat(arrays, out, self._axis, self._tables, threads)


@operator
def read_concat(node: ir.Node) -> ConcatStep | None:
    """Recognise a Concat between integers."""
    if not is_operator(node, "Concat"):
        return None
    parts = [part for value in node.inputs if (part := read_quantized(value)) is not None]
    shape = node.outputs[0].shape
    result, made = read_result(node.outputs[0])
    if len(parts) < len(node.inputs) or made is None or shape is None:
        return None
    if any(part.source.dtype != result.dtype for part in parts):
        return None
    return ConcatStep(node, parts, result, made, len(shape))
