"""The windows of convolutions and poolings, from the attributes of their nodes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from fgq.errors import ModelError
from fgq.kernels import Window


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


def may_crop(node: ir.Node, kernel: Sequence[int]) -> bool:
    """Tell whether the first window of a Conv or pooling may begin inside the image.

    The padding that onnxruntime computes for ``auto_pad`` is negative where strides are longer than windows;
    what it makes of that differs from operator to operator, and `read_window` has none that is.
    """
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("SAME_UPPER", "SAME_LOWER"):
        return False
    strides = node.attributes.get_ints("strides", (1, 1))
    dilations = node.attributes.get_ints("dilations", (1, 1))
    return any(
        stride - ((taps - 1) * dilation + 1) > 1
        for taps, stride, dilation in zip(kernel, strides, dilations, strict=True)
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
