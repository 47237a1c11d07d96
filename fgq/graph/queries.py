"""What all layers ask of a graph: constants, operators, and who reads a value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer or Constant node, or None where the value is not constant.

    A graph input with a default value is not constant: a caller may override it.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_operator(node: ir.Node | None, *op_types: str) -> bool:
    """Tell whether a node is one of some standard operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def is_read(values: Iterable[ir.Value]) -> bool:
    """Tell whether any of some values is read by a node or is an output of the graph."""
    return any(value.uses() or value.is_graph_output() for value in values)


def sole_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """Return the node that alone reads a value, and which of its inputs the value is.

    Returns
    -------
    (node, index) or None
        None where the value is an output of the graph, is read by several nodes or in several places of one,
        or by none.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node, uses[0].idx


def sole_reader(value: ir.Value, *op_types: str) -> ir.Node | None:
    """Return the node that alone reads a value, once.

    Parameters
    ----------
    value : onnx_ir.Value
    *op_types : str
        The standard operators that it may be; any operator if none are given.

    Returns
    -------
    onnx_ir.Node or None
        None as for `sole_use`, and where the reader is another operator.
    """
    use = sole_use(value)
    if use is None or (op_types and not is_operator(use[0], *op_types)):
        return None
    return use[0]
