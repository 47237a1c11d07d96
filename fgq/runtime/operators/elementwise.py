"""Operators that compute each value by itself, of floats and, where ONNX has them, of integers.

Integers wrap around. Half-precision floats are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce, wraps
from typing import Any

import numpy as np

from fgq.errors import ModelError
from fgq.runtime.operators.cast import computable
from fgq.runtime.operators.operator import Array


def _in_single(function: Callable[..., Any]) -> Callable[..., Array]:
    """Compute with half-precision values in float32, and round the result alone."""

    @wraps(function)
    def computed(*inputs: Array | None, **attributes: object) -> Array:
        kind = next(x.dtype for x in inputs if x is not None)
        wide = (None if x is None else computable(x) for x in inputs)
        return np.asarray(function(*wide, **attributes), kind)

    return computed


@_in_single
def add(a: Array, b: Array, /) -> Any:
    """Add."""
    return np.add(a, b)


@_in_single
def subtract(a: Array, b: Array, /) -> Any:
    """Subtract."""
    return np.subtract(a, b)


@_in_single
def multiply(a: Array, b: Array, /) -> Any:
    """Multiply."""
    return np.multiply(a, b)


@_in_single
def divide(a: Array, b: Array, /) -> Any:
    """Divide; integers towards zero."""
    if a.dtype.kind not in "iu":
        return np.divide(a, b)
    quotient = np.floor_divide(a, b)
    inexact = np.multiply(quotient, b) != a
    return quotient + (inexact & ((a < 0) != (b < 0))).astype(a.dtype)


@_in_single
def power(a: Array, b: Array, /) -> Any:
    """Raise to a power; the result has the type of the first operand."""
    if a.dtype.kind in "iu" and b.dtype.kind in "iu" and not (b < 0).any():
        return np.power(a, b.astype(a.dtype))
    return np.power(a.astype(np.result_type(a, np.float32)), b)


@_in_single
def total(first: Array, /, *others: Array) -> Any:
    """Add any number of operands."""
    return reduce(np.add, others, first)


def equal(a: Array, b: Array, /) -> Array:
    """Compare; strings, too."""
    return np.equal(a, b).astype(np.bool_)


def where(condition: Array, a: Array, b: Array, /) -> Array:
    """Choose from the first operand where the condition holds, else from the second."""
    return np.where(condition, a, b)


@_in_single
def clip(
    x: Array,
    lowest: Array | None = None,
    highest: Array | None = None,
    /,
    *,
    min: float | None = None,  # noqa: A002 - the attribute's name
    max: float | None = None,  # noqa: A002
) -> Any:
    """Limit to a range; the upper end wins, and before opset 11 the ends are attributes."""
    for end, limit, choose in ((lowest, min, np.maximum), (highest, max, np.minimum)):
        if end is not None or limit is not None:
            x = choose(x, x.dtype.type(limit) if end is None else end)
    return x


@_in_single
def relu(x: Array, /) -> Any:
    """Compute ``max(x, 0)``."""
    return np.maximum(x, x.dtype.type(0))


@_in_single
def leaky_relu(x: Array, /, *, alpha: float = 0.01) -> Any:
    """Compute x, or ``alpha * x`` below 0."""
    return np.where(x < 0, alpha * x, x)


@_in_single
def sigmoid(x: Array, /) -> Any:
    """Compute ``1 / (1 + exp(-x))``."""
    return np.divide(1, 1 + np.exp(-x))


@_in_single
def hard_sigmoid(x: Array, /, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    """Compute ``clip(alpha * x + beta, 0, 1)``."""
    return np.clip(alpha * x + beta, 0, 1)


@_in_single
def hard_swish(x: Array, /) -> Any:
    """Compute ``x * clip(x / 6 + 0.5, 0, 1)``."""
    return x * np.clip(x * x.dtype.type(1 / 6) + x.dtype.type(0.5), 0, 1)


@_in_single
def tanh(x: Array, /) -> Any:
    """Compute the hyperbolic tangent."""
    return np.tanh(x)


@_in_single
def square_root(x: Array, /) -> Any:
    """Compute the square root."""
    return np.sqrt(x)


@_in_single
def erf(x: Array, /) -> Any:
    """Compute the error function."""
    return _erf(x.astype(np.float64)).astype(x.dtype)


@_in_single
def gelu(x: Array, /, *, approximate: str = "none") -> Any:
    """Compute ``x * Phi(x)``, Phi being the normal distribution, or its approximation by a tanh.

    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016, section 2.
    """
    if approximate == "tanh":
        inner = x.dtype.type(np.sqrt(2 / np.pi)) * (x + x.dtype.type(0.044715) * x**3)
        return x.dtype.type(0.5) * x * (1 + np.tanh(inner))
    if approximate != "none":
        raise ModelError(f"approximate: found {approximate!r}, wanted none or tanh")
    half = 0.5 * (1 + _erf(x.astype(np.float64) * np.sqrt(0.5)))
    return x * half.astype(x.dtype)


# Coefficients of Cody's rational approximations, highest power first.
_NEAR = (
    (
        *(1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2),
        3.20937758913846947e3,
    ),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE = (
    (
        *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1),
        *(2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3),
        1.23033935479799725e3,
    ),
    (
        *(1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2),
        *(1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3),
        1.23033935480374942e3,
    ),
)
_FAR = (
    (
        *(1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1),
        *(1.60837851487422766e-2, 6.58749161529837803e-4),
    ),
    (
        *(1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2),
        2.33520497626869185e-3,
    ),
)


def _erf(x: Array) -> Array:
    """Return the error function of doubles.

    W. J. Cody, Rational Chebyshev approximations for the error function, Mathematics of Computation 23,
    1969: one quotient of polynomials up to 0.46875, and two of ``erfc(|x|) exp(x**2)`` up to 4 and beyond.
    """

    def near(x: Array) -> Array:
        return x * _quotient(_NEAR, x * x)

    def middle(x: Array) -> Array:
        size = np.abs(x)
        return np.asarray(np.copysign(1 - np.exp(-x * x) * _quotient(_MIDDLE, size), x))

    def far(x: Array) -> Array:
        size = np.minimum(np.abs(x), 6.0)  # erf is 1.0 from there on
        inverse = 1 / (size * size)
        scaled = (1 / np.sqrt(np.pi) - inverse * _quotient(_FAR, inverse)) / size
        return np.asarray(np.copysign(1 - np.exp(-size * size) * scaled, x))

    size = np.abs(x)
    return np.piecewise(x, [size <= 0.46875, (size > 0.46875) & (size <= 4)], [near, middle, far])


def _quotient(polynomials: tuple[tuple[float, ...], tuple[float, ...]], at: Array) -> Array:
    top, bottom = (np.polyval(np.array(polynomial), at) for polynomial in polynomials)
    return np.asarray(top / bottom)


OPERATORS = {
    "Add": add,
    "Clip": clip,
    "Div": divide,
    "Equal": equal,
    "Erf": erf,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LeakyRelu": leaky_relu,
    "Mul": multiply,
    "Pow": power,
    "Relu": relu,
    "Sigmoid": sigmoid,
    "Sqrt": square_root,
    "Sub": subtract,
    "Sum": total,
    "Tanh": tanh,
    "Where": where,
}
