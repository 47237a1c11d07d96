"""Run one integer layer: layouts in and out around a kernel call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import FgqError, ModelError
from fgq.kernels.dispatch import Kernel, Op, Problem, Wish, select_kernel
from fgq.kernels.epilogue import dequantize, requantize
from fgq.kernels.window import Window
from fgq.qtensor import QuantizedTensor
from fgq.runtime.layers import IntegerLayer
from fgq.scheme import TernaryScheme

Run = Callable[[NDArray[np.uint8]], NDArray[np.int32]]


class LayerStep:
    """An integer layer made ready to run.

    Parameters
    ----------
    layer : IntegerLayer
    wish : Wish
        Which kernels may run it.

    Raises
    ------
    KernelError
        If no kernel meets the wish for this layer.
    ModelError
        If an attribute of the operator is not understood.
    """

    def __init__(self, layer: IntegerLayer, wish: Wish) -> None:
        self.layer = layer
        try:
            prepare = {"conv": _prepare_conv, "gemm": _prepare_gemm}.get(layer.kind, _prepare_matmul)
            self.kernel, self._accumulate = prepare(layer, wish)
        except FgqError as error:
            raise type(error)(f"{layer.name}: {error}") from None
        factor = np.float32(layer.activation.scale) * layer.weight.row_scale
        if layer.requantization is not None:
            factor = factor / np.float32(layer.requantization.quantizer.scale)
        self._factor = np.asarray(factor, np.float32)

    def accumulate(self, source: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the int32 accumulators, output channels on the last axis.

        Parameters
        ----------
        source : ndarray of uint8
            The activations in the operator's own layout.
        """
        return self._accumulate(source)

    def __call__(self, source: NDArray[np.uint8]) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Return the layer's result in the operator's own layout.

        Parameters
        ----------
        source : ndarray of uint8
            The activations in the operator's own layout.
        """
        acc = self._accumulate(source)
        requantization = self.layer.requantization
        if requantization is None:
            result: NDArray[Any] = dequantize(acc, self._factor)
        else:
            result = requantize(
                acc,
                self._factor,
                requantization.quantizer.zero_point,
                requantization.lowest,
                requantization.highest,
            )
        if self.layer.kind == "conv":
            return np.ascontiguousarray(result.transpose(0, 3, 1, 2))
        if self.layer.kind == "matmul_left" and source.ndim > 1:
            return np.ascontiguousarray(result.swapaxes(-1, -2))
        return result


def _prepare_conv(layer: IntegerLayer, wish: Wish) -> tuple[str, Run]:
    codes, alpha = _channels_first(layer.weight)
    groups = layer.node.attributes.get_int("group", 1)
    depthwise = groups > 1 and codes.shape[-1] == 1
    kernel = _kernel("conv2d", layer, wish, depthwise=depthwise)
    bias = _bias(layer)
    fixed = _window(layer.node, codes.shape[1:3], None)
    prepared: dict[Window, Any] = {}

    def run(source: NDArray[np.uint8]) -> NDArray[np.int32]:
        window = fixed or _window(layer.node, codes.shape[1:3], source.shape[2:])
        assert window is not None
        if window not in prepared:
            prepared[window] = kernel.prepare(
                codes, alpha, layer.weight.group, bias, layer.activation.zero_point, window
            )
        return kernel.run(prepared[window], np.ascontiguousarray(source.transpose(0, 2, 3, 1)))

    return kernel.name, run


def _prepare_gemm(layer: IntegerLayer, wish: Wish) -> tuple[str, Run]:
    name, run = _prepare_matmul(layer, wish)
    if layer.node.attributes.get_int("transA", 0):
        return name, lambda source: run(source.T)
    return name, run


def _prepare_matmul(layer: IntegerLayer, wish: Wish) -> tuple[str, Run]:
    codes, alpha = _channels_first(layer.weight)
    kernel = _kernel("matmul", layer, wish)
    M, K = codes.shape[0], codes.shape[-1]
    batch = codes.shape[1:-1]
    bias, zero = _bias(layer), layer.activation.zero_point
    matrices = [
        kernel.prepare(
            np.ascontiguousarray(codes[(slice(None), *index)]),
            np.ascontiguousarray(alpha[(slice(None), *index)]),
            layer.weight.group,
            bias,
            zero,
        )
        for index in np.ndindex(*batch)
    ]
    left = layer.kind == "matmul_left"

    def run(source: NDArray[np.uint8]) -> NDArray[np.int32]:
        if source.ndim == 1:  # a vector is a matrix of one row, which the result drops again
            return run(source[:, None] if left else source[None])[..., 0, :]
        rows = source.swapaxes(-1, -2) if left else source
        if not batch:
            flat = np.ascontiguousarray(rows).reshape(-1, K)
            return kernel.run(matrices[0], flat).reshape(*rows.shape[:-1], M)
        shape = np.broadcast_shapes(rows.shape[:-2], batch)
        rows = np.broadcast_to(rows, (*shape, *rows.shape[-2:]))
        which = np.broadcast_to(np.arange(len(matrices)).reshape(batch), shape)
        acc = np.empty((*shape, rows.shape[-2], M), np.int32)
        for index in np.ndindex(*shape):
            acc[index] = kernel.run(matrices[which[index]], np.ascontiguousarray(rows[index]))
        return acc

    return kernel.name, run


def _channels_first(weight: QuantizedTensor) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Return codes and alpha with the output channel first and the group axis last."""
    (plane,) = weight.planes
    full = list(weight.shape)
    full[weight.group_axis] = weight.groups
    alpha = np.broadcast_to(plane.alpha, full)
    axes = (weight.channel_axis, weight.group_axis), (0, -1)
    return (
        np.ascontiguousarray(np.moveaxis(plane.codes, *axes)),
        np.ascontiguousarray(np.moveaxis(alpha, *axes)),
    )


def _kernel(op: Op, layer: IntegerLayer, wish: Wish, *, depthwise: bool = False) -> Kernel:
    """Select a kernel; a layer of 8-bit weights, which none can do without multiplying, takes the fastest."""
    ternary = isinstance(layer.weight.scheme, TernaryScheme)
    if wish is Wish.MULTIPLICATION_FREE and not ternary:
        wish = Wish.AUTO
    return select_kernel(Problem(op=op, ternary=ternary, depthwise=depthwise), wish)


def _bias(layer: IntegerLayer) -> NDArray[np.int32]:
    return np.zeros(layer.weight.rows, np.int32) if layer.bias is None else layer.bias


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
