"""From real values to activations, rounded as onnxruntime's QuantizeLinear rounds.

    xq = zero_point + round_half_even(clip(x / scale, -zero_point, highest - zero_point))

in float32, `highest` being 255, or 15 for 4-bit activations (onnxruntime,
onnxruntime/core/mlas/lib/quantize.cpp). A division takes longer than all the rest together, so vectors
multiply by the reciprocal r of the scale and correct twice,

    q0 = x * r        q1 = q0 + (x - q0 * scale) * r        q2 = q1 + (x - q1 * scale) * r

where each bracket, and each sum, is one fused multiply-add. q2 is the correctly rounded quotient, because r
is the correctly rounded reciprocal and q1 is a float next to the quotient (Markstein, Computation of
elementary functions on the IBM RISC System/6000 processor, IBM Journal of Research and Development 34,
1990). Nothing may overflow, nor lose bits near zero: x is clipped first, to the ends of the range times the
scale, which after rounding come to the same integers; very small or large scales are left to divisions.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import ready
from fgq.kernels.simd.emit import Emitter, Value, Variable, emitted, f32, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread

_ROUND = np.float32(1.5 * 2**23)
"""Floats near this one are 1 apart: adding it rounds |v| < 2**22 to an integer, half to even."""

_SCALES = 2.0**-100, 2.0**100
"""Scales for which no step of the corrected quotient overflows or underflows where it matters."""

_PIECE = 1 << 19
"""Activations that a thread takes at once: a tenth of a millisecond, as long as handing them out takes."""


def quantize_activations(
    x: NDArray[np.float32], scale: float, zero_point: int, bits: int = 8, threads: int = 1
) -> NDArray[np.uint8]:
    """Quantize real values (ONNX QuantizeLinear; for 4 bits Clip to 0..15 follows).

    Parameters
    ----------
    x : ndarray of float32
        Any shape. NaN becomes 0, the lowest activation, as in onnxruntime on x86-64.
    scale : float
        Real value of one step; read as a float32.
    zero_point : int
        The activation that means 0.0, 0..255.
    bits : int
        8 or 4.
    threads : int
        How many threads to use.

    Returns
    -------
    ndarray of uint8, shape of `x`
        Activations in C order.

    Raises
    ------
    KernelError
        If an argument does not fit.
    """
    _check_real(x)
    if bits not in (4, 8):
        raise KernelError(f"bits: found {bits}, wanted 4 or 8")
    out = np.empty(x.shape, np.uint8)
    Quantize(scale, zero_point, 0, (1 << bits) - 1, threads=threads)(x, out)
    return out


class Quantize:
    """Real values to activations, again and again (ONNX QuantizeLinear, and a Clip behind it).

    Parameters
    ----------
    scale : float
        Real value of one step; read as a float32.
    zero_point : int
        The activation that means 0.0, 0..255.
    lowest, highest : int
        Range of the activations.
    image : bool
        Whether to bring images from NCHW into NHWC.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If an argument does not fit.
    """

    def __init__(
        self,
        scale: float,
        zero_point: int,
        lowest: int = 0,
        highest: int = 255,
        *,
        image: bool = False,
        threads: int = 1,
    ) -> None:
        if not 0 <= zero_point <= 255:
            raise KernelError(f"zero_point: found {zero_point}, wanted 0..255")
        self._scale, self._zero = np.float32(scale), zero_point
        self._lowest, self._highest = lowest, highest
        exact = _SCALES[0] <= self._scale <= _SCALES[1]
        self._quantize = _quantizer(index_of(available()[0])) if exact else _quantize
        self._image, self._threads = image, threads
        self._planes = np.empty(0, np.uint8)

    def __call__(self, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Quantize.

        Parameters
        ----------
        x : ndarray of float32
            Any shape; (B, C, H, W) for images.
        out : ndarray of uint8
            Written: the shape of `x`, or (B, H, W, C) for images. C order.
        """
        x = ready(x)
        flat = x.reshape(-1)
        if self._image and self._planes.size != flat.size:
            self._planes = np.empty(flat.size, np.uint8)
        result = self._planes if self._image else out.reshape(-1)
        scale, zero, highest, quantize = self._scale, self._zero, self._highest, self._quantize

        def work(_thread: int, begin: int, end: int) -> None:
            part = slice(begin * _PIECE, end * _PIECE)
            quantize(flat[part], scale, zero, highest, result[part])

        spread(-(-flat.size // _PIECE), self._threads, work)
        if self._lowest > 0:
            np.maximum(result, np.uint8(self._lowest), out=result)
        if self._image:
            images, channels = x.shape[:2]
            _interleave(result.reshape(images, channels, -1), out.reshape(images, -1, channels))


@jit
def _interleave(planes: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Bring the channels of each pixel [B, C, P] next to each other [B, P, C], block by block."""
    images, channels, size = planes.shape
    for image in range(images):
        for first in range(0, size, 64):
            last = min(first + 64, size)
            for c in range(channels):
                for p in range(first, last):
                    pixels[image, p, c] = planes[image, c, p]


def dynamic_quantization(x: NDArray[np.float32]) -> tuple[float, int]:
    """Return scale and zero point for values that are only known now (ONNX DynamicQuantizeLinear).

    Parameters
    ----------
    x : ndarray of float32
        Any shape. NaN takes no part; in onnxruntime that depends on where in the array it is.

    Returns
    -------
    tuple of float and int
        Scale, a float32, and zero point: the range from the smallest to the largest value, 0.0 included,
        becomes 0..255.

    Raises
    ------
    KernelError
        If `x` is no float32.
    """
    _check_real(x)
    ends = np.zeros((2, 16), np.float32)
    _ranger(index_of(available()[0]))(ready(x).reshape(-1), ends)
    lowest, highest = ends[0].min(), ends[1].max()
    if lowest == highest:
        return 1.0, 0
    with np.errstate(all="ignore"):
        scale = (highest - lowest) / np.float32(255)
        zero = float(-lowest / scale)
    # it is NaN where there are infinities, or nothing but the smallest floats
    return float(scale), round(zero) if zero < 255 else 255


def _check_real(x: NDArray[np.float32]) -> None:
    if x.dtype != np.float32:
        raise KernelError(f"x: found {x.dtype}, wanted float32")


@cache
def _quantizer(tier: int) -> Any:
    """Return the function ``quantize(x, scale, zero, highest, out)``, for an instruction set."""
    if INSTRUCTION_SETS[tier].width == 0:
        return _quantize

    @jit
    def quantize(
        x: NDArray[np.float32], scale: np.float32, zero: int, highest: int, out: NDArray[np.uint8]
    ) -> None:
        _emit_quantize(tier, x, x.size, scale, np.float32(1) / scale, zero, highest, out)

    return quantize


@emitted
def _emit_quantize(
    e: Emitter, x: Any, size: Any, scale: Any, reciprocal: Any, zero: Any, highest: Any, out: Any
) -> None:
    lanes = e.lanes(f32)
    steps, back, inverse = e.filled(scale, f32), e.filled(-scale, f32), e.filled(reciprocal, f32)
    low, high = (steps * e.filled(e.number(end).signed(f32), f32) for end in (-zero, highest - zero))
    zeros = e.filled(e.number(zero, i32), i32)

    def quantized(value: Value) -> Value:
        value = e.smaller(e.larger(value, low), high)
        quotient = value * inverse
        for _ in range(2):
            quotient = e.fused(e.fused(quotient, back, value), inverse, quotient)
        return (e.whole(quotient) + zeros).signed(i8)

    whole = size - (size & (lanes - 1))
    for k in e.range(0, whole, lanes):
        e.store(out + k, quantized(e.load(x + k * 4, f32)))
    rest = size - whole
    with e.when(rest > 0):
        e.store_first(out + whole, quantized(e.load_first(x + whole * 4, rest, f32)), rest)


@jit
def _quantize(
    x: NDArray[np.float32], scale: np.float32, zero: int, highest: int, out: NDArray[np.uint8]
) -> None:
    low, high = np.float32(-zero), np.float32(highest - zero)
    for k in range(x.size):
        value = x[k] / scale
        value = value if value > low else low  # where a NaN ends
        value = value if value < high else high
        out[k] = np.int32((value + _ROUND) - _ROUND) + zero


@cache
def _ranger(tier: int) -> Any:
    """Return the function that finds a range, for an instruction set.

    ``find(x, ends)`` writes the smallest values of `x`, or 0.0, into ``ends[0]`` and the largest into
    ``ends[1]``, float32 [2, 16]; what it does not write is 0.0.
    """
    if INSTRUCTION_SETS[tier].width == 0:
        return _find

    @jit
    def find(x: NDArray[np.float32], ends: NDArray[np.float32]) -> None:
        _emit_range(tier, x, x.size, ends)

    return find


@emitted
def _emit_range(e: Emitter, x: Any, size: Any, ends: Any) -> None:
    lanes = e.lanes(f32)
    # several, since each waits for its predecessor
    lows, highs = ([e.variable(e.zeros(f32)) for _ in range(4)] for _ in range(2))

    def take(value: Value, low: Variable, high: Variable) -> None:
        low.value, high.value = e.smaller(value, low), e.larger(value, high)

    whole = size - size % (4 * lanes)
    for k in e.range(0, whole, 4 * lanes):
        for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
            take(e.load(x + (k + i * lanes) * 4, f32), low, high)
    for k in e.range(whole, size, lanes):
        take(e.load_first(x + k * 4, size - k, f32), lows[0], highs[0])
    for low, high in zip(lows[1:], highs[1:], strict=True):
        take(low.value, lows[0], highs[0])
        take(high.value, lows[0], highs[0])
    e.store(ends, lows[0])
    e.store(ends + 16 * 4, highs[0])


@jit
def _find(x: NDArray[np.float32], ends: NDArray[np.float32]) -> None:
    low = high = np.float32(0)
    for value in x:
        low = value if value < low else low
        high = value if value > high else high
    ends[0, 0], ends[1, 0] = low, high
