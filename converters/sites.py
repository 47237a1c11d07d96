"""Find the tensors between layers that are quantized, and who reads them as integers.

Three kinds of operator compute on integers in an int8 engine: quantized layers; Conv and Gemm, whose
result is requantized at once; and joints (Add, Concat, pooling) all of whose operands are integers and
whose result goes to integers. A MatMul's result stays float unless a quantized layer reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from fgq.converters.own import (
    before_layout,
    goes_to_quantizer,
    is_bound,
    is_layout,
    is_quantized,
)
from fgq.converters.select import Choice
from fgq.graph.queries import constant, is_read, sole_reader

JOINTS = frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool"})


@dataclass(slots=True, eq=False)
class Site:
    """A tensor that is quantized.

    Parameters
    ----------
    tensor : onnx_ir.Value
    readers : dict of onnx_ir.Node to int
        The operators that read the tensor as integers, and of how many bits.
    from_integers : bool
        Whether an integer operator computes the tensor; then every reader takes the quantized values, so
        that the operator's result is nothing but integers, but for those in `real`.
    real : set of onnx_ir.Node
        Readers that must see the real values: poolings that stay float (`float_pools`), a Softmax before a
        quantizer, and products with float weights before one, all of which onnxruntime would fuse with
        quantizers on both sides (its QLinearSoftmax gives 0 where the largest integer is exceeded, and float
        weights become 8-bit ones of one scale), and the model's own quantizers (`fgq.converters.own`).
    same_as : Site or None
        The site before a pooling maximum or a change of layout, whose 8-bit quantizer holds here too.
    """

    tensor: ir.Value
    readers: dict[ir.Node, int] = field(default_factory=dict)
    from_integers: bool = False
    real: set[ir.Node] = field(default_factory=set)
    same_as: Site | None = None

    @property
    def others(self) -> list[ir.Node]:
        """What else takes the quantized values."""
        if not self.from_integers:
            return []
        return [
            node for node in self.tensor.consumers() if node not in self.readers and node not in self.real
        ]

    @property
    def bits(self) -> tuple[int, ...]:
        """The widths of the quantizers that stand here, widest first.

        Readers of 4 bits stand behind the 8-bit quantizer where there are both, so that a residual
        keeps its 8 bits.
        """
        widths = set(self.readers.values())
        if self.others or not widths:
            widths.add(8)
        return tuple(sorted(widths, reverse=True))


def find_sites(model: ir.Model, choices: Sequence[Choice]) -> list[Site]:
    """List the tensors of the main graph to be quantized, in graph order.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    choices : sequence of Choice
        The layers that are converted. Those whose ranges are found at run time have no sites.
    """
    layers = {
        choice.layer.node: choice
        for choice in choices
        if choice.activations is not None and not choice.activations.is_dynamic
    }
    sources = {node for node, choice in layers.items() if choice.layer.op_type in ("Conv", "Gemm")}
    joints = _joints(model.graph, layers, sources)
    integers = joints | sources
    leading = _leading(model.graph, joints | set(layers))
    sites: dict[ir.Value, Site] = {}

    def site(tensor: ir.Value) -> Site:
        return sites.setdefault(tensor, Site(tensor))

    for node in model.graph:
        if node in layers:
            choice = layers[node]
            assert choice.activations is not None
            site(choice.layer.activation).readers[node] = choice.activations.width
        elif node in joints:
            for operand in _operands(node):
                site(operand).readers[node] = 8
        if node in integers and node in leading:
            result = _result(node)
            if not result.is_graph_output():
                site(result).from_integers = True
    origins = {before_layout(tensor) for tensor in sites}

    def stays_real(node: ir.Node) -> bool:
        wraps = node.domain == "" and node.op_type == "Softmax" and node.outputs[0] in origins
        return wraps or bool(_obstacle(node)) or goes_to_quantizer(node) or _is_rounded(node, sites)

    for entry in sites.values():
        entry.real = {
            node for node in entry.tensor.consumers() if node not in entry.readers and stays_real(node)
        }
    for tensor, entry in list(sites.items()):
        if is_quantized(tensor) or not (entry.readers or entry.others):
            del sites[tensor]
    for entry in sites.values():
        entry.same_as = _shared(entry, sites, joints)
    return list(sites.values())


def float_pools(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """Yield the poolings of the main graph that stay float among integer operators, and why."""
    for node in model.graph:
        reason = _obstacle(node)
        if reason:
            yield node, reason


def _obstacle(node: ir.Node) -> str:
    """Say why onnxruntime's integer pooling is not that of the node; nothing where it is."""
    if node.domain != "" or node.op_type != "AveragePool":
        return ""
    if any(step != 1 for step in node.attributes.get_ints("dilations", ())):
        return "onnxruntime's integer AveragePool knows no dilations"
    if node.attributes.get_int("ceil_mode", 0) and node.attributes.get_int("count_include_pad", 0):
        return "onnxruntime's integer AveragePool is wrong with ceil_mode and count_include_pad"
    return ""


