"""Drop ceil_mode from poolings in which it adds no window."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from fgq.format.shapes import POOLS, InferShapes, windows


class PlainPools(ir.passes.InPlacePass):
    """Leave ``ceil_mode`` to the poolings that have more windows with it.

    onnx infers sizes with windows that begin behind the image, which no pooling has, and onnxruntime refuses
    what contradicts these sizes from opset 13 on.

    1. With ``auto_pad`` of SAME_UPPER or SAME_LOWER the number of windows follows from strides alone.
    2. Where the size of the image is known and each window lies in the padded image, ``ceil_mode`` is 0.

    Types and shapes are inferred anew where this changes anything, as sizes behind it become known.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        modified = False
        for node in model.graph:
            if node.domain == "" and node.op_type in POOLS and _is_idle(node):
                node.attributes.pop("ceil_mode")
                InferShapes()(model)
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_idle(node: ir.Node) -> bool:
    if not node.attributes.get_int("ceil_mode", 0):
        return False
    proto = ir.to_proto(node)
    found = {each.name: onnx.helper.get_attribute_value(each) for each in proto.attribute}
    if found.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return True
    image = node.inputs[0]
    if image is None or image.shape is None:
        return False
    sizes = [size if isinstance(size, int) else 0 for size in image.shape[2:]]
    axes = len(sizes)
    pads = found.get("pads") or [0] * (2 * axes)
    strides, dilations = (found.get(name) or [1] * axes for name in ("strides", "dilations"))
    for axis, count in enumerate(windows(sizes, found)):
        reach = dilations[axis] * (found["kernel_shape"][axis] - 1) + 1
        end = sizes[axis] + pads[axis] + pads[axis + axes]
        if count is None or (count - 1) * strides[axis] + reach > end:
            return False
    return True
