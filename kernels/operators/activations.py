"""From real values to activations, rounded as onnxruntime's QuantizeLinear rounds.

    xq = zero_point + round_half_even(clip(x / scale, lowest - zero_point, highest - zero_point))

in float32 (:mod:`fgq.kernels.operators.rounding`). Images in the order NCHW may become NHWC meanwhile: real
values are quantized a stretch of pixels at a time, and its bytes transposed while they are in the nearest
cache (:mod:`fgq.kernels.operators.transpose`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check, check_range, ready
from fgq.kernels.operators.rounding import rounder, rounding_tier
from fgq.kernels.operators.transpose import Cut, cut_image, stretch, transposer
from fgq.kernels.simd.emit import Emitter, Value, Variable, emitted, f32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread

_PIECE = 1 << 14
"""Elements that are handed to a thread together, at least."""

_SHARE = 1 << 19
"""Elements for which another thread is asked: waking it takes as long as quantizing half as many."""


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
    QuantizeLinear(out, scale, zero_point, 0, (1 << bits) - 1, threads=threads)(x)
    return out


class QuantizeLinear:
    """Real values to activations, again and again (ONNX QuantizeLinear, and a Clip behind it).

    Parameters
    ----------
    out : ndarray of uint8
        What each call writes, C order; images are (B, H, W, C).
    scale : float
        Real value of one step; read as a float32.
    zero_point : int
        The activation that means 0.0, 0..255.
    lowest, highest : int
        Range of the activations within 0..255.
    image : bool
        Whether to bring images from NCHW into NHWC.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If the array does not fit, or a number is out of its range.
    """

    def __init__(
        self,
        out: NDArray[np.uint8],
        scale: float,
        zero_point: int,
        lowest: int = 0,
        highest: int = 255,
        *,
        image: bool = False,
        threads: int = 1,
    ) -> None:
        check_range(lowest, highest, zero_point)
        check("quantize", out=(out, out.shape, np.uint8))
        if image and out.ndim != 4:
            raise KernelError(f"quantize: found a result {list(out.shape)}, wanted images [B, H, W, C]")
        self._quantizer = np.float32(scale), zero_point, lowest, highest
        self._out, self._threads = out.reshape(-1), min(threads, max(-(-out.size // _SHARE), 1))
        tier = rounding_tier(scale)
        self._work: Callable[[NDArray[np.float32], int, int, int], None]
        if image:
            images, height, width, channels = out.shape
            self._shape: tuple[int, ...] = (images, channels, height, width)
            self._cut = cut_image(channels, height * width)
            self._units = images * int(self._cut[Cut.COUNT])
            self._scratch = np.empty((self._threads, channels * int(self._cut[Cut.LENGTH])), np.uint8)
            self._run, self._work = _image_quantizer(tier), self._quantize_stretches
        else:
            self._shape, self._units = out.shape, -(-out.size // _PIECE)
            self._run, self._work = rounder(tier), self._quantize_pieces

    def __call__(self, x: NDArray[np.float32]) -> None:
        """Quantize.

        Parameters
        ----------
        x : ndarray of float32
            The shape of the result, or (B, C, H, W) for images, in any order of axes. NaN becomes the lowest
            activation.

        Raises
        ------
        KernelError
            If the array does not fit.
        """
        if x.shape != self._shape or x.dtype != np.float32:
            raise KernelError(f"quantize: found {x.dtype}{list(x.shape)}, wanted float32{list(self._shape)}")
        flat = ready(x).reshape(-1)
        if self._threads == 1:
            self._work(flat, 0, 0, self._units)
        else:
            spread(self._units, self._threads, partial(self._work, flat))

    def _quantize_pieces(self, flat: NDArray[np.float32], _thread: int, begin: int, end: int) -> None:
        first = begin * _PIECE
        count = min(end * _PIECE, flat.size) - first
        self._run(flat, first, 0, 1, count, *self._quantizer, self._out, first, 0)

    def _quantize_stretches(self, flat: NDArray[np.float32], thread: int, begin: int, end: int) -> None:
        self._run(flat, self._cut, begin, end, *self._quantizer, self._scratch[thread], self._out)


@cache
def _image_quantizer(tier: int) -> Any:
    """Return the function that quantizes stretches `begin` to `end` of NCHW into NHWC."""
    quantize, transpose = rounder(tier), transposer(tier)

    @jit
    def run(
        x: NDArray[np.float32],
        cut: NDArray[np.int64],
        begin: int,
        end: int,
        scale: np.float32,
        zero: int,
        lowest: int,
        highest: int,
        scratch: NDArray[np.uint8],
        out: NDArray[np.uint8],
    ) -> None:
        channels, pixels, pitch = cut[Cut.CHANNELS], cut[Cut.PIXELS], cut[Cut.LENGTH]
        for unit in range(begin, end):
            image, first, count = stretch(cut, unit)
            start = image * channels * pixels + first
            quantize(
                x, start, pixels, channels, count, scale, zero, lowest, highest, scratch, np.int64(0), pitch
            )
            place = (image * pixels + first) * channels
            transpose(scratch, np.int64(0), pitch, channels, count, out, place, channels)

    return run


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
    found: tuple[float, int] = _parameter_finder(index_of(available()[0]))(ready(x).reshape(-1))
    return found


@cache
def _parameter_finder(tier: int) -> Any:
    """Return the function that finds the scale and the zero point of all of `x`, for an instruction set."""
    find = ranger(tier)

    @jit
    def parameters(x: NDArray[np.float32]) -> tuple[float, int]:
        ends = np.zeros((2, 16), np.float32)
        find(x, ends)
        lowest, highest = ends[0].min(), ends[1].max()
        if lowest == highest:
            return 1.0, 0
        scale = (highest - lowest) / np.float32(255)
        zero = -lowest / scale
        # it is NaN where there are infinities, or nothing but the smallest floats
        return float(scale), int(np.rint(zero)) if zero < 255 else 255

    return parameters


def _check_real(x: NDArray[np.float32]) -> None:
    if x.dtype != np.float32:
        raise KernelError(f"x: found {x.dtype}, wanted float32")


@cache
def ranger(tier: int) -> Any:
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
