"""ONNX operators in NumPy: what runs between integer layers where there is no onnxruntime.

Each takes arrays in the layouts of ONNX and gives what onnxruntime's CPU provider gives: integers equal,
floats up to the rounding of sums. Float convolutions and matrix products are not among them.

A module holds the operators of one theme and lists them in its ``OPERATORS``;
:mod:`~fgq.runtime.operators.operator` says how a function becomes an :class:`Operator`.

>>> import numpy as np
>>> operator = find("", "Clip")
>>> operator([np.array([-1, 5, 9]), None, np.array(7)], {}, opset=17)
(array([-1,  5,  7]),)
"""

from __future__ import annotations

from fgq.runtime.operators import (
    cast,
    elementwise,
    layout,
    normalization,
    pooling,
    products,
    quantization,
    resize,
)
from fgq.runtime.operators.operator import Operator, attributes_of

__all__ = ["Operator", "attributes_of", "find", "names"]

_OPERATORS: dict[str, Operator] = {}
for _module in (cast, elementwise, layout, normalization, pooling, products, quantization, resize):
    for _name, _function in _module.OPERATORS.items():
        if _name in _OPERATORS:
            raise ImportError(f"{_name}: two modules compute this operator")
        _OPERATORS[_name] = Operator(_name, _function)


def find(domain: str, op_type: str) -> Operator | None:
    """Return an operator, None for one that is not among ours.

    Parameters
    ----------
    domain : str
        Empty, or its alias ``ai.onnx``, for ONNX's own operators.
    op_type : str
        The operator's name.
    """
    return _OPERATORS.get(op_type) if domain in ("", "ai.onnx") else None


def names() -> list[str]:
    """Return the names of all operators, in order."""
    return sorted(_OPERATORS)
