"""Functions of real numbers in vectors of float32.

exp(x) is 2**n * p(x - n ln 2) with n nearest to x / ln 2, and p the polynomial of degree 6 that interpolates
exp at Chebyshev's points of [-ln 2 / 2, ln 2 / 2], which it does to 4e-9. Below -80 it is 0: a quotient by a
sum of up to 1500 is then no denormal, products of which are slow.

erf(z) is z * P(z**2) / Q(z**2) for |z| <= 4, beyond which it is 1 to rounding, with the coefficients of Eigen
(unsupported/Eigen/src/SpecialFunctions/SpecialFunctionsImpl.h, the erf of floats). GELU with erf is
x * (1/2 + erf(x / sqrt 2) / 2); the form with tanh is x * s(2u) with the logistic function s, u being what
the tanh is taken of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fgq.kernels.simd.emit import Value, Variable, f32, i16, i32


def _fill(like: Value, number: float) -> Value:
    return like.emitter.filled(float(np.float32(number)), f32, like.lanes)


def _polynomial(x: Value, factors: list[float]) -> Value:
    """Emit Horner's rule; the highest power comes first."""
    value = _fill(x, factors[0])
    for factor in factors[1:]:
        value = x.emitter.fused(value, x, _fill(x, factor))
    return value


LEAST_EXPONENT = -80.0
"""Below this, exp is taken for 0."""

_WHOLE = 1.5 * 2**23  # floats near this one are 1 apart
_LN2_HIGH = 0.693359375  # few bits: its products with whole numbers are exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_EXP = [
    float(factor)
    for factor in np.polynomial.Chebyshev.interpolate(np.exp, 6, [-math.log(2) / 2, math.log(2) / 2])
    .convert(kind=np.polynomial.Polynomial)
    .coef[::-1]
]
_FAR = 4 * math.sqrt(2)  # beyond, erf(x / sqrt 2) is 1 to rounding
# of erf(z) / z by the powers of z**2; then of erf(x / sqrt 2) / 2x by those of x**2
_ERF_ABOVE = [
    factor * math.sqrt(0.5) / 2 / 2 ** (6 - k)
    for k, factor in enumerate([
        -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
    ])
]  # fmt: skip
_ERF_BELOW = [
    factor / 2 ** (4 - k)
    for k, factor in enumerate([
        -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02,
    ])
]  # fmt: skip


def exp(x: Value) -> Value:
    """Emit exp(x) for float32 lanes x <= 0, or hardly more; NaN stays."""
    e = x.emitter
    shifted = e.fused(x, _fill(x, 1 / math.log(2)), _fill(x, _WHOLE + 127))
    n = shifted - _fill(x, _WHOLE + 127)
    rest = e.fused(n, _fill(x, -_LN2_LOW), e.fused(n, _fill(x, -_LN2_HIGH), x))
    power = (shifted.bits_as(i32) << 23).bits_as(f32)  # only n + 127 is left, as exponent
    # what comes of numbers out of range does not matter, but a NaN remains one
    return e.choose(x < _fill(x, LEAST_EXPONENT), _fill(x, 0), _polynomial(rest, _EXP) * power)


def reciprocal(x: Value) -> Value:
    """Emit 1 / x for numbers of usual size, good to a unit in the last place."""
    e = x.emitter
    if e.isa.width != 64:
        return _fill(x, 1) / x
    # 14 bits, and once Newton's method: quicker than a division
    guess = e.call("llvm.x86.avx512.rcp14.ps.512", x.type, x, e.zeros(f32), e.number(-1, i16))
    return e.fused(guess, e.fused(x * _fill(x, -1), guess, _fill(x, 1)), guess)


def gelu_by_erf(x: Value) -> Value:
    """Emit ``x / 2 * (1 + erf(x / sqrt 2))`` for float32 lanes."""
    e = x.emitter
    near = e.smaller(x, _fill(x, _FAR))
    square = near * near
    half_erf = near * _polynomial(square, _ERF_ABOVE)
    share = e.fused(half_erf, reciprocal(_polynomial(square, _ERF_BELOW)), _fill(x, 0.5))
    return e.choose(x < _fill(x, -_FAR), _fill(x, 0), x * share)


def gelu_by_tanh(x: Value) -> Value:
    """Emit ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3)))`` for float32 lanes."""
    e = x.emitter
    twice = math.sqrt(8 / math.pi)
    u = x * e.fused(x * x, _fill(x, 0.044715 * twice), _fill(x, twice))
    positive = u > _fill(x, 0)
    power = exp(e.choose(positive, u * _fill(x, -1), u))
    return x * (e.choose(positive, _fill(x, 1), power) * reciprocal(power + 1))


def total_of(one: Value, other: Value) -> Value:
    """Emit a sum, for :func:`reduced`."""
    return one + other


def reduced(vectors: Sequence[Variable], join: Callable[[Value, Value], Value]) -> Value:
    """Join the lanes of some vectors into one number, pair by pair.

    Parameters
    ----------
    vectors : sequence of Variable
        At least one.
    join : callable
        Emits what becomes of two vectors; it is told no order.
    """
    value: Value = vectors[0].value
    for other in vectors[1:]:
        value = join(value, other.value)
    while value.lanes > 1:
        value = join(value.part(0, 2), value.part(1, 2))
    return value.lane(0)
