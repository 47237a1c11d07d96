"""Poolings of quantized images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import DataError
from fgq.graph.queries import is_operator
from fgq.graph.windows import may_crop, read_window
from fgq.kernels import Window
from fgq.kernels.operators.global_average import GlobalAveragePool
from fgq.kernels.operators.pooling import AveragePool, MaxPool
from fgq.runtime.orders import Order, channels_last
from fgq.runtime.quantizers import Quantized, Requantization, overflows, read_quantized, read_result
from fgq.runtime.steps.registry import operator
from fgq.runtime.steps.step import Array, Call, Orders, Step

_IMAGE = channels_last(4)


class PoolStep(Step):
    """A MaxPool, AveragePool or GlobalAveragePool of a quantized image.

    Parameters
    ----------
    node : onnx_ir.Node
    given : Quantized
        What is pooled.
    result : onnx_ir.Value
        The integers that come out.
    made : Requantization
    """

    dtype = np.uint8

    def __init__(self, node: ir.Node, given: Quantized, result: ir.Value, made: Requantization) -> None:
        self._node, self._given, self.result, self._made = node, given, result, made
        self.sources = (given.source,)
        self._kernel: Any = tuple(node.attributes.get_ints("kernel_shape", ()))

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self._node.name)

    @property
    def kernel(self) -> str:
        """Which pooling it is."""
        return {"MaxPool": "max_pool", "AveragePool": "average_pool"}.get(
            self._node.op_type, "global_average_pool"
        )

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders((_IMAGE,), _IMAGE)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        images, height, width, channels = arrays[0].shape
        if not self._kernel:
            return (images, 1, 1, channels)
        window = self._window(arrays[0])
        return (images, *self._size(height, width, window), channels)

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        x, made = arrays[0], self._made
        if self._node.op_type == "MaxPool":
            return MaxPool(
                x, out, self._kernel, self._window(x),
                lowest=made.lowest, highest=made.highest, threads=threads,
            )  # fmt: skip
        quantizers: dict[str, Any] = {
            "x_scale": self._given.quantizer.scale,
            "x_zero": self._given.quantizer.zero_point,
            "y_scale": made.quantizer.scale,
            "y_zero": made.quantizer.zero_point,
            "lowest": made.lowest,
            "highest": made.highest,
            "threads": threads,
        }
        if not self._kernel or self._is_global(x):
            return GlobalAveragePool(x, out, **quantizers)
        padding = bool(self._node.attributes.get_int("count_include_pad", 0))
        window = self._window(x)
        if not self._node.attributes.get_int("ceil_mode", 0):
            # onnxruntime divides by all taps, those beyond the padding of an image that is too small too
            top, left, *after = window.pads
            more = (max(-room, 0) for room in self._rooms(x.shape[1:3], window))
            bottom, right = (pad + rest for pad, rest in zip(after, more, strict=True))
            window = replace(window, pads=(top, left, bottom, right))
        return AveragePool(x, out, self._kernel, window, count_padding=padding, **quantizers)

    def _is_global(self, x: Array) -> bool:
        """Tell whether the window is the whole image; onnxruntime then rounds as in GlobalAveragePool."""
        window = self._window(x)
        return self._kernel == x.shape[1:3] and not any(window.pads) and window.dilations == (1, 1)

    def _window(self, x: Array) -> Window:
        window = read_window(self._node, self._kernel, x.shape[1:3])
        assert window is not None
        return window

    def _rooms(self, image: Sequence[int], window: Window) -> list[int]:
        """Return how far a window can move along each axis; below 0 where the padded image holds none."""
        return [
            size + window.pads[axis] + window.pads[axis + 2]
            - (self._kernel[axis] - 1) * window.dilations[axis] - 1
            for axis, size in enumerate(image)
        ]  # fmt: skip

    def _size(self, height: int, width: int, window: Window) -> tuple[int, int]:
        """Return the size of the result (ONNX MaxPool and AveragePool, ceil_mode)."""
        sizes = []
        rooms = self._rooms((height, width), window)
        for axis, (size, room) in enumerate(zip((height, width), rooms, strict=True)):
            stride = window.strides[axis]
            count = room // stride + 1
            if room < 0:
                count = 1 - -room // stride  # onnxruntime divides towards zero
                if count < 0:
                    raise DataError(
                        f"{self.name}: found an image of {height} x {width}, wanted one that holds a window"
                    )
            elif self._node.attributes.get_int("ceil_mode", 0) and room % stride:
                # a window must begin inside the image or the padding before it
                count += int(count * stride < size + window.pads[axis])
            sizes.append(count)
        return sizes[0], sizes[1]


@operator
def read_pool(node: ir.Node) -> PoolStep | None:
    """Recognise a pooling between integers."""
    if not is_operator(node, "MaxPool", "AveragePool", "GlobalAveragePool"):
        return None
    given = read_quantized(node.inputs[0])
    if given is None or any(output.uses() for output in node.outputs[1:]):
        return None
    result, made = read_result(node.outputs[0])
    if made is None or result.dtype != given.source.dtype or overflows(node):
        return None
    kernel = node.attributes.get_ints("kernel_shape", ())
    if node.op_type == "GlobalAveragePool":
        shape = node.inputs[0].shape  # type: ignore[union-attr]
        return PoolStep(node, given, result, made) if shape is not None and len(shape) == 4 else None
    if len(kernel) != 2 or may_crop(node, kernel):
        return None
    if node.op_type == "MaxPool" and made.quantizer != given.quantizer:
        return None
    return PoolStep(node, given, result, made)
