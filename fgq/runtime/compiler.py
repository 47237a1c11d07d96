"""Recognise what runs on integers, and join what runs in one kernel call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from fgq.kernels.dispatch import Memory, Wish
from fgq.runtime.arithmetic import BinaryStep, read_binary
from fgq.runtime.concat import read_concat
from fgq.runtime.edges import read_quantize
from fgq.runtime.layers import IntegerLayer, find_integer_layers
from fgq.runtime.lookup import read_lookup
from fgq.runtime.moves import read_move
from fgq.runtime.pooling import read_pool
from fgq.runtime.products import ProductStep, Residual
from fgq.runtime.quantizers import read_quantized
from fgq.runtime.step import Step

READERS = (read_binary, read_pool, read_concat, read_move)
"""What recognises steps other than products and quantization, each from the node that it is named after."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a session is to run.

    Parameters
    ----------
    wish : Wish
        Which kernels may run its layers.
    memory : Memory
        How they hold the weights.
    """

    wish: Wish = Wish.AUTO
    memory: Memory = Memory.AUTO


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
    layers = {layer.result: layer for layer in find_integer_layers(graph)}
    found = [step for node in graph for read in READERS if (step := read(node)) is not None]
    makers: dict[ir.Value, Step] = {step.result: step for step in found}
    residuals = _residuals([step for step in found if isinstance(step, BinaryStep)], layers)
    for result, layer in layers.items():
        product = ProductStep(layer, options.wish, options.memory, residuals.get(result))
        makers[product.result] = product
    opset = graph.opset_imports[""]
    for node in graph:
        step = read_lookup(node, opset) or read_quantize(node)
        if step is not None and step.result not in makers and _pure(step.sources[0], makers):
            makers[step.result] = step
    return makers


def _residuals(
    additions: list[BinaryStep], layers: Mapping[ir.Value, IntegerLayer]
) -> dict[ir.Value, Residual]:
    """Return the additions that layers can do by the way, by the layers' results."""
    residuals: dict[ir.Value, Residual] = {}
    for step in additions:
        if step.op_type != "Add" or not step.same_shape:
            continue
        for first, (own, other) in ((True, step.operands), (False, step.operands[::-1])):
            layer = layers.get(own.source)
            if layer is None or layer.requantization is None or layer.kind == "matmul_left":
                continue
            if own.source is other.source or not _read_once(own.source):
                continue
            residuals[own.source] = Residual(
                other=other, requantization=step.made, result=step.result, first=first
            )
            break
    return residuals


def _read_once(value: ir.Value) -> bool:
    """Tell whether one operator alone reads an integer value, through one DequantizeLinear."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return False
    (real,) = uses[0].node.outputs
    return len(list(real.uses())) == 1 and not real.is_graph_output()


def _pure(value: ir.Value, makers: Mapping[ir.Value, Step]) -> bool:
    """Tell whether real values come from no operator that onnxruntime may join with their quantizer."""
    producer = value.producer()
    if producer is None or value in makers:
        return True
    return not any(read_quantized(read) for read in producer.inputs)