def _is_rounded(node: ir.Node, sites: Mapping[ir.Value, Site]) -> bool:
    """Tell whether a node is a product that goes to a quantizer alone, or through a bound or a layout.

    Between quantizers onnxruntime rounds float weights to int8, all of a layer by one scale, and whether the
    result is an output of the model too makes no difference to it.
    """
    if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    value, may_add = node.outputs[0], node.op_type == "MatMul"
    while value not in sites or may_add:
        readers = list(value.consumers())
        if len(readers) != 1 or readers[0].graph is not node.graph:
            return False
        (reader,) = readers
        if may_add:
            if (reader.domain, reader.op_type) != ("", "Add") or all(map(_is_computed, reader.inputs)):
                return False
            may_add = False  # onnxruntime makes a Gemm of both
        elif goes_to_quantizer(reader):
            return True
        elif not (is_bound(reader) or is_layout(reader)):
            return False
        value = reader.outputs[0]
    return True


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the operands of a joint that are computed."""
    for value in node.inputs:
        if value is not None and _is_computed(value):
            yield value


def _is_computed(value: ir.Value | None) -> bool:
    return constant(value) is None


def _result(node: ir.Node) -> ir.Value:
    """Return the result of an integer operator after the bounds it absorbs."""
    value = node.outputs[0]
    reader = sole_reader(value)
    while reader is not None and reader.graph is node.graph and is_bound(reader):
        value = reader.outputs[0]
        reader = sole_reader(value)
    return value


def _joints(graph: ir.Graph, layers: Mapping[ir.Node, Choice], sources: set[ir.Node]) -> set[ir.Node]:
    """Return the largest set of joints that have integers on both sides."""
    joints = {
        node
        for node in graph
        if node.domain == ""
        and node.op_type in JOINTS
        and not _obstacle(node)
        and not (node.op_type == "MaxPool" and goes_to_quantizer(node))
        and all(constant(value) is None for value in node.inputs if value is not None)
        and not is_read(node.outputs[1:])
    }
    read_by_layers = {choice.layer.activation for choice in layers.values()}

    def from_integers(value: ir.Value) -> bool:
        if value in read_by_layers or is_quantized(value):
            return True
        producer = before_layout(value).producer()
        while producer is not None and is_bound(producer):
            operand = producer.inputs[0]
            assert operand is not None
            producer = before_layout(operand).producer()
        return producer in sources or producer in joints

    def to_integers(value: ir.Value) -> bool:
        return any(
            reader in layers
            or reader in joints
            or ((is_layout(reader) or is_bound(reader)) and to_integers(reader.outputs[0]))
            for reader in value.consumers()
            if reader.graph is graph
        )

    while True:
        kept = {
            node
            for node in joints
            if all(from_integers(value) for value in _operands(node)) and to_integers(node.outputs[0])
        }
        if kept == joints:
            return joints
        joints = kept


def _leading(graph: ir.Graph, goals: set[ir.Node]) -> set[ir.Node]:
    """Return the nodes of the graph from which a goal is reached."""
    leading: set[ir.Node] = set()
    for node in reversed(graph):
        readers = (reader for output in node.outputs for reader in output.consumers())
        if any(reader in goals or reader in leading for reader in readers):
            leading.add(node)
    return leading


def _shared(site: Site, sites: Mapping[ir.Value, Site], joints: set[ir.Node]) -> Site | None:
    if 8 not in site.bits:
        return None
    producer = site.tensor.producer()
    if producer in joints and producer is not None and producer.op_type == "MaxPool":
        before = producer.inputs[0]
    else:
        before = before_layout(site.tensor)
    found = sites.get(before) if before is not None and before is not site.tensor else None
    return found if found is not None and 8 in found.bits else None
