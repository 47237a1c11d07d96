"""What is known of the sizes of a node's operands."""

from __future__ import annotations

import onnx_ir as ir

MOST_AXES = 64
"""Of a shape that is given as a tensor; NumPy has no arrays of more."""


class Sizes:
    """What is known of the shapes of a node's inputs.

    Parameters
    ----------
    node : onnx_ir.Node
    inferred : bool
        Whether the shapes of computed values have been inferred, and are not only declared.
    """

    def __init__(self, node: ir.Node, inferred: bool) -> None:
        self._node, self.inferred = node, inferred

    def known(self, index: int) -> bool:
        """Tell whether the shape of an input is known in full."""
        shape = self.axes(index)
        return shape is not None and None not in shape

    def of(self, index: int) -> list[int]:
        """Return the shape of an input that is known in full; else one that says nothing."""
        shape = self.axes(index)
        return [1] if shape is None or None in shape else [size for size in shape if size is not None]

    def axes(self, index: int) -> list[int | None] | None:
        """Return the sizes of an input's axes, None where one is unknown, or all are."""
        value = self._value(index)
        if value is None:
            return None
        tensor = constant_tensor(value)
        if tensor is not None:
            return [int(size) for size in tensor.shape.numpy()]
        if value.shape is None or not (self.inferred or value.is_graph_input()):
            return None
        return [size if isinstance(size, int) and size >= 0 else None for size in value.shape]

    def numbers(self, index: int) -> list[int] | None:
        """Return the values of an input that is a constant vector of few whole numbers."""
        value = self._value(index)
        tensor = None if value is None else constant_tensor(value)
        if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            return None
        return [int(number) for number in tensor.numpy().ravel()] if tensor.size <= MOST_AXES else None

    def _value(self, index: int) -> ir.Value | None:
        return self._node.inputs[index] if index < len(self._node.inputs) else None


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or Constant, an input's default included."""
    return value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
