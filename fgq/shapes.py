"""Infer the types and shapes of a model's values."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

_SEQUENCE_MAKERS = frozenset(
    "SplitToSequence SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceMap".split()
)


class InferShapes(ir.passes.InPlacePass):
    """Infer types and shapes as far as onnx can.

    1. Types and shapes are those of onnx's shape inference.
    2. The results of operators that make sequences are left without: `onnx_ir` takes the type of the
       elements for that of the sequence, which onnxruntime refuses.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        result = common.ShapeInferencePass(strict_mode=False)(model)
        for node in model.graph.all_nodes():
            if node.domain == "" and node.op_type in _SEQUENCE_MAKERS:
                for output in node.outputs:
                    output.type = output.shape = None
        return ir.passes.PassResult(model, result.modified)
