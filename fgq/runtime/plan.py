"""Cut a converted model into steps: integer layers for the kernels, everything else for onnxruntime.

Every node has a stage. A node that reads an integer layer's result comes one stage after it, and a layer
has the stage of what it reads. So the nodes of one stage never wait for a layer of that stage: they form
one onnxruntime graph, run first, and the stage's layers follow in graph order.

A DequantizeLinear stands in every stage that reads it, so that integers and not floats pass between the
stages, and onnxruntime finds the same integer operators (an addition of two quantized tensors, say) in the
parts as in the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir
from onnx_ir.passes import common

from fgq.errors import ModelError
from fgq.runtime.layers import IntegerLayer, find_integer_layers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """Nodes that onnxruntime runs together.

    Parameters
    ----------
    model : onnx_ir.Model
        A model of the segment's nodes alone.
    inputs, outputs : tuple of str
        The values that the segment reads from before and hands on.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Step = Segment | IntegerLayer


def plan(model: ir.Model) -> list[Step]:
    """Return the steps that compute a model's outputs, in the order in which they run.

    Parameters
    ----------
    model : onnx_ir.Model

    Raises
    ------
    ModelError
        If a packed weight is damaged, or the type of a value between two steps is unknown.
    """
    layers = {layer.result: layer for layer in find_integer_layers(model.graph)}
    if not layers:
        return [_whole(model)]
    nodes, used = _needed(model.graph, layers)
    node_stage, layer_stage = _stages(model.graph, layers, nodes, used)
    stages = range(max([*node_stage.values(), *layer_stage.values()]) + 1)
    members = [_members(model.graph, node_stage, stage) for stage in stages]
    inputs = [_inputs(part, layers) for part in members]
    wanted = {*chain(*inputs), *model.graph.outputs, *(layer.source for layer in used)}
    steps: list[Step] = []
    for stage in stages:
        if members[stage]:
            own = (node for node in members[stage] if node_stage[node] == stage)
            outputs = [value for node in own for value in node.outputs if value in wanted]
            steps.append(_segment(model, members[stage], inputs[stage], outputs))
        steps.extend(layer for layer in used if layer_stage[layer] == stage)
    return steps


def _whole(model: ir.Model) -> Segment:
    return Segment(
        model=model,
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
    )


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that a node reads, those of its subgraphs from outside included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            inside = set(graph.all_nodes())
            own = {*graph.inputs, *graph.initializers.values()}
            for inner in inside:
                for value in inner.inputs:
                    if value is not None and value not in own and value.producer() not in inside:
                        yield value
            for value in graph.outputs:
                if value not in own and value.producer() not in inside:
                    yield value


def _needed(graph: ir.Graph, layers: dict[ir.Value, IntegerLayer]) -> tuple[set[ir.Node], list[IntegerLayer]]:
    """Return the nodes for onnxruntime and the layers without which the outputs cannot be computed."""
    waiting = list(graph.outputs)
    seen: set[ir.Value] = set()
    nodes: set[ir.Node] = set()
    used: set[IntegerLayer] = set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        layer, producer = layers.get(value), value.producer()
        if layer is not None:
            used.add(layer)
            waiting.append(layer.source)
        elif producer is not None and producer not in nodes:
            nodes.add(producer)
            waiting.extend(_reads(producer))
    return nodes, [layer for layer in layers.values() if layer in used]


def _stages(
    graph: ir.Graph,
    layers: dict[ir.Value, IntegerLayer],
    nodes: set[ir.Node],
    used: Sequence[IntegerLayer],
) -> tuple[dict[ir.Node, int], dict[IntegerLayer, int]]:
    node_stage: dict[ir.Node, int] = {}
    layer_stage: dict[IntegerLayer, int] = {}
    by_node = {layer.node: layer for layer in used}

    def after(value: ir.Value, step: int) -> int:
        layer, producer = layers.get(value), value.producer()
        if layer is not None:
            return layer_stage[layer] + step
        return 0 if producer is None else node_stage[producer]

    for node in graph:
        if node in nodes:
            node_stage[node] = max((after(value, 1) for value in _reads(node)), default=0)
        elif node in by_node:
            layer_stage[by_node[node]] = after(by_node[node].source, 0)
    return node_stage, layer_stage


def _is_dequantize(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear" and node.domain == ""


def _members(graph: ir.Graph, node_stage: Mapping[ir.Node, int], stage: int) -> list[ir.Node]:
    """Return the nodes of a stage, with each DequantizeLinear that they read, in graph order."""
    waiting = [
        node
        for node, found in node_stage.items()
        if found == stage
        and (not _is_dequantize(node) or any(value.is_graph_output() for value in node.outputs))
    ]
    members: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        members.add(node)
        producers = (value.producer() for value in _reads(node))
        waiting.extend(producer for producer in producers if producer and _is_dequantize(producer))
    return [node for node in graph if node in members]


def _inputs(members: Sequence[ir.Node], layers: Mapping[ir.Value, IntegerLayer]) -> list[ir.Value]:
    """Return the values that a stage takes from the model's inputs, from other stages and from layers."""
    inside = set(members)
    read = dict.fromkeys(value for node in members for value in _reads(node))
    return [
        value
        for value in read
        if not value.is_initializer() and (value in layers or value.producer() not in inside)
    ]


def _segment(
    model: ir.Model, members: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> Segment:
    read = dict.fromkeys(value for node in members for value in _reads(node))
    initializers = [value for value in read if value.is_initializer() and not value.is_graph_input()]
    for value in (*inputs, *outputs):
        if value.dtype is None:
            raise ModelError(f"{value.name}: found a value of unknown type between two steps of the model")
    view = ir.GraphView(
        inputs,
        outputs,
        nodes=members,
        initializers=initializers,
        opset_imports=dict(model.opset_imports),
        name="segment",
    )
    part = ir.Model(
        view.clone(),
        ir_version=model.ir_version or 0,
        functions=[function.clone() for function in model.functions.values()],
    )
    common.RemoveUnusedFunctionsPass()(part)  # type: ignore[no-untyped-call]
    return Segment(
        model=part,
        inputs=tuple(str(value.name) for value in inputs),
        outputs=tuple(str(value.name) for value in outputs),
    )
