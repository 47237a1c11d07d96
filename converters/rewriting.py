"""Small steps of graph surgery on `onnx_ir`, shared by the passes and the writers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike


class Names:
    """The names that the values of a model have, so that new ones get others.

    Names are unique over the main graph and all subgraphs: what a subgraph defines may not hide what it
    could read from outside.

    Parameters
    ----------
    graph : onnx_ir.Graph
        The main graph. All of its names are read once; give later names through this object.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._taken: set[str | None] = set()
        for each in (graph, *graph.subgraphs()):
            self._taken.update(value.name for value in (*each.inputs, *each.initializers.values()))
            self._taken.update(value.name for node in each for value in node.outputs)

    def new(self, stem: str) -> str:
        """Return `stem`, or a numbered variant of it where that is taken, and take it."""
        free, number = stem, 1
        while free in self._taken:
            free, number = f"{stem}_{number}", number + 1
        self._taken.add(free)
        return free

    def rename(self, value: ir.Value, stem: str) -> None:
        """Call a value `stem`, or a numbered variant of it; its old name becomes free."""
        self._taken.discard(value.name)
        value.name = self.new(stem)


def add_initializer(names: Names, stem: str, constant: ArrayLike) -> ir.Value:
    """Register a constant in the main graph under `stem`, or a numbered variant where that is taken.

    Parameters
    ----------
    names : Names
    stem : str
    constant : array_like

    Returns
    -------
    onnx_ir.Value
        With its shape and dtype set.
    """
    array = np.asarray(constant)
    name = names.new(stem)
    # ascontiguousarray makes a vector of a scalar.
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    names.graph.register_initializer(value)
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


def take_name(names: Names, value: ir.Value, successor: ir.Value, suffix: str) -> None:
    """Hand the name, type and shape of `value` to its successor; `value` is called name + suffix."""
    name = str(value.name)
    successor.type, successor.shape = value.type, value.shape
    names.rename(value, f"{name}{suffix}")
    names.rename(successor, name)
