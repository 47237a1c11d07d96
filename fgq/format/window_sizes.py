"""Whether the windows that operators slide over images have sizes that can be meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from fgq.format.operand_sizes import Sizes

LARGEST = 2**31 - 1
"""Kernels, strides and the like beyond this are no sizes; onnxruntime multiplies them without a look."""

WINDOWS = frozenset(
    "AveragePool Conv ConvInteger ConvTranspose Col2Im DeformConv GlobalLpPool LpPool MaxPool MaxUnpool "
    "QLinearConv".split()
)
"""Operators that slide a window over an image."""

_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})

_WEIGHTS: Mapping[str, int] = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3}
"""Which input of them is the weights."""

_POSITIVE = ("kernel_shape", "strides", "dilations", "group", "offset_group")
_NOT_NEGATIVE = ("pads", "output_padding", "output_shape")


def window_faults(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    """Yield what is wrong with the window of a node.

    Parameters
    ----------
    node : onnx_ir.Node
        Of an operator of `WINDOWS`.
    sizes : Sizes
    """
    lengths = dict[str, int]()
    for names, least in ((_POSITIVE, 1), (_NOT_NEGATIVE, 0)):
        for name in names:
            attribute = node.attributes.get(name)
            if attribute is None or attribute.is_ref():
                continue
            one = attribute.type == ir.AttributeType.INT
            numbers = [attribute.as_int()] if one else list(attribute.as_ints())
            if not one and numbers and name != "output_shape":  # which may have the image's first axes
                lengths[name] = len(numbers) // (2 if name == "pads" else 1)
            if any(not least <= number <= LARGEST for number in numbers):
                yield f"{name}: found {numbers}, wanted numbers from {least} to {LARGEST}"
    if len(set(lengths.values())) > 1:
        yield f"found attributes of different numbers of axes: {', '.join(map(str, lengths))}"
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto not in ("", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        yield f"auto_pad: found {auto!r}, wanted NOTSET, VALID, SAME_UPPER or SAME_LOWER"
    image = sizes.axes(0)
    if image is not None and 0 in image[2:]:
        yield f"found an image of shape {image}, wanted one or more pixels"
    if image is not None and node.op_type in _POOLS:
        yield from _pool(node, image[2:])
    weights = sizes.axes(_WEIGHTS[node.op_type]) if node.op_type in _WEIGHTS else None
    if weights is None:
        return
    if len(weights) < 3:
        yield f"found weights of {len(weights)} axes, wanted 3 or more"
    elif lengths and next(iter(lengths.values())) != len(weights) - 2:
        yield f"found {next(iter(lengths))} of {next(iter(lengths.values()))} axes, wanted {len(weights) - 2}"
    elif kernel := node.attributes.get_ints("kernel_shape", ()):
        if any(size not in (None, taps) for taps, size in zip(kernel, weights[2:], strict=True)):
            yield f"kernel_shape: found {list(kernel)}, wanted {weights[2:]}, as the weights have"


def _pool(node: ir.Node, image: Sequence[int | None]) -> Iterator[str]:
    """Check that the result of a pooling has pixels: onnxruntime divides by their number."""
    attributes, axes = node.attributes, len(image)
    kernel = attributes.get_ints("kernel_shape", ())
    strides, dilations = (attributes.get_ints(name) or [1] * axes for name in ("strides", "dilations"))
    auto = attributes.get_string("auto_pad", "NOTSET")
    pads = (attributes.get_ints("pads") if auto != "VALID" else None) or [0] * (2 * axes)
    if len(kernel) != axes or len(pads) != 2 * axes:
        yield f"found a window of {len(kernel)} axes for an image of {axes}, wanted as many"
        return
    if auto is not None and auto.startswith("SAME"):
        return
    for axis, size in enumerate(image):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if size is not None and reach - size - pads[axis] - pads[axis + axes] >= strides[axis]:
            yield (
                f"found a window over {reach} pixels of {size} with {pads[axis]} and {pads[axis + axes]} of "
                "padding, wanted one that fits into the image"
            )
