"""Steps on real values, between the matrix products of a transformer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph.queries import constant, is_operator, is_read, sole_reader, sole_use
from fgq.kernels.operators.gelu import Gelu
from fgq.kernels.operators.layer_norm import LayerNorm
from fgq.kernels.operators.softmax import Softmax
from fgq.kernels.products.driver import aligned
from fgq.runtime.orders import Order
from fgq.runtime.quantizers import Requantization, read_result
from fgq.runtime.steps.registry import Scope, Turn, finder
from fgq.runtime.steps.step import Array, Call, Orders, Step, broadcast


class _FloatStep(Step):
    """A step that keeps the shape of real values in the plain order."""

    dtype: type[np.generic] = np.float32

    def __init__(self, node: ir.Node, sources: tuple[ir.Value, ...], result: ir.Value) -> None:
        self._node, self.sources, self.result = node, sources, result

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self._node.name)

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders((None,) * len(given), None)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return arrays[0].shape


class GeluStep(_FloatStep):
    """A GELU, and the quantizer behind it.

    Parameters
    ----------
    node : onnx_ir.Node
        The operator, or the Erf within it.
    source, result : onnx_ir.Value
    made : Requantization or None
        None where the result stays float.
    tanh : bool
        Whether it is the form with tanh.
    """

    kernel = "gelu"

    def __init__(
        self, node: ir.Node, source: ir.Value, result: ir.Value, made: Requantization | None, *, tanh: bool
    ) -> None:
        super().__init__(node, (source,), result)
        self._made, self._tanh = made, tanh
        self.dtype = np.float32 if made is None else np.uint8

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        if self._made is None:
            return Gelu(arrays[0], out, tanh=self._tanh, threads=threads)
        quantizer = self._made.quantizer
        return Gelu(
            arrays[0], out, tanh=self._tanh, y_scale=quantizer.scale, y_zero=quantizer.zero_point,
            lowest=self._made.lowest, highest=self._made.highest, threads=threads,
        )  # fmt: skip


class LayerNormStep(_FloatStep):
    """A LayerNormalization over the last axis.

    Parameters
    ----------
    node : onnx_ir.Node
    weight, bias : ndarray of float32, shape (width,)
    """

    kernel = "layer_norm"

    def __init__(self, node: ir.Node, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        source = node.inputs[0]
        assert source is not None
        super().__init__(node, (source,), node.outputs[0])
        self._weight, self._bias = weight, bias

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        epsilon = self._node.attributes.get_float("epsilon", 1e-5)
        width = arrays[0].shape[-1]
        weight, bias = (
            np.broadcast_to(array, (width,)) if array.size == 1 else array
            for array in (self._weight, self._bias)
        )
        return LayerNorm(arrays[0], out, weight, bias, epsilon, threads)


class SoftmaxStep(_FloatStep):
    """A Softmax over the last axis, with the factor and the mask before it.

    Parameters
    ----------
    node : onnx_ir.Node
    source : onnx_ir.Value
    scale : float
    mask : onnx_ir.Value or None
    """

    kernel = "softmax"

    def __init__(self, node: ir.Node, source: ir.Value, scale: float, mask: ir.Value | None) -> None:
        super().__init__(node, (source,) if mask is None else (source, mask), node.outputs[0])
        self._scale = scale

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        x, mask = arrays[0], arrays[1] if len(arrays) > 1 else None
        if mask is None or (out.shape == x.shape and mask.shape[-1] == x.shape[-1]):
            return Softmax(x, out, scale=self._scale, mask=mask, threads=threads)
        masked, scale, added = aligned(out.shape, np.float32), np.float32(self._scale), mask
        softmax = Softmax(masked, out, threads=threads)

        def run() -> None:
            np.add(x * scale, added, out=masked)
            softmax()

        return run

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return broadcast(self.name, *(array.shape for array in arrays))


@finder(Turn.REALS)
def find_real_operators(scope: Scope) -> Iterator[Step]:
    """Find GELUs, LayerNormalizations and Softmaxes in a graph that has integer products."""
    for node in scope.graph if scope.steps else ():
        step = read_gelu(node) or read_layer_norm(node) or read_softmax(node, scope.opset)
        if step is not None:
            yield step


def read_gelu(node: ir.Node) -> GeluStep | None:
    """Recognise a GELU of real values: the operator, or its formula around an Erf."""
    form = "none"
    if is_operator(node, "Gelu"):
        form = node.attributes.get_string("approximate", "none")
        source, result = node.inputs[0], node.outputs[0]
    elif is_operator(node, "Erf"):
        found = _gelu_around(node)
        if found is None:
            return None
        source, result = found
    else:
        return None
    if source is None or source.dtype != ir.DataType.FLOAT or form not in ("none", "tanh"):
        return None
    return GeluStep(node, source, *read_result(result), tanh=form == "tanh")


def read_layer_norm(node: ir.Node) -> LayerNormStep | None:
    """Recognise a LayerNormalization over the last axis with constant weights."""
    if not is_operator(node, "LayerNormalization") or node.inputs[0] is None:
        return None
    source, weight = node.inputs[0], constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    rank = None if source.shape is None else len(source.shape)
    if node.attributes.get_int("axis", -1) not in (-1, None if rank is None else rank - 1):
        return None
    if weight is None or weight.ndim != 1 or weight.dtype != np.float32 or source.dtype != ir.DataType.FLOAT:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and (bias is None or bias.shape != weight.shape):
        return None
    if is_read(node.outputs[1:]):
        return None
    return LayerNormStep(node, weight, np.zeros_like(weight) if bias is None else bias)


def read_softmax(node: ir.Node, opset: int) -> SoftmaxStep | None:
    """Recognise a Softmax over the last axis, and a constant factor and a mask before it.

    Parameters
    ----------
    node : onnx_ir.Node
    opset : int
        Of the standard operators.
    """
    if not is_operator(node, "Softmax") or node.inputs[0] is None:
        return None
    source, shape = node.inputs[0], node.inputs[0].shape
    if shape is None or len(shape) < 2 or source.dtype != ir.DataType.FLOAT:
        return None
    # up to opset 12 all axes from this one on are one, the last alone if it is the last
    last_by_default = opset >= 13 or len(shape) == 2
    if node.attributes.get_int("axis", -1 if last_by_default else 1) not in (-1, len(shape) - 1):
        return None
    mask = None
    if (added := _only(source, "Add")) is not None:
        one, other = added.inputs
        for values, some in ((one, other), (other, one)):
            if values is None or some is None or values.shape != shape or some.shape is None:
                continue
            masks = len(some.shape) == len(shape) and some.shape[-1] == shape[-1]
            if masks and some.dtype == ir.DataType.FLOAT and constant(some) is None:
                source, mask = values, some
                break
    scale = 1.0
    if (scaled := _only(source, "Mul", "Div")) is not None:
        factor = constant(scaled.inputs[1])
        if factor is not None and factor.size == 1 and factor.ndim <= 1 and factor.item() != 0:
            first = scaled.inputs[0]
            assert first is not None
            # dividing by a power of two is multiplying by its inverse; anything else rounds otherwise
            exact = scaled.op_type == "Mul" or math.frexp(factor.item())[0] == 0.5
            if exact:
                scale = float(factor.item()) if scaled.op_type == "Mul" else 1 / float(factor.item())
                source = first
    return SoftmaxStep(node, source, scale, mask)


def _only(value: ir.Value, *op_types: str) -> ir.Node | None:
    """Return the operator of one of these types that makes a value which nothing else reads."""
    node = value.producer()
    return node if is_operator(node, *op_types) and sole_use(value) is not None else None


def _gelu_around(erf: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return source and result of ``0.5 * x * (1 + erf(x / sqrt 2))``, in the orders that exporters write."""
    inner = None if erf.inputs[0] is None else erf.inputs[0].producer()
    if inner is None or not is_operator(inner, "Div", "Mul"):
        return None
    source, factor = inner.inputs[0], _number(inner.inputs[1])
    wanted = math.sqrt(2) if inner.op_type == "Div" else math.sqrt(0.5)
    plus = sole_reader(erf.outputs[0], "Add")
    if source is None or factor is None or plus is None or abs(factor - wanted) > 1e-6:
        return None
    if _other_number(plus, erf.outputs[0]) != 1.0:
        return None
    times = sole_reader(plus.outputs[0], "Mul")
    if times is None:
        return None
    other = _other(times, plus.outputs[0])
    if other is source:  # x * (1 + erf) * 0.5
        half = sole_reader(times.outputs[0], "Mul")
        if half is not None and _other_number(half, times.outputs[0]) == 0.5:
            return source, half.outputs[0]
    elif other is not None:  # (0.5 * x) * (1 + erf)
        half = other.producer()
        if half is not None and is_operator(half, "Mul") and source in half.inputs:
            if _other_number(half, source) == 0.5:
                return source, times.outputs[0]
    elif _other_number(times, plus.outputs[0]) == 0.5:  # x * (0.5 * (1 + erf))
        last = sole_reader(times.outputs[0], "Mul")
        if last is not None and _other(last, times.outputs[0]) is source:
            return source, last.outputs[0]
    return None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the other operand of a node, None where it is constant."""
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    return None if constant(other) is not None else other


def _other_number(node: ir.Node, value: ir.Value) -> float | None:
    return _number(node.inputs[1] if node.inputs[0] is value else node.inputs[0])


def _number(value: ir.Value | None) -> float | None:
    """Return a constant of one element that changes the shape of nothing which has an axis."""
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 and array.ndim <= 1 else None
