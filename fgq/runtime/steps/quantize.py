"""Where integers begin: real values become activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph.queries import is_operator
from fgq.kernels.boundary import check
from fgq.kernels.operators.activations import QuantizeLinear
from fgq.runtime.orders import Order, channels_last
from fgq.runtime.quantizers import Requantization, read_clipped, read_quantized
from fgq.runtime.steps.lookup import read_lookup
from fgq.runtime.steps.registry import Scope, Turn, finder
from fgq.runtime.steps.step import Array, Call, Orders, Step, TakeInput, check_rank


class QuantizeStep(Step):
    """A QuantizeLinear, and the Clip to 4 bits behind it.

    An image in the plain order is brought into that of the convolutions meanwhile.

    Parameters
    ----------
    source : onnx_ir.Value
        The real values.
    result : onnx_ir.Value
        The integers.
    made : Requantization
    """

    dtype = np.uint8
    kernel = "quantize"

    def __init__(self, source: ir.Value, result: ir.Value, made: Requantization) -> None:
        self.sources, self.result, self._made = (source,), result, made
        self._image = False

    @property
    def name(self) -> str:
        """The name of the integers."""
        return str(self.result.name)

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        shape = self.result.shape
        is_image = given[0] is None and shape is not None and len(shape) == 4
        return Orders(tuple(given), channels_last(4) if is_image else given[0])

    def in_orders(self, orders: Orders) -> QuantizeStep:
        """See `Runnable`."""
        step = copy(self)
        step._image = orders.sources != (orders.result,)
        return step

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return self._made_shape(arrays[0].shape)

    def _made_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self._image:
            return shape
        check_rank(self.name, shape, 4)
        return (shape[0], *shape[2:], shape[1])

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        return partial(self.bind_for_input(arrays[0].shape, out, threads), arrays[0])

    def bind_for_input(self, shape: tuple[int, ...], out: Array, threads: int) -> TakeInput:
        """See `Runnable`."""
        made = self._made
        check("quantize", out=(out, self._made_shape(shape), np.uint8))
        return QuantizeLinear(
            out, made.quantizer.scale, made.quantizer.zero_point, made.lowest, made.highest,
            image=self._image, threads=threads,
        )  # fmt: skip


def read_quantize(node: ir.Node) -> QuantizeStep | None:
    """Recognise a QuantizeLinear of real values."""
    if not is_operator(node, "QuantizeLinear") or node.inputs[0] is None:
        return None
    if node.inputs[0].dtype != ir.DataType.FLOAT:
        return None
    clipped = read_clipped(node)
    return None if clipped is None else QuantizeStep(node.inputs[0], *clipped)


@finder(Turn.EDGES)
def find_edges(scope: Scope) -> Iterator[Step]:
    """Find what else a QuantizeLinear ends: a function of one activation, or real values."""
    for node in scope.graph:
        step = read_lookup(node, scope.opset) or read_quantize(node)
        if step is not None and _stands_alone(step.sources[0], scope.steps):
            yield step


def _stands_alone(value: ir.Value, steps: Mapping[ir.Value, Step]) -> bool:
    """Tell whether a value comes from no operator that onnxruntime may join with the quantizer behind it."""
    producer = value.producer()
    if producer is None or value in steps:
        return True
    return not any(read_quantized(read) for read in producer.inputs)
