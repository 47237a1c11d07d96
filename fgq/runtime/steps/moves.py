"""Steps that move integers without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph.queries import constant, is_operator
from fgq.kernels.operators.transpose import Transpose
from fgq.runtime.orders import Order, after_transpose, between
from fgq.runtime.quantizers import read_quantized, read_result
from fgq.runtime.steps.registry import operator
from fgq.runtime.steps.step import Array, Call, Orders, Step, check_rank


class ReorderStep(Step):
    """A value brought into another order of axes, or from int8 to the uint8 128 above it and back.

    Parameters
    ----------
    value : onnx_ir.Value
    order, wanted : Order
        How it lies, and how it is to lie.
    dtype : dtype
        Of the array that is written.
    flipped : bool
        Whether to change between int8 and uint8.
    """

    kernel = "reorder"

    def __init__(
        self, value: ir.Value, order: Order, wanted: Order, dtype: type[np.generic], *, flipped: bool
    ) -> None:
        self.sources, self.result = (value,), value
        self.dtype, self._from, self._to, self._flipped = dtype, order, wanted, flipped

    @property
    def name(self) -> str:
        """The value's name."""
        return str(self.result.name)

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders((self._from,), self._to)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return self._view(arrays[0]).shape

    def alias(self, arrays: Sequence[Array]) -> Array | None:
        """See `Step`."""
        view = self._view(arrays[0])
        return view if view.flags.c_contiguous and not self._flipped else None

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        view = self._view(arrays[0])
        if not self._flipped:
            matrices = _matrices(between(self._from, self._to, view.ndim), view.shape)
            if matrices is not None and view.itemsize == 1 and arrays[0].flags.carray and out.flags.carray:
                count, rows, columns = matrices
                x, y = arrays[0].view(np.uint8), out.view(np.uint8)
                return Transpose(x.reshape(count, columns, rows), y.reshape(matrices), threads)
            return lambda: np.copyto(out, view)
        from_bytes, to_bytes = view.view(np.uint8), out.view(np.uint8)
        return lambda: np.bitwise_xor(from_bytes, np.uint8(128), out=to_bytes)  # type: ignore[return-value]

    def _view(self, array: Array) -> Array:
        order = self._from or self._to
        if order is not None:
            check_rank(self.name, array.shape, len(order))
        return array.transpose(between(self._from, self._to, array.ndim))


def _matrices(permutation: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return the shape as matrices of what is transposed, None where more moves than two blocks of axes.

    Parameters
    ----------
    permutation : tuple of int
        That brings an array into another order of axes.
    shape : tuple of int
        Of the result.
    """
    rank, kept = len(permutation), 0
    while kept < rank and permutation[kept] == kept:
        kept += 1
    if kept == rank:
        return None
    split = rank + kept - permutation[kept]
    if permutation[kept:] != (*range(permutation[kept], rank), *range(kept, permutation[kept])):
        return None
    return math.prod(shape[:kept]), math.prod(shape[kept:split]), math.prod(shape[split:])


class TransposeStep(Step):
    """A Transpose of integers: they stay where they are, and lie in another order from now on.

    Parameters
    ----------
    node : onnx_ir.Node
    source, result : onnx_ir.Value
        The integers before and behind.
    """

    dtype = np.uint8
    kernel = "transpose"

    def __init__(self, node: ir.Node, source: ir.Value, result: ir.Value, rank: int) -> None:
        self._node, self.sources, self.result = node, (source,), result
        self._permutation = tuple(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self._node.name)

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders(tuple(given), after_transpose(given[0], self._permutation))

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return arrays[0].shape

    def alias(self, arrays: Sequence[Array]) -> Array | None:
        """See `Step`."""
        return arrays[0]

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        return lambda: np.copyto(out, arrays[0])


class ReshapeStep(Step):
    """A Reshape, Flatten, Squeeze, Unsqueeze or Identity of integers: the same memory in another shape.

    Parameters
    ----------
    node : onnx_ir.Node
    source, result : onnx_ir.Value
        The integers before and behind.
    """

    dtype = np.uint8
    kernel = "reshape"

    def __init__(self, node: ir.Node, source: ir.Value, result: ir.Value) -> None:
        self._node, self.sources, self.result = node, (source,), result

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self._node.name)

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders((None,), None)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return reshaped(self._node, arrays[0].shape)

    def alias(self, arrays: Sequence[Array]) -> Array | None:
        """See `Step`."""
        return arrays[0].reshape(self.shape(arrays))

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        return lambda: np.copyto(out, arrays[0].reshape(out.shape))


def reshaped(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a node which only reshapes gives to an array."""
    rank, op_type = len(shape), node.op_type
    if op_type == "Identity":
        return shape
    if op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1)
        axis += rank if axis < 0 else 0
        return int(np.prod(shape[:axis], dtype=np.int64)), int(np.prod(shape[axis:], dtype=np.int64))
    given = _sizes(node)
    if op_type == "Reshape":
        keep = not node.attributes.get_int("allowzero", 0)
        assert given is not None
        wanted = [shape[i] if size == 0 and keep else size for i, size in enumerate(given)]
        if -1 in wanted:
            rest = int(np.prod([size for size in wanted if size != -1], dtype=np.int64))
            wanted[wanted.index(-1)] = int(np.prod(shape, dtype=np.int64)) // max(rest, 1)
        return tuple(wanted)
    if op_type == "Squeeze":
        axes = (
            {i for i, size in enumerate(shape) if size == 1} if given is None else {a % rank for a in given}
        )
        return tuple(size for i, size in enumerate(shape) if i not in axes)
    assert given is not None
    made, sizes = rank + len(given), iter(shape)
    places = {axis % made for axis in given}
    return tuple(1 if i in places else next(sizes) for i in range(made))


@operator
def read_move(node: ir.Node) -> Step | None:
    """Recognise an operator that moves integers, between quantizers of one scale."""
    if not is_operator(node, "Transpose", *_RESHAPES):
        return None
    given = read_quantized(node.inputs[0])
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    result, made = read_result(node.outputs[0])
    if given is None or made is None or made.quantizer != given.quantizer or shape is None:
        return None
    if (made.lowest, made.highest) != (0, 255) or result.dtype != given.source.dtype:
        return None
    if node.op_type == "Transpose":
        return TransposeStep(node, given.source, result, len(shape))
    if node.op_type in ("Reshape", "Unsqueeze") and _sizes(node) is None:
        return None
    if len(node.inputs) > 1 and _sizes(node) is None:
        return None
    return ReshapeStep(node, given.source, result)


_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def _sizes(node: ir.Node) -> list[int] | None:
    """Return the constant shape or axes of a node, None where there are none.

    Those of Squeeze and Unsqueeze are attributes up to opset 12.
    """
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes", ()))
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if array is None:
        return None
    return [int(size) for size in array.reshape(-1)]
