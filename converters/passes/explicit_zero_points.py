"""Zero points of weights that a model has quantized itself are written."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fgq.converters.rewriting import Names, add_initializer
from fgq.graph.queries import constant


class ExplicitZeroPoints(ir.passes.InPlacePass):
    """Write the zero points of int8 constants that have a scale for each channel.

    1. They are zeros, as ONNX has them where they are missing. onnxruntime makes the constants unsigned on
       processors without VNNI (`fgq.graph.ort`), and then fails to run those without.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        modified, names = False, Names(model.graph)
        for node in model.graph.all_nodes():
            if node.op_type != "DequantizeLinear" or node.domain != "":
                continue
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                continue
            integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
            if integers is None or integers.dtype != np.int8 or scale is None or scale.ndim == 0:
                continue
            node.resize_inputs(3)
            zeros = np.zeros(scale.shape, np.int8)
            node.replace_input_with(2, add_initializer(names, f"{node.outputs[0].name}.zero_point", zeros))
            modified = True
        return ir.passes.PassResult(model, modified)
