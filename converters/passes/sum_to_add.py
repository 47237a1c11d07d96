"""Sum of two tensors is Add, which int8 engines know."""

from __future__ import annotations

import onnx_ir as ir


class SumToAdd(ir.passes.InPlacePass):
    """Rename Sum nodes of exactly two inputs to Add.

    1. Both operators broadcast alike from opset 8 on, so nothing else changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        modified = False
        for node in model.graph.all_nodes():
            if node.op_type == "Sum" and node.domain == "" and len(node.inputs) == 2:
                node.op_type = "Add"
                modified = True
        return ir.passes.PassResult(model, modified)
