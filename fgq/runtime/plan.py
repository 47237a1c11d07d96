"""Cut a converted model into steps: what runs on integers, and everything else for onnxruntime.

The values that the outputs need are followed back to the inputs. Where a step makes a value, the nodes that
it absorbs are never looked at; any other node goes to onnxruntime.

Every node has a stage. A node that reads a step's result comes one stage after it, and a step has the stage
of what it reads. So the nodes of one stage never wait for a step of that stage: they form one onnxruntime
graph, run first, and the stage's steps follow in the order in which they depend on each other.

A DequantizeLinear stands in every stage that reads it, so that integers and not floats pass between the
stages, and onnxruntime finds the same integer operators in the parts as in the whole model. So does what is
computed from constants alone, for onnxruntime to fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress

import onnx_ir as ir
from onnx_ir.passes import common

from fgq.errors import ModelError
from fgq.graph.queries import is_operator
from fgq.runtime.steps.step import Step

Makers = Mapping[ir.Value, Step]
"""The steps by the values that they make."""

_RANDOM = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
"""Operators whose results onnxruntime does not compute once, when it loads a model, from constants."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """Nodes that onnxruntime runs together.

    Parameters
    ----------
    model : onnx_ir.Model
        A model of the segment's nodes alone.
    nodes : tuple of onnx_ir.Node
        The nodes in the whole model.
    inputs, outputs : tuple of onnx_ir.Value
        The values, in the whole model, that the segment reads from before and hands on.
    """

    model: ir.Model
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def plan(model: ir.Model, makers: Makers) -> list[Segment | Step]:
    """Return the steps that compute a model's outputs, in the order in which they run.

    Parameters
    ----------
    model : onnx_ir.Model
    makers : mapping of onnx_ir.Value to Step
        What can be run on integers.

    Raises
    ------
    ModelError
        If the type of a value between two steps is unknown.
    """
    units = needed(model.graph, makers)
    steps = [unit for unit in units if isinstance(unit, Step)]
    if not steps:
        return [_whole(model)] if units else []
    node_stage, step_stage = _stages(units, makers)
    stages = range(max([*node_stage.values(), *step_stage.values()]) + 1)
    repeated = _repeated(units, model.functions)
    handed_on = {*model.graph.outputs, *chain(*(step.sources for step in steps))}
    members = [_members(model.graph, node_stage, stage, repeated, handed_on) for stage in stages]
    inputs = [_inputs(part, makers) for part in members]
    wanted = {*chain(*inputs), *handed_on}
    result: list[Segment | Step] = []
    for stage in stages:
        if members[stage]:
            own = (node for node in members[stage] if node_stage.get(node) == stage)
            outputs = [value for node in own for value in node.outputs if value in wanted]
            result.append(_segment(model, members[stage], inputs[stage], outputs))
        result.extend(step for step in steps if step_stage[step] == stage)
    return result


def needed(graph: ir.Graph, makers: Makers) -> list[ir.Node | Step]:
    """Return the nodes and steps that the outputs need, each behind what it reads.

    Parameters
    ----------
    graph : onnx_ir.Graph
    makers : mapping of onnx_ir.Value to Step
    """
    order: list[ir.Node | Step] = []
    seen: set[ir.Node | Step] = set()
    waiting: list[tuple[ir.Value, bool]] = [(value, False) for value in reversed(graph.outputs)]
    while waiting:
        value, done = waiting.pop()
        unit = makers.get(value) or value.producer()
        if unit is None:
            continue
        if done:
            order.append(unit)
        elif unit not in seen:
            seen.add(unit)
            waiting.append((value, True))
            reads = unit.sources if isinstance(unit, Step) else tuple(_reads(unit))
            waiting.extend((read, False) for read in reversed(reads))
    return order


def _whole(model: ir.Model) -> Segment:
    part = model.clone()
    # onnxruntime does not write an input that is an output to the place that is bound for it.
    computed = [value.producer() is not None for value in model.graph.outputs]
    part.graph.outputs[:] = list(compress(part.graph.outputs, computed))
    _forget_shapes(part.graph.outputs)
    return Segment(
        model=part,
        nodes=tuple(model.graph),
        inputs=tuple(model.graph.inputs),
        outputs=tuple(compress(model.graph.outputs, computed)),
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


def _stages(units: Iterable[ir.Node | Step], makers: Makers) -> tuple[dict[ir.Node, int], dict[Step, int]]:
    node_stage: dict[ir.Node, int] = {}
    step_stage: dict[Step, int] = {}

    def after(value: ir.Value, gap: int) -> int:
        step, producer = makers.get(value), value.producer()
        if step is not None:
            return step_stage[step] + gap
        return 0 if producer is None else node_stage[producer]

    for unit in units:
        if isinstance(unit, Step):
            step_stage[unit] = max((after(value, 0) for value in unit.sources), default=0)
        else:
            node_stage[unit] = max((after(value, 1) for value in _reads(unit)), default=0)
    return node_stage, step_stage


Functions = Mapping[ir.OperatorIdentifier, ir.Function]


def _repeated(units: Iterable[ir.Node | Step], functions: Functions) -> set[ir.Node]:
    """Return the nodes that stand in every stage that reads them: dequantization, and work on constants."""
    dequantized, constant = set[ir.Node](), set[ir.Node]()
    for node in units:
        if isinstance(node, Step):
            continue
        reads = list(_reads(node))
        fixed = all(_is_fixed(value) or value.producer() in constant for value in reads)
        if fixed and _folds(node, functions):
            constant.add(node)
        elif is_operator(node, "DequantizeLinear"):
            dequantized.add(node)
    return dequantized | constant


def _is_fixed(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()


def _folds(node: ir.Node, functions: Functions) -> bool:
    """Tell whether a node computes the same from the same constants in every stage."""
    function = functions.get(node.op_identifier())
    if function is not None:
        return all(_folds(inner, functions) for inner in function)
    branches = any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    )
    return node.domain == "" and node.op_type not in _RANDOM and not branches


def _members(
    graph: ir.Graph,
    node_stage: Mapping[ir.Node, int],
    stage: int,
    repeated: set[ir.Node],
    handed_on: set[ir.Value],
) -> list[ir.Node]:
    """Return the nodes of a stage, with each repeated one that they read, in graph order."""
    waiting = [
        node
        for node, found in node_stage.items()
        if found == stage and (node not in repeated or any(value in handed_on for value in node.outputs))
    ]
    members: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        members.add(node)
        producers = (value.producer() for value in _reads(node))
        waiting.extend(producer for producer in producers if producer in repeated and producer not in members)
    return [node for node in graph if node in members]


def _inputs(members: Sequence[ir.Node], makers: Makers) -> list[ir.Value]:
    """Return the values that a stage takes from the model's inputs, from other stages and from steps."""
    inside = set(members)
    read = dict.fromkeys(value for node in members for value in _reads(node))
    return [
        value
        for value in read
        if not value.is_initializer() and (value in makers or value.producer() not in inside)
    ]


def _segment(
    model: ir.Model, members: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> Segment:
    read = dict.fromkeys(value for node in members for value in _reads(node))
    initializers = [value for value in read if _is_fixed(value)]
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
    declared = [own for own, value in zip(part.graph.inputs, inputs, strict=True) if value.is_graph_output()]
    _forget_shapes([*part.graph.outputs, *declared])
    return Segment(
        model=part,
        nodes=tuple(members),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


def _forget_shapes(values: Iterable[ir.Value]) -> None:
    """Forget what a model declares of its outputs, to which onnxruntime would hold the arrays it is given."""
    for value in values:
        value.shape = None
