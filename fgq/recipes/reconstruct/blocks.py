"""Blocks of a network: the stretches between places that one computed value alone passes.

A residual block of a convolutional network, an attention or an MLP sublayer of a transformer begins and ends
where everything computed so far is in one tensor. Such places are found in the graph itself: behind a node,
the values that layers have made or read and that are read later must be at most one. What no layer stands
before, such as an attention mask, passes everywhere and does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import onnx_ir as ir

from fgq.converters.biases import find_bias
from fgq.converters.float_layers import Layer
from fgq.recipes.pieces import reads
from fgq.recipes.reconstruct.operators import unsupported

MOST_LAYERS = 16
"""Longer stretches are no blocks, but networks; their layers go one by one."""

_FOLLOWING = frozenset(
    {"BatchNormalization", "Clip", "Gelu", "HardSigmoid", "HardSwish", "LayerNormalization"}
    | {"LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)
"""What belongs to the block before it: functions of one value, normalizations."""


class Stretch(NamedTuple):
    """A part of a graph that is reconstructed as a whole.

    Parameters
    ----------
    nodes : list of onnx_ir.Node
        In graph order.
    layers : list of Layer
        The layers among them.
    whole : bool
        Whether all nodes of the graph between the first and the last are among them; else the stretch is a
        layer and its bias.
    ends : list of onnx_ir.Node
        Whose outputs are compared with the float network's.
    """

    nodes: list[ir.Node]
    layers: list[Layer]
    whole: bool
    ends: list[ir.Node]


def find_blocks(graph: ir.Graph, layers: Sequence[Layer]) -> tuple[list[Stretch], list[str]]:
    """Cut a float graph into blocks, or into single layers where that cannot be.

    Parameters
    ----------
    graph : onnx_ir.Graph
    layers : sequence of Layer
        The layers of the main graph that are quantized.

    Returns
    -------
    blocks : list of Stretch
        In graph order; every layer is in one of them.
    warnings : list of str
        Why some are single layers.
    """
    by_node = {layer.node: layer for layer in layers}
    blocks, warnings = [], []
    for nodes in _stretches(graph, layers):
        members = [by_node[node] for node in nodes if node in by_node]
        complaint = _complaint(nodes, members)
        if complaint is None:
            blocks.append(Stretch(nodes, members, whole=True, ends=nodes[-1:]))
            continue
        if len(members) > 1:
            warnings.append(
                f"{members[0].name}: reconstructed layer by layer with the {len(members) - 1} that follow, "
                f"as their block {complaint}"
            )
        blocks.extend(_single(layer) for layer in members)
    return blocks, warnings


def find_spans(graph: ir.Graph, blocks: Sequence[Stretch]) -> list[Stretch]:
    """Join blocks that follow one another, wherever nothing between them stands against it.

    Parameters
    ----------
    graph : onnx_ir.Graph
    blocks : sequence of Stretch
        As `find_blocks` returned them.

    Returns
    -------
    list of Stretch
        Each of two blocks or more, in graph order.
    """
    nodes = list(graph)
    places = {node: place for place, node in enumerate(nodes)}
    spans: list[Stretch] = []
    for block in blocks:
        if spans and spans[-1].whole and block.whole:
            last = spans[-1]
            between = nodes[places[last.nodes[-1]] + 1 : places[block.nodes[0]]]
            if not any(unsupported(node) for node in between):
                spans[-1] = Stretch(
                    [*last.nodes, *between, *block.nodes],
                    [*last.layers, *block.layers],
                    whole=True,
                    ends=[*last.ends, *block.ends],
                )
                continue
        spans.append(block)
    return [span for span in spans if len(span.ends) > 1]


def _complaint(nodes: Sequence[ir.Node], layers: Sequence[Layer]) -> str | None:
    """Say why a stretch cannot be trained as a whole."""
    if len(layers) > MOST_LAYERS:
        return f"has more than {MOST_LAYERS} layers"
    for node in nodes:
        reason = unsupported(node)
        if reason is not None:
            return f"holds {reason}"
    return None


def _single(layer: Layer) -> Stretch:
    bias = find_bias(layer)
    nodes = [layer.node] if bias is None or bias.node is layer.node else [layer.node, bias.node]
    return Stretch(nodes, [layer], whole=False, ends=nodes[-1:])


def _stretches(graph: ir.Graph, layers: Sequence[Layer]) -> Iterator[list[ir.Node]]:
    """Yield the nodes of every part with layers, and of those behind it that belong to it."""
    within = {layer.node for layer in layers}
    found: list[ir.Node] = []
    for nodes in _parts(graph, layers):
        if any(node in within for node in nodes):
            if found:
                yield found
            found = nodes
        elif found and _follow(nodes, found[-1]):
            found = found + nodes
    if found:
        yield found


def _follow(nodes: Sequence[ir.Node], last: ir.Node) -> bool:
    return all(node.op_type in _FOLLOWING for node in nodes) and last.outputs[0] in nodes[0].inputs


def _parts(graph: ir.Graph, layers: Sequence[Layer]) -> Iterator[list[ir.Node]]:
    """Cut the nodes of a graph wherever one computed value alone passes."""
    nodes = list(graph)
    last_read = {value: place for place, node in enumerate(nodes) for value in reads(node)}
    read_by_layers = {layer.activation for layer in layers}
    live = {value for value in graph.inputs if value in read_by_layers}
    part: list[ir.Node] = []
    for place, node in enumerate(nodes):
        part.append(node)
        computed = node.op_type != "Shape" and any(value in live for value in reads(node))
        live |= {value for value in node.outputs if computed or value in read_by_layers}
        live = {value for value in live if last_read.get(value, -1) > place}
        if len(live) <= 1:
            yield part
            part = []
    if part:
        yield part
