"""Where integers begin: real values become activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.kernels.boundary import check
from fgq.kernels.operators.activations import QuantizeLinear
from fgq.runtime.orders import Order, channels_last
from fgq.runtime.quantizers import Requantization, is_operator, read_clipped
from fgq.runtime.step import Array, Call, Step, wanted_rank


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

    @property
    def name(self) -> str:
        """The name of the integers."""
        return str(self.result.name)

    def orders(self, found: Sequence[Order]) -> tuple[list[Order], Order]:
        """See `Step`."""
        shape = self.result.shape
        self._image = found[0] is None and shape is not None and len(shape) == 4
        return list(found), channels_last(4) if self._image else found[0]

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return self._made_shape(arrays[0].shape)

    def _made_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self._image:
            return shape
        wanted_rank(self.name, shape, 4)
        return (shape[0], *shape[2:], shape[1])

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        return self.bind_feed({"": arrays[0]}, "", arrays[0].shape, out, threads)

    def bind_feed(
        self, feeds: Mapping[str, Array], name: str, shape: tuple[int, ...], out: Array, threads: int
    ) -> Call:
        """Return the call that takes the real values, of the given shape, from `feeds` when it is made."""
        made = self._made
        check("quantize", out=(out, self._made_shape(shape), np.uint8))
        quantize = QuantizeLinear(
            out, made.quantizer.scale, made.quantizer.zero_point, made.lowest, made.highest,
            image=self._image, threads=threads,
        )  # fmt: skip
        return lambda: quantize(feeds[name])


def read_quantize(node: ir.Node) -> QuantizeStep | None:
    """Recognise a QuantizeLinear of real values."""
    if not is_operator(node, "QuantizeLinear") or node.inputs[0] is None:
        return None
    if node.inputs[0].dtype != ir.DataType.FLOAT:
        return None
    found = read_clipped(node)
    return None if found is None else QuantizeStep(node.inputs[0], *found)
