"""Recognise what runs in fgq's kernels, by asking every kind of step (`fgq.runtime.steps`)."""

from __future__ import annotations

import onnx_ir as ir

from fgq.graph.queries import constant, is_operator
from fgq.runtime.steps.registry import Options, Scope, finders
from fgq.runtime.steps.step import Step

_QUANTIZED = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger "
    "MatMulInteger MatMulNBits".split()
)


def find_steps(graph: ir.Graph, options: Options) -> dict[ir.Value, Step]:
    """Return the steps that a graph's integers allow, by the values that they make.

    Parameters
    ----------
    graph : onnx_ir.Graph
        In topological order.
    options : Options

    Raises
    ------
    ModelError
        If a packed weight is damaged.
    KernelError
        If no kernel meets the wish.
    """
    scope = Scope(graph, options)
    for find in finders():
        for step in find(scope):
            scope.steps.setdefault(step.result, step)
    return {
        result: step
        for result, step in scope.steps.items()
        if not any(source.is_initializer() for source in step.sources)  # left to onnxruntime to fold
    }


def float_products(graph: ir.Graph) -> list[ir.Node]:
    """List the Conv, MatMul and Gemm nodes that multiply real values by constant weights, if that is all.

    Parameters
    ----------
    graph : onnx_ir.Graph

    Returns
    -------
    list of onnx_ir.Node
        Empty where anything in the graph is quantized.
    """
    if any(node.op_type in _QUANTIZED for node in graph.all_nodes()):
        return []
    products = [node for node in graph.all_nodes() if is_operator(node, "Conv", "MatMul", "Gemm")]
    return [node for node in products if any(constant(value) is not None for value in node.inputs[:2])]
