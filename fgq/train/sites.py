"""Where activations are quantized in a traced module: the rules of `fgq.converters.sites`, on torch.fx."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fgq.train.twins import QuantizedLayer

_SUMS: frozenset[object] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_JOINTS: frozenset[object] = frozenset(
    {torch.cat, torch.concat, functional.avg_pool2d, functional.max_pool2d}
)
_JOINT_MODULES = (nn.MaxPool2d, nn.AvgPool2d)
_LAYOUT: frozenset[object] = frozenset(
    {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.transpose, torch.permute,
     "flatten", "reshape", "view", "squeeze", "unsqueeze", "transpose", "permute", "contiguous"}
)  # fmt: skip
_LAYOUT_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)
_BOUNDS: frozenset[object] = frozenset({functional.relu, functional.relu6, torch.relu, "relu", "clamp"})
_BOUND_MODULES = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_HEAD: frozenset[object] = frozenset(
    {functional.softmax, functional.log_softmax, torch.softmax, torch.sigmoid, torch.tanh, "softmax",
     "sigmoid", "tanh", "log_softmax"}
)  # fmt: skip
_HEAD_MODULES = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.Tanh)


@dataclass(slots=True, eq=False)
class Site:
    """A value that is quantized; the fields are those of `fgq.converters.sites.Site`."""

    node: fx.Node
    readers: dict[fx.Node, int] = field(default_factory=dict)
    from_integers: bool = False
    same_as: Site | None = None

    @property
    def bits(self) -> tuple[int, ...]:
        """The widths of the quantizers that stand here, widest first."""
        widths = set(self.readers.values())
        if not widths or (self.from_integers and any(user not in self.readers for user in self.node.users)):
            widths.add(8)
        return tuple(sorted(widths, reverse=True))


class Graph:
    """A traced module with the questions that its quantization asks."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.modules = dict(traced.named_modules())
        self.nodes = list(traced.graph.nodes)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _is(self, node: fx.Node, targets: frozenset[object], modules: tuple[type[nn.Module], ...]) -> bool:
        if node.op == "call_module":
            return isinstance(self.module(node), modules)
        return node.op in ("call_function", "call_method") and node.target in targets

    def is_layout(self, node: fx.Node) -> bool:
        """Tell whether a node only moves values."""
        return self._is(node, _LAYOUT, _LAYOUT_MODULES)

    def is_bound(self, node: fx.Node) -> bool:
        """Tell whether a node is a ReLU or a clip."""
        return self._is(node, _BOUNDS, _BOUND_MODULES)

    def is_joint(self, node: fx.Node) -> bool:
        """Tell whether a node is a sum, a concatenation or a pooling of computed values."""
        pool = self.module(node)
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            return pool.output_size in (1, (1, 1))
        if node.target is functional.adaptive_avg_pool2d:
            return node.args[1] in (1, (1, 1))
        if self._is(node, _SUMS, ()):
            return all(isinstance(value, fx.Node) for value in node.args) and not node.kwargs
        return self._is(node, _JOINTS, _JOINT_MODULES)

    def is_maximum(self, node: fx.Node) -> bool:
        """Tell whether a node is a pooling maximum, whose result has the integers of its input."""
        return isinstance(self.module(node), nn.MaxPool2d) or node.target is functional.max_pool2d

    def layers(self) -> dict[fx.Node, QuantizedLayer]:
        """Return the calls of quantized layers."""
        found = ((node, self.module(node)) for node in self.nodes)
        return {node: layer for node, layer in found if isinstance(layer, QuantizedLayer)}

    def result(self, node: fx.Node) -> fx.Node:
        """Return the value of an integer operator after the bounds it absorbs."""
        users = list(node.users)
        while len(users) == 1 and (self.is_bound(users[0]) or isinstance(self.module(users[0]), nn.Identity)):
            node, users = users[0], list(users[0].users)
        return node

    def before_layout(self, node: fx.Node) -> fx.Node:
        """Return the value that layout operators have moved."""
        while self.is_layout(node):
            node = node.all_input_nodes[0]
        return node

    def head(self) -> fx.Node | None:
        """Return the operator at the end of a plain chain that leads back from the output."""
        node = self.nodes[-1].all_input_nodes[0] if len(self.nodes[-1].all_input_nodes) == 1 else None
        while node is not None and (
            self.is_layout(node) or self.is_bound(node) or self._is(node, _HEAD, _HEAD_MODULES)
        ):
            node = node.all_input_nodes[0]
        return node

    def first(self, kinds: tuple[type[nn.Module], ...]) -> list[fx.Node]:
        """Return the calls of the given layers that are reached from an input without passing another."""
        waiting = [node for node in self.nodes if node.op == "placeholder"]
        seen, reached = set(waiting), []
        while waiting:
            for user in waiting.pop().users:
                if user in seen:
                    continue
                seen.add(user)
                if isinstance(self.module(user), kinds):
                    reached.append(user)
                else:
                    waiting.append(user)
        return reached


