"""The windows of convolutions and poolings, from the attributes of their nodes: padding above all."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from fgq.errors import ModelError
from fgq.kernels import Window

_SAME = ("SAME_UPPER", "SAME_LOWER")


def read_window(node: ir.Node, kernel: tuple[int, ...], image: tuple[int, ...] | None) -> Window | None:
    """Return the window of a Conv or pooling.

    Parameters
    ----------
    node : onnx_ir.Node
    kernel : tuple of int
        Rows and columns of the kernel.
    image : tuple of int or None
        Height and width.

    Returns
    -------
    Window or None
        None where it depends on an image size that is not given.

    Raises
    ------
    ModelError
        If ``auto_pad`` is not understood.
    """
    strides = tuple(node.attributes.get_ints("strides", (1, 1)))
    dilations = tuple(node.attributes.get_ints("dilations", (1, 1)))
    if image is None:
        if _auto_pad(node) in _SAME:
            return None
        image = kernel  # no other padding depends on it
    before, after = pads_of(node, image, spans(kernel, dilations), strides)
    return Window(
        strides=strides,  # type: ignore[arg-type]
        pads=(*before, *after),  # type: ignore[arg-type]
        dilations=dilations,  # type: ignore[arg-type]
        groups=node.attributes.get_int("group", 1),
    )


def may_crop(node: ir.Node, kernel: Sequence[int]) -> bool:
    """Tell whether the first window of a Conv or pooling may begin inside the image.

    The padding that onnxruntime computes for ``auto_pad`` is negative where strides are longer than windows;
    what it makes of that differs from operator to operator, and `read_window` has none that is.
    """
    if _auto_pad(node) not in _SAME:
        return False
    strides = node.attributes.get_ints("strides", (1, 1))
    dilations = node.attributes.get_ints("dilations", (1, 1))
    reach = spans(kernel, dilations)
    return any(stride - span > 1 for stride, span in zip(strides, reach, strict=True))


def spans(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Return how many pixels a window with gaps between its taps covers along each axis."""
    return [(taps - 1) * dilation + 1 for taps, dilation in zip(kernel, dilations, strict=True)]


def pads_of(
    node: ir.Node, image: Sequence[int], span: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the padding of a Conv or pooling node; see `padding`.

    Parameters
    ----------
    node : onnx_ir.Node
    image, span, strides : sequence of int, one for each spatial axis
        Sizes of the image and of a window with its dilation, and steps between windows.
    """
    pads = node.attributes.get_ints("pads", None) or [0] * (2 * len(image))
    return padding(_auto_pad(node), pads, image, span, strides)


def padding(
    auto_pad: str, pads: Sequence[int], image: Sequence[int], span: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return how far the windows of an operator reach beyond the image, before and after (ONNX, auto_pad).

    Parameters
    ----------
    auto_pad : str
        ``NOTSET`` or empty takes `pads`, ``VALID`` none, and ``SAME_UPPER`` and ``SAME_LOWER`` what gives
        ``ceil(size / stride)`` windows, an odd pixel after or before the image.
    pads : sequence of int
        Before the image along each axis, then after it.
    image, span, strides : sequence of int, one for each spatial axis
        Sizes of the image and of a window with its dilation, and steps between windows.

    Raises
    ------
    ModelError
        If ``auto_pad`` is not understood.
    """
    axes = len(image)
    if auto_pad in ("NOTSET", ""):
        return list(pads[:axes]), list(pads[axes:])
    if auto_pad == "VALID":
        return [0] * axes, [0] * axes
    if auto_pad not in _SAME:
        raise ModelError(f"auto_pad: found {auto_pad!r}, wanted NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    total = [
        max((-(-size // stride) - 1) * stride + reach - size, 0)
        for size, reach, stride in zip(image, span, strides, strict=True)
    ]
    small = [pixels // 2 for pixels in total]
    large = [pixels - half for pixels, half in zip(total, small, strict=True)]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _auto_pad(node: ir.Node) -> str:
    return node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
