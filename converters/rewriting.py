"""Small steps of graph surgery on `onnx_ir`, shared by the passes and the writers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike


def add_initializer(graph: ir.Graph, name: str, constant: ArrayLike) -> ir.Value:
    """Register a constant under `name`, or under a numbered variant of it where that is taken.

    Parameters
    ----------
    graph : onnx_ir.Graph
        The main graph.
    name : str
    constant : array_like

    Returns
    -------
    onnx_ir.Value
        With its shape and dtype set.
    """
    free, number = name, 1
    while free in graph.initializers:
        free, number = f"{name}_{number}", number + 1
    array = np.asarray(constant)
    # ascontiguousarray makes a vector of a scalar.
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=free)
    value = ir.Value(name=free, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    graph.register_initializer(value)
    return value


def redirect(value: ir.Value, replacement: ir.Value, *, keep: Iterable[ir.Node] = ()) -> None:
    """Let every reader of `value`, graph outputs included, read `replacement` instead.

    Parameters
    ----------
    value, replacement : onnx_ir.Value
    keep : iterable of onnx_ir.Node
        Readers that go on reading `value`.
    """
    kept = set(keep)
    for user, index in list(value.uses()):
        if user not in kept:
            user.replace_input_with(index, replacement)
    graph = value.graph
    if graph is not None and value.is_graph_output():
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = replacement


def take_name(value: ir.Value, successor: ir.Value, suffix: str) -> None:
    """Hand the name, type and shape of `value` to its successor; `value` is called name + suffix."""
    name = value.name
    successor.type, successor.shape = value.type, value.shape
    value.name = f"{name}{suffix}"
    successor.name = name


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that alone reads `value`, once; None where there are more readers or none."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node