def operands(node: fx.Node) -> list[fx.Node]:
    """Return the computed values that a node reads."""
    return list(node.all_input_nodes)


def find_sites(graph: Graph, bits: Mapping[fx.Node, int]) -> list[Site]:
    """List the values to be quantized, in graph order.

    Parameters
    ----------
    graph : Graph
    bits : mapping of torch.fx.Node to int
        The calls of layers with quantized inputs, and the bits of these.
    """
    sources = {node for node in bits if _requantizes(graph, node)}
    joints = _joints(graph, set(bits), sources)
    goals = joints | set(bits)
    leading: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(user in goals or user in leading for user in node.users):
            leading.add(node)
    sites: dict[fx.Node, Site] = {}

    def site(node: fx.Node) -> Site:
        return sites.setdefault(node, Site(node))

    for node in graph.nodes:
        if node in bits:
            site(operands(node)[0]).readers[node] = bits[node]
        elif node in joints:
            for operand in operands(node):
                site(operand).readers[node] = 8
        if node in (joints | sources) and node in leading:
            site(graph.result(node)).from_integers = True
    for entry in sites.values():
        before = graph.before_layout(entry.node)
        if entry.node in joints and graph.is_maximum(entry.node):
            before = operands(entry.node)[0]
        other = sites.get(before) if before is not entry.node else None
        if other is not None and 8 in other.bits and 8 in entry.bits:
            entry.same_as = other
    return list(sites.values())


def _requantizes(graph: Graph, node: fx.Node) -> bool:
    """Tell whether a layer becomes a Conv or Gemm, whose result is requantized at once."""
    layer = graph.module(node)
    shape = node.meta["shape"]
    return isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Linear) and len(shape) == 2)


def _joints(graph: Graph, layers: set[fx.Node], sources: set[fx.Node]) -> set[fx.Node]:
    """Return the largest set of joints that have integers on both sides."""
    joints = {node for node in graph.nodes if graph.is_joint(node)}
    read = {operands(node)[0] for node in layers}

    def from_integers(node: fx.Node) -> bool:
        if node in read:
            return True
        node = graph.before_layout(node)
        while graph.is_bound(node):
            node = graph.before_layout(operands(node)[0])
        return node in sources or node in joints

    def to_integers(node: fx.Node) -> bool:
        return any(
            user in layers
            or user in joints
            or ((graph.is_layout(user) or graph.is_bound(user)) and to_integers(user))
            for user in node.users
        )

    while True:
        kept = {n for n in joints if all(map(from_integers, operands(n))) and to_integers(n)}
        if kept == joints:
            return joints
        joints = kept


class ShapeRecorder(fx.Interpreter):
    """Run a traced module and note the shape of each value in ``node.meta``."""

    def run_node(self, n: fx.Node) -> object:
        """Run one node."""
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else ()
        return value


def placed(sites: list[Site]) -> Iterator[tuple[Site, int, Site]]:
    """Yield each quantizer to be placed: its site, its bits and the site whose quantizer it shares."""
    for entry in sites:
        for bits in entry.bits:
            origin = entry
            while bits == 8 and origin.same_as is not None:
                origin = origin.same_as
            yield entry, bits, origin
