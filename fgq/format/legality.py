"""Whether a model file keeps the rules of ONNX, node by node, before anything else believes it.

`onnx.checker.check_model` refuses files that onnxruntime runs: nodes out of order, outputs without a shape,
graphs without a name. So each node is checked alone, against the operator's definition, and the rules that
onnxruntime has for whole graphs are checked here: one definition for each name, inputs that something
computes, functions that end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto
from onnx.checker import ValidationError

from fgq.errors import ModelError
from fgq.format.maps import holds_map

DEEPEST = 32
"""Graphs within graphs; protobuf reads no more than 33 of them."""

MOST_CALLS = 100
"""Functions that call each other in one chain."""

MOST_NODES = 500_000
"""Nodes of a model with the functions' bodies in place of their calls."""

Function = tuple[str, str, str]
"""Domain, name and overload."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the nodes of one graph may read, and how they are to be checked.

    Parameters
    ----------
    where : str
        What errors call the place.
    context : onnx.checker.C.CheckerContext
    names : tuple of set of str
        Of the values of the graphs around it, and of its own.
    """

    where: str
    context: Any
    names: tuple[set[str], ...] = ()

    def knows(self, name: str) -> bool:
        """Tell whether a value of this graph, or of one around it, has a name."""
        return any(name in known for known in self.names)


def check_legal(model: onnx.ModelProto, name: str) -> None:
    """Check the structure of a model.

    Parameters
    ----------
    model : onnx.ModelProto
    name : str
        What errors call the model.

    Raises
    ------
    ModelError
        If a node does not fit its operator (inputs, outputs, attributes and their types), an input or output
        is a map, two values have one
        name, a value comes from nowhere, a function calls itself or two have one name, graphs or calls are
        nested too deeply, or a name is no UTF-8 text.
    """
    _Checker(model, name).check()


