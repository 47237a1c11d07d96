"""The mean over all pixels is GlobalAveragePool, which int8 engines know."""

from __future__ import annotations

import onnx_ir as ir

from fgq.converters.rewriting import Names, redirect, take_name
from fgq.graph.queries import constant


class MeanToPool(ir.passes.InPlacePass):
    """Replace ReduceMean over the spatial axes of images by GlobalAveragePool.

    1. The input is known to be float32 of rank 4, as integers have a mean and no pooling, and the axes are
       constants: 2 and 3, in any order or counted from the end.
    2. Where the axes are not kept, Flatten drops them behind the pool; so an empty batch stays one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        modified, names = False, Names(model.graph)
        for node in list(model.graph.all_nodes()):
            if node.op_type != "ReduceMean" or node.domain != "" or not _over_pixels(node):
                continue
            kept = bool(node.attributes.get_int("keepdims", 1))
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()
            node.resize_inputs(1)
            if not kept:
                _drop_axes(names, node)
            modified = True
        return ir.passes.PassResult(model, modified)


def _over_pixels(node: ir.Node) -> bool:
    images = node.inputs[0]
    if images is None or images.dtype != ir.DataType.FLOAT or images.shape is None or len(images.shape) != 4:
        return False
    if 0 in images.shape[2:]:  # their mean is NaN
        return False
    axes = list(node.attributes.get_ints("axes", ()))
    if len(node.inputs) > 1 and node.inputs[1] is not None:  # an input from opset 18 on
        found = constant(node.inputs[1])
        axes = [] if found is None else found.ravel().tolist()
    return sorted(axis % 4 for axis in axes) == [2, 3]


def _drop_axes(names: Names, pool: ir.Node) -> None:
    mean = pool.outputs[0]
    home = pool.graph
    assert home is not None
    flatten = ir.node("Flatten", [mean], {"axis": 1}, name=f"{pool.name}.flatten")
    home.insert_after(pool, flatten)
    redirect(mean, flatten.outputs[0], keep=[flatten])
    take_name(names, mean, flatten.outputs[0], ".pool")
    given = pool.inputs[0]
    assert given is not None
    assert given.shape is not None
    mean.shape = ir.Shape([*given.shape[:2], 1, 1])
