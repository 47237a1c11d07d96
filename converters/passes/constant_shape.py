"""Shapes that a graph computes of its own sizes only to leave one axis open."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.rewriting import Names, add_initializer
from fgq.graph.queries import constant


class ConstantShape(ir.passes.InPlacePass):
    """Give Reshape a constant for a shape that is joined from constants and at most one computed size.

    1. The shape is a Concat of constants without -1, and of one value of one element: in the constant it is
       -1, what the other sizes leave of the whole.
    2. Not where a constant is 0 (an axis that is copied, or an empty one).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        modified, names = False, Names(model.graph)
        for node in list(model.graph.all_nodes()):
            if node.op_type != "Reshape" or node.domain != "" or node.inputs[1] is None:
                continue
            sizes = _sizes(node.inputs[1])
            if sizes is not None:
                node.replace_input_with(1, add_initializer(names, f"{node.name}.shape", sizes))
                modified = True
        return ir.passes.PassResult(model, modified)


def _sizes(shape: ir.Value) -> NDArray[np.int64] | None:
    joined = shape.producer()
    if joined is None or joined.op_type != "Concat" or joined.domain != "":
        return None
    sizes, computed = list[int](), 0
    for part in joined.inputs:
        known = constant(part)
        if known is not None:
            sizes += known.tolist()
        elif part is not None and part.shape is not None and part.shape.is_static() and part.shape == (1,):
            sizes.append(-1)
            computed += 1
        else:
            return None
    if computed != 1 or sizes.count(-1) != 1 or 0 in sizes:
        return None
    return np.array(sizes, np.int64)