class _Checker:
    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self._model, self._name = model, name
        self._functions = {_key(function): function for function in model.functions}
        self._calls: dict[Function | None, list[Function]] = {}
        self._nodes: dict[Function | None, int] = {}
        self._within: Function | None = None

    def check(self) -> None:
        model, name = self._model, self._name
        _check_text((model.producer_name, model.producer_version, model.domain, model.graph.name), name)
        for entry in model.metadata_props:
            _check_text((entry.key, entry.value), name)
        for key, function in self._functions.items():
            self._within = key
            where = f"{name}: function {function.name!r}"
            _check_text((*key, *function.input, *function.output, *function.attribute), where)
            if not function.node and not set(function.output) <= set(function.input):
                raise ModelError(f"{where}: found no nodes, wanted a body")
            scope = _Scope(where, self._context(function.opset_import, where))
            self._check_nodes(function.node, function.input, function.output, scope)
        self._within = None
        self._check_graph(model.graph, _Scope(name, self._context(model.opset_import, name)))
        self._check_calls()

    def _context(self, imports: Iterable[onnx.OperatorSetIdProto], where: str) -> Any:
        context = onnx.checker.C.CheckerContext()
        context.ir_version = max(self._model.ir_version, 3)
        found = dict[str, int]()
        for entry in imports:
            _check_text((entry.domain,), where)
            if not 1 <= entry.version < 2**31:
                raise ModelError(
                    f"{where}: found opset {entry.version} of {entry.domain!r}, wanted 1 or newer"
                )
            found[_plain(entry.domain)] = entry.version
        context.opset_imports = found
        return context

    def _check_graph(self, graph: GraphProto, scope: _Scope) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_type(value.type, f"{scope.where}: {value.name!r}")
        for value in (*graph.input, *graph.output):
            if holds_map(value.type):
                raise ModelError(
                    f"{scope.where}: {value.name!r}: found a map, as ZipMap makes, wanted the tensor "
                    "before it"
                )
        sparse = [entry.values.name for entry in graph.sparse_initializer]
        inputs = [value.name for value in graph.input]
        constants = {tensor.name for tensor in graph.initializer} | set(sparse)
        _check_text((*inputs, *constants), scope.where)
        outputs = [value.name for value in graph.output]
        self._check_nodes(graph.node, inputs, outputs, scope, constants)

    def _check_nodes(
        self,
        nodes: Iterable[NodeProto],
        inputs: Iterable[str],
        outputs: Iterable[str],
        scope: _Scope,
        constants: Iterable[str] = (),
    ) -> None:
        """Check the nodes of one graph or function."""
        own = set[str]()
        for name in inputs:
            if name in own:
                raise ModelError(f"{scope.where}: found the input {name!r} twice, wanted each name once")
            own.add(name)
        own.update(constants)
        for node in nodes:
            _check_text((node.name, node.op_type, node.domain, *node.input, *node.output), scope.where)
            for name in node.output:
                if name and (name in own or scope.knows(name)):
                    raise ModelError(
                        f"{_place(node, scope)}: the graph is malformed (Output {name!r} is redeclared: "
                        "another value has that name)"
                    )
                own.add(name)
        inner = _Scope(scope.where, scope.context, (*scope.names, own))
        for node in nodes:
            self._check_node(node, inner)
        for name in outputs:
            _check_text((name,), scope.where)
            if not inner.knows(name):
                raise ModelError(f"{scope.where}: found the output {name!r}, which nothing computes")

    def _check_node(self, node: NodeProto, scope: _Scope) -> None:
        where = _place(node, scope)
        self._nodes[self._within] = self._nodes.get(self._within, 0) + 1
        for name in node.input:
            if name and not scope.knows(name):
                raise ModelError(f"{where}: found the input {name!r}, which nothing computes")
        if not node.op_type:
            raise ModelError(f"{where}: found no operator, wanted the name of one")
        names = [attribute.name for attribute in node.attribute]
        _check_text((*names, *(attribute.ref_attr_name for attribute in node.attribute)), where)
        light = NodeProto(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
        light.domain = _plain(node.domain)
        light.attribute.extend(_light(attribute) for attribute in node.attribute)
        function = self._functions.get((node.domain, node.op_type, node.overload))
        with _naming(where):
            if function is not None:
                self._check_call(node, function, where)
            elif _check_count(light, scope.context.opset_imports, where):
                onnx.checker.check_node(light, scope.context)
            for attribute in light.attribute:
                onnx.checker.check_attribute(attribute, scope.context)
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                if len(scope.names) > DEEPEST:
                    raise ModelError(f"{where}: found more than {DEEPEST} graphs within each other")
                self._check_graph(graph, _Scope(where, scope.context, scope.names))

    def _check_call(self, node: NodeProto, function: onnx.FunctionProto, where: str) -> None:
        self._calls.setdefault(self._within, []).append(_key(function))
        for what, found, most in (
            ("inputs", len(node.input), len(function.input)),
            ("outputs", len(node.output), len(function.output)),
        ):
            if found > most:
                raise ModelError(
                    f"{where}: found {found} {what}, wanted at most {most}, as function {function.name!r} has"
                )

    def _check_calls(self) -> None:
        """Check that no function calls itself, and that bodies in place of calls give no endless model."""
        sizes, depths = dict[Function | None, int](), dict[Function | None, int]()
        active = dict[Function | None, None]()
        waiting: list[tuple[Function | None, bool]] = [(key, False) for key in (None, *self._functions)]
        while waiting:
            key, done = waiting.pop()
            called = self._calls.get(key, [])
            if done:
                del active[key]
                sizes[key] = self._nodes.get(key, 0) + sum(sizes[each] for each in called)
                depths[key] = 1 + max((depths[each] for each in called), default=0)
                if sizes[key] > MOST_NODES:
                    raise ModelError(
                        f"{self._name}: found functions that make {sizes[key]} nodes, wanted at most "
                        f"{MOST_NODES}"
                    )
                if depths[key] > MOST_CALLS:
                    raise ModelError(
                        f"{self._name}: found functions that call each other {depths[key]} deep, wanted at "
                        f"most {MOST_CALLS}"
                    )
            elif key not in sizes:
                if key in active:
                    assert key is not None
                    raise ModelError(
                        f"{self._name}: found function {key[1]!r}, which calls itself (Cyclic dependency)"
                    )
                active[key] = None
                waiting.append((key, True))
                waiting += [(each, False) for each in dict.fromkeys(called)]


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn what onnx's checker raises into a ModelError that names the place."""
    try:
        yield
    except (ValidationError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"{where}: found what ONNX does not allow ({reason})") from error


def _key(function: onnx.FunctionProto) -> Function:
    return function.domain, function.name, function.overload


def _place(node: NodeProto, scope: _Scope) -> str:
    return f"{scope.where}: node {node.name or node.op_type!r}"


def _check_text(texts: Iterable[object], where: str) -> None:
    for found in texts:
        if isinstance(found, bytes):  # what protobuf gives where it cannot decode
            raise ModelError(f"{where}: found the name {found!r}, wanted UTF-8 text")


def _check_type(kind: TypeProto, where: str) -> None:
    """Check that the names of a type's sizes are text."""
    for name, inner in kind.ListFields():
        if name.name in ("tensor_type", "sparse_tensor_type"):
            _check_text((size.dim_param for size in inner.shape.dim), where)


def _check_count(node: NodeProto, imports: Mapping[str, int], where: str) -> bool:
    """Check how many inputs and outputs a node has; tell whether onnx defines its operator.

    onnxruntime has operators of its own in onnx's domain, such as SimplifiedLayerNormalization.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return False
    for what, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            wanted = f"at least {least}" if count < least else f"at most {most}"
            raise ModelError(f"{where}: found {count} {what}, wanted {wanted}")
    return True


def _light(attribute: AttributeProto) -> AttributeProto:
    """Return an attribute with empty tensors and graphs in the place of its own: those are checked apart."""
    light = AttributeProto()
    for field, value in attribute.ListFields():
        if field.name == "t":
            light.t.CopyFrom(_empty(value))
        elif field.name == "tensors":
            light.tensors.extend(_empty(tensor) for tensor in value)
        elif field.name == "sparse_tensor":
            light.sparse_tensor.values.CopyFrom(_empty(value.values))
            light.sparse_tensor.indices.CopyFrom(TensorProto(dims=[0], data_type=TensorProto.INT64))
            light.sparse_tensor.dims.append(1)
        elif field.name == "g":
            light.g.name = "graph"
        elif field.name == "graphs":
            light.graphs.extend(GraphProto(name="graph") for _ in value)
        elif isinstance(value, int | float | bytes | str):
            setattr(light, field.name, value)
        elif isinstance(value, Message):
            getattr(light, field.name).CopyFrom(value)
        else:
            getattr(light, field.name).extend(value)
    return light


def _empty(tensor: TensorProto) -> TensorProto:
    return TensorProto(name="tensor", dims=[0], data_type=tensor.data_type)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
