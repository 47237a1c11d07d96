"""Evaluate operators whose inputs are constants, so that weights are found behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from fgq.converters.rewriting import Names, add_initializer, redirect
from fgq.errors import SizeError
from fgq.graph.queries import constant

LAYOUT = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"})

ELEMENTWISE = frozenset(
    "Abs Add Ceil Clip Div Exp Floor Log Max Min Mul Neg Pow Reciprocal Relu Round Sigmoid Sign Sqrt Sub "
    "Tanh".split()
)

SMALLER = frozenset(
    "Concat Slice ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare".split()
)
"""Operators whose results hold no more elements than their operands."""

_EXACT = frozenset(
    getattr(onnx.TensorProto, name)
    for name in "FLOAT FLOAT16 BFLOAT16 DOUBLE BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
)


MOST_BYTES = 2**30
"""Of all values together, however small the model is."""

MOST_TIMES = 16
"""How many bytes are computed for each one of the model's constants, at most."""


class FoldConstants(ir.passes.InPlacePass):
    """Replace operators on initializers by their value.

    1. Only those of layout, and of floats those of arithmetic whose result is no larger than its operands, in
       the main graph, with every input an initializer. A Cast only to the types in `_EXACT`, to which
       onnxruntime and the reference round alike, and not from or to text.
    2. The value is that of the ONNX reference evaluator.
    3. Nodes are visited in order, so chains fold whole.
    4. A result that is a graph output keeps its node.
    5. All results together are of bounded size; a model that would need more is refused.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        graph = model.graph
        modified, names = False, Names(graph)
        tensors = [
            value.const_value for value in graph.initializers.values() if value.const_value is not None
        ]
        left = most = max(MOST_BYTES, MOST_TIMES * sum(tensor.nbytes for tensor in tensors))
        for node in list(graph):
            if node.domain != "" or node.outputs[0].is_graph_output():
                continue
            if node.op_type == "Cast" and node.attributes.get_int("to", 0) not in _EXACT:
                continue
            inputs = {str(value.name): constant(value) for value in node.inputs if value is not None}
            known = [array for array in inputs.values() if array is not None]
            if not known or len(known) < len(inputs) or not _is_folded(node.op_type, known):
                continue
            left -= _most_bytes(node, [inputs[str(value.name)] for value in node.inputs if value is not None])
            if left < 0:
                raise SizeError(
                    f"model: node {node.name or node.op_type!r}: found more than {most} bytes to compute of "
                    "constants, wanted fewer"
                )
            output = node.outputs[0]
            name, result = str(output.name), _evaluate(model, node, inputs)
            names.rename(output, f"{name}_computed")
            redirect(output, add_initializer(names, name, result))
            graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def _is_folded(op_type: str, arrays: Sequence[NDArray[Any]]) -> bool:
    if op_type in LAYOUT:
        return arrays[0].dtype.kind != "O"
    if arrays[0].dtype != np.float32 or op_type not in ELEMENTWISE | SMALLER:
        return False
    try:
        size = np.broadcast(*arrays).size if op_type in ELEMENTWISE else 0
    except ValueError:
        return False
    return size <= sum(array.size for array in arrays)


def _most_bytes(node: ir.Node, arrays: Sequence[Any]) -> int:
    """Return how many bytes a result has at most: of no more elements than the operands."""
    if node.op_type in LAYOUT:
        kind = ir.DataType(node.attributes.get_int("to")) if node.op_type == "Cast" else None
        return int(arrays[0].size * (arrays[0].itemsize if kind is None else kind.numpy().itemsize))
    return sum(array.nbytes for array in arrays)


def _evaluate(model: ir.Model, node: ir.Node, arrays: Mapping[str, Any]) -> NDArray[Any]:
    proto = ir.to_proto(node)
    one_node = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "constant",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                for name, array in arrays.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(proto.output[0])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", model.opset_imports[""])],
    )
    with np.errstate(all="ignore"):  # a quotient by zero is what it is
        (result,) = ReferenceEvaluator(one_node).run(None, dict(arrays))
    return np.asarray(result)
