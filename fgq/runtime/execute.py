"""Run one integer layer: layouts in and out around a kernel call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import FgqError, ModelError
from fgq.kernels import Plane, Weight, Window
from fgq.kernels.dispatch import MOST_ADDED, Wish
from fgq.kernels.epilogue import Dequantize, Epilogue, Requantize, Sums
from fgq.kernels.layer import Layer, Wishes
from fgq.qtensor import QuantizedTensor
from fgq.runtime.layers import IntegerLayer

Run = Callable[[NDArray[np.uint8], Epilogue], NDArray[Any]]


class LayerStep:
    """An integer layer made ready to run.

    Parameters
    ----------
    layer : IntegerLayer
    wish : Wish
        Which kernels may run it. A layer of 8-bit weights, which none can do without multiplying, takes the
        fastest where that is wished.
    threads : int
        How many threads a kernel uses.

    Raises
    ------
    KernelError
        If no kernel meets the wish for this layer.
    ModelError
        If an attribute of the operator is not understood.
    """

    def __init__(self, layer: IntegerLayer, wish: Wish, threads: int) -> None:
        self.layer = layer
        self._threads = threads
        self._weight = _channels_first(layer.weight)
        if wish is Wish.MULTIPLICATION_FREE and self._weight.largest_code > MOST_ADDED:
            wish = Wish.AUTO
        self._wishes = Wishes(kernel=wish)
        try:
            make = {"conv": self._convolution, "gemm": self._gemm}.get(layer.kind, self._matmul)
            self._kernel, self._run = make()
        except FgqError as error:
            raise type(error)(f"{layer.name}: {error}") from None
        self._epilogue = _epilogue(layer)

    @property
    def kernel(self) -> str:
        """The name of the kernel that runs the layer on many rows."""
        return self._kernel

    def accumulate(self, source: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the int32 accumulators, output channels on the last axis.

        Parameters
        ----------
        source : ndarray of uint8
            The activations in the operator's own layout.
        """
        return self._run(source, Sums())

    def __call__(self, source: NDArray[np.uint8]) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Return the layer's result in the operator's own layout.

        Parameters
        ----------
        source : ndarray of uint8
            The activations in the operator's own layout.
        """
        result = self._run(source, self._epilogue)
        if self.layer.kind == "conv":
            return np.ascontiguousarray(result.transpose(0, 3, 1, 2))
        if self.layer.kind == "matmul_left" and source.ndim > 1:
            return np.ascontiguousarray(result.swapaxes(-1, -2))
        return result

    def _layer(self, weight: Weight, window: Window | None) -> Layer:
        activation = self.layer.activation
        return Layer(
            weight, window=window, x_zero=activation.zero_point, bias=self.layer.bias, wishes=self._wishes,
            activation_bits=self.layer.activation_bits,
        )  # fmt: skip

    def _convolution(self) -> tuple[str, Run]:
        node, taps = self.layer.node, self._weight.shape[1:3]
        fixed = _window(node, taps, None)
        layers: dict[Window, Layer] = {}

        def layer_for(image: tuple[int, ...]) -> Layer:
            window = fixed or _window(node, taps, image)
            assert window is not None
            if window not in layers:
                layers[window] = self._layer(self._weight, window)
            return layers[window]

        def run(source: NDArray[np.uint8], epilogue: Epilogue) -> NDArray[Any]:
            x = np.ascontiguousarray(source.transpose(0, 2, 3, 1))
            return layer_for(source.shape[2:])(x, epilogue=epilogue, threads=self._threads)

        # auto_pad changes the padding with the image, and the kernel with neither
        return layer_for(taps).kernel().name, run

    def _gemm(self) -> tuple[str, Run]:
        name, run = self._matmul()
        if self.layer.node.attributes.get_int("transA", 0):
            return name, lambda source, epilogue: run(source.T, epilogue)
        return name, run

    def _matmul(self) -> tuple[str, Run]:
        weight, K = self._weight, self._weight.shape[-1]
        batch = weight.shape[1:-1]
        layers = [self._layer(_slice(weight, index), None) for index in np.ndindex(*batch)]
        left = self.layer.kind == "matmul_left"

        def run(source: NDArray[np.uint8], epilogue: Epilogue) -> NDArray[Any]:
            if source.ndim == 1:  # a vector is a matrix of one row, which the result drops again
                return run(source[:, None] if left else source[None], epilogue)[..., 0, :]
            rows = source.swapaxes(-1, -2) if left else source
            if not batch:
                flat = np.ascontiguousarray(rows).reshape(-1, K)
                result = layers[0](flat, epilogue=epilogue, threads=self._threads)
                return result.reshape(*rows.shape[:-1], -1)
            shape = np.broadcast_shapes(rows.shape[:-2], batch)
            rows = np.broadcast_to(rows, (*shape, *rows.shape[-2:]))
            which = np.broadcast_to(np.arange(len(layers)).reshape(batch), shape)
            out = np.empty((*shape, rows.shape[-2], weight.shape[0]), epilogue.dtype)
            for index in np.ndindex(*shape):
                x = np.ascontiguousarray(rows[index])
                out[index] = layers[which[index]](x, epilogue=epilogue, threads=self._threads)
            return out

        return layers[0].kernel().name, run


def _epilogue(layer: IntegerLayer) -> Epilogue:
    factor = np.float32(layer.activation.scale) * layer.weight.row_scale
    if layer.requantization is None:
        return Dequantize(np.asarray(factor, np.float32))
    quantizer = layer.requantization.quantizer
    return Requantize(
        np.asarray(factor / np.float32(quantizer.scale), np.float32),
        quantizer.zero_point,
        layer.requantization.lowest,
        layer.requantization.highest,
    )


def _channels_first(weight: QuantizedTensor) -> Weight:
    """Return the weight with the output channel first and the group axis last."""
    axes = (weight.channel_axis, weight.group_axis), (0, -1)
    planes = []
    for plane in weight.planes:
        full = list(weight.shape)
        full[weight.group_axis] = weight.groups
        alpha = np.broadcast_to(plane.alpha, full)
        codes = np.ascontiguousarray(np.moveaxis(plane.codes, *axes))
        planes.append(Plane(codes, np.ascontiguousarray(np.moveaxis(alpha, *axes))))
    return Weight(tuple(planes), weight.group)


def _slice(weight: Weight, index: tuple[int, ...]) -> Weight:
    """Return one matrix [M, K] of a batch [M, .., K]."""
    at: tuple[slice | int, ...] = (slice(None), *index)
    planes = [
        Plane(np.ascontiguousarray(plane.codes[at]), np.ascontiguousarray(plane.alpha[at]))
        for plane in weight.planes
    ]
    return Weight(tuple(planes), weight.group)


def _window(node: ir.Node, kernel: tuple[int, ...], image: tuple[int, ...] | None) -> Window | None:
    """Return the window of a Conv; None where it depends on an image size that is not given."""
    strides = tuple(node.attributes.get_ints("strides", (1, 1)))
    dilations = tuple(node.attributes.get_ints("dilations", (1, 1)))
    pads = tuple(node.attributes.get_ints("pads", (0, 0, 0, 0)))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if image is None:
            return None
        pads = _same_pads(image, kernel, strides, dilations, upper=auto == "SAME_UPPER")
    elif auto not in ("NOTSET", "VALID"):
        raise ModelError(f"auto_pad: found {auto!r}, wanted NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    elif auto == "VALID":
        pads = (0, 0, 0, 0)
    return Window(
        strides=strides,  # type: ignore[arg-type]
        pads=pads,  # type: ignore[arg-type]
        dilations=dilations,  # type: ignore[arg-type]
        groups=node.attributes.get_int("group", 1),
    )


def _same_pads(
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    *,
    upper: bool,
) -> tuple[int, ...]:
    """Return the padding that gives ``ceil(size / stride)`` outputs (ONNX Conv, auto_pad)."""
    before, after = [], []
    for size, taps, stride, dilation in zip(image, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if upper else large)
        after.append(large if upper else small)
    return (*before, *after)
