"""The rounding of QuantizeLinear, for whatever makes real values: a piece of emitted code, and rows of them.

    xq = zero_point + round_half_even(clip(x / scale, lowest - zero_point, highest - zero_point))

in float32 (onnxruntime, onnxruntime/core/mlas/lib/quantize.cpp). A division takes longer than all the rest
together, so vectors multiply by the reciprocal r of the scale and correct twice,

    q0 = x * r        q1 = q0 + (x - q0 * scale) * r        q2 = q1 + (x - q1 * scale) * r

where each bracket, and each sum, is one fused multiply-add. q2 is the correctly rounded quotient, because r
is the correctly rounded reciprocal and q1 is a float next to the quotient (Markstein, Computation of
elementary functions on the IBM RISC System/6000 processor, IBM Journal of Research and Development 34,
1990). Nothing may overflow, nor lose bits near zero: x is clipped first, to the ends of the range times the
scale, which after rounding come to the same integers; very small or large scales are left to divisions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store_activations

LEAST_SCALE, LARGEST_SCALE = np.float32(2.0**-100), np.float32(2.0**100)
"""Between these scales no step of the corrected quotient overflows, or underflows where it matters."""


def rounding_tier(scale: float) -> int:
    """Return the index of this machine's best instruction set that rounds by this scale exactly."""
    exact = LEAST_SCALE <= np.float32(scale) <= LARGEST_SCALE
    return index_of(available()[0] if exact else INSTRUCTION_SETS[-1])


def rounding(e: Emitter, scale: Any, zero: Any, lowest: Any, highest: Any) -> Callable[[Value], Value]:
    """Emit what one scale needs, and return what emits the rounding of a vector.

    Parameters
    ----------
    e : Emitter
        Where it goes.
    scale : Value
        Real value of one step, a float32.
    zero, lowest, highest : Value
        Zero point and range of the activations.

    Returns
    -------
    callable
        Takes float32 lanes and returns int32 lanes within the range; NaN becomes the lowest.
    """
    steps, back = e.filled(scale, f32), e.filled(0 - scale, f32)
    inverse = e.filled(e.number(1.0, f32) / scale, f32)
    zero, lowest, highest = (e.number(number) for number in (zero, lowest, highest))
    low, high = (steps * e.filled((end - zero).signed(f32), f32) for end in (lowest, highest))
    zeros = e.filled(zero.signed(i32), i32)

    def rounded(value: Value) -> Value:
        value = e.smaller(e.larger(value, low), high)
        quotient = value * inverse
        for _ in range(2):
            quotient = e.fused(e.fused(quotient, back, value), inverse, quotient)
        whole: Value = e.whole(quotient) + zeros
        return whole

    return rounded


@cache
def rounder(tier: int) -> Any:
    """Return the function that quantizes rows, for an instruction set.

    ``quantize(x, x_place, x_pitch, rows, count, scale, zero, lowest, highest, out, out_place, out_pitch)``
    takes `count` elements of each row; pitches are the distances between the beginnings of rows. NaN becomes
    `lowest`.
    """
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def quantize(
        x: NDArray[np.float32],
        x_place: int,
        x_pitch: int,
        rows: int,
        count: int,
        scale: np.float32,
        zero: int,
        lowest: int,
        highest: int,
        out: NDArray[np.uint8],
        out_place: int,
        out_pitch: int,
    ) -> None:
        if wide:
            _emit_quantize(
                tier, x, x_place, x_pitch, rows, count, scale, zero, lowest, highest,
                out, out_place, out_pitch,
            )  # fmt: skip
            return
        low, high = np.float32(lowest - zero), np.float32(highest - zero)
        for row in range(rows):
            first, place = x_place + row * x_pitch, out_place + row * out_pitch
            for k in range(count):
                value = x[first + k] / scale
                value = value if value > low else low  # where a NaN ends
                value = value if value < high else high
                out[place + k] = np.uint8(np.int32(np.rint(value)) + zero)

    return quantize


@emitted
def _emit_quantize(
    e: Emitter, x: Any, x_place: Any, x_pitch: Any, rows: Any, count: Any, scale: Any, zero: Any,
    lowest: Any, highest: Any, out: Any, out_place: Any, out_pitch: Any,
) -> None:  # fmt: skip
    lanes = e.lanes(f32)
    rounded = rounding(e, scale, zero, lowest, highest)
    for row in e.range(0, rows):
        source, target = x + (x_place + row * x_pitch) * 4, out + (out_place + row * out_pitch)

        def do(k: Any, vectors: int, some: Any) -> None:
            values = [load(e, source + (k + v * lanes) * 4, some, f32) for v in range(vectors)]  # noqa: B023
            store_activations(e, target + k, [rounded(value) for value in values], some)  # noqa: B023

        each_vector(e, count, lanes, do)
