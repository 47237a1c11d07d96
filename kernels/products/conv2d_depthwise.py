"""Depthwise convolution with 8-bit weights: one input channel per filter.

Nothing is summed over channels, which lie next to each other in NHWC, so vectors run along them. Kernel rows
are taken four at a time: the bytes of four image rows are woven into *quads*, and one int8 dot product adds
four taps of each of 16 channels (on 64-byte registers)::

    lines    row y     a0 a1 a2 ..         the image rows under the window, with padding written out
             row y+1   b0 b1 b2 ..
             row y+2   c0 c1 c2 ..
    quads    a0 b0 c0 0  a1 b1 c1 0  ..    once for each output row, used by every kernel column
    weights  [quad rows, kw, channels, 4]  the same order
    sums     [pixels, channels]            int32, finished by the epilogue while they are in the cache

The dot product is vpdpbusd where the machine has it, else exact multiply-adds of int16 pairs. A run of output
pixels is taken at a time, so that lines, quads and sums stay in the cache. Several filters on one channel
read a copy of it each.

Accumulators: int32. Zero points enter by the bias; no sum can leave int32
(:mod:`fgq.kernels.products.weights`), and partial sums that wrap come back. For 3 x 3 taps, whose weights
stay in registers: 3 dot products, 3 loads, a store and 6 instructions of weaving for 16 channels of a pixel.
Other processors get plain loops that LLVM turns into vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.products.driver import ALIGNMENT, aligned
from fgq.kernels.products.epilogue import Epilogue, finisher
from fgq.kernels.products.gather import Geometry, emit_run
from fgq.kernels.products.weights import Weight, zero_point_bias
from fgq.kernels.simd.emit import Emitter, Pointer, Value, emitted, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, InstructionSet, index_of
from fgq.kernels.threads import spread
from fgq.kernels.window import Window

_PIXELS = 4
"""Output pixels that are summed side by side, sharing their weights."""

_COLUMNS = 3
"""Columns of the usual kernel; if it has no more than 4 rows, its weights stay in registers."""

_CACHE = 128 << 10
"""Bytes of the second-level cache that quads and sums may take; fewer, in the nearest one, gain nothing."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Depthwise:
    """Prepared weights.

    Parameters
    ----------
    weights : ndarray of int8
        [quad rows, kw, channels, 4], channels filled up to whole vectors; without vectors [kh, kw, M].
    bias : ndarray of int32, shape (M,)
        With the zero point's share.
    kernel : tuple of int
        Taps (kh, kw).
    x_zero : int
        What padding holds.
    window : Window
        Strides, padding, dilations, and as many conv groups as input channels.
    isa : InstructionSet
        What the code is for.
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    kernel: tuple[int, int]
    x_zero: int
    window: Window
    isa: InstructionSet


def prepare(
    weight: Weight, bias: NDArray[np.int32], x_zero: int, window: Window, isa: InstructionSet
) -> Depthwise:
    """Bring the weights into the kernel's order.

    Parameters
    ----------
    weight : Weight
        Codes [M, kh, kw, 1] and scales; M is a multiple of the number of input channels.
    bias : ndarray of int32, shape (M,)
        Added to the sums.
    x_zero : int
        Zero point of the activations.
    window : Window
        The geometry; ``window.groups`` is the number of input channels.
    isa : InstructionSet
        What to make code for.
    """
    taps = np.ascontiguousarray(weight.int8()[..., 0].transpose(1, 2, 0))
    kh, kw, outputs = taps.shape
    if isa.width:
        lanes = isa.width // 4
        quads = np.zeros((-(-kh // 4), 4, kw, outputs + -outputs % lanes), np.int8)
        quads.reshape(-1, *quads.shape[2:])[:kh, :, :outputs] = taps
        taps = aligned((quads.shape[0], kw, quads.shape[3], 4), np.int8)
        taps[...] = quads.transpose(0, 2, 3, 1)
    return Depthwise(
        weights=taps,
        bias=zero_point_bias(weight, bias, x_zero),
        kernel=(kh, kw),
        x_zero=x_zero,
        window=window,
        isa=isa,
    )


def scratch_shape(prepared: Depthwise, shape: tuple[int, ...], threads: int) -> tuple[int, int]:
    """Return threads and bytes of the scratch that an input of this shape needs."""
    job = _job_of(prepared, shape)
    return max(1, min(threads, shape[0] * job.size[0])), job.scratch_bytes


def bind(
    prepared: Depthwise,
    x: NDArray[np.uint8],
    epilogue: Epilogue,
    residual: NDArray[Any] | None,
    out: NDArray[Any],
    scratch: NDArray[np.uint8],
) -> Callable[[], None]:
    """Return the convolution of these arrays, as a function to be called any number of times.

    Parameters
    ----------
    prepared : Depthwise
        The weights.
    x : ndarray of uint8, shape (B, H, W, C)
        Activations in C order.
    epilogue : Epilogue
        What becomes of the sums.
    residual : ndarray, shape (B, OH, OW, M), or None
        Added by the epilogue.
    out : ndarray, shape (B, OH, OW, M)
        Written, of the epilogue's dtype.
    scratch : ndarray of uint8
        Of :func:`scratch_shape`.
    """
    outputs = prepared.bias.size
    filters = outputs // prepared.window.groups
    job, rows, threads = _job_of(prepared, x.shape), len(out) * out.shape[1], len(scratch)
    added = np.empty(0, np.uint8) if residual is None else residual.reshape(-1).view(np.uint8)
    result = out.reshape(-1).view(np.uint8)
    integers, factors, floats = epilogue.integers, epilogue.factors(outputs), epilogue.floats
    compute = _convolver(index_of(prepared.isa))
    repeated = np.empty((*x.shape[:3], outputs), np.uint8) if filters > 1 else x
    flat = repeated.reshape(-1)

    def work(thread: int, begin: int, end: int) -> None:
        compute(
            prepared.weights, flat, job.numbers, job.cut, begin, end, scratch[thread],
            prepared.bias, integers, factors, floats, added, result,
        )  # fmt: skip

    def run() -> None:
        if filters > 1:
            repeated.reshape(*x.shape, filters)[...] = x[..., None]
        if result.size:
            spread(rows, threads, work)

    return run


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Job:
    """What is the same for all calls with one shape of input."""

    size: tuple[int, int]
    numbers: NDArray[np.int64]
    cut: NDArray[np.int64]
    scratch_bytes: int


@lru_cache(maxsize=256)
def _plan_job(
    shape: tuple[int, ...], kernel: tuple[int, int], window: Window, x_zero: int, wide: int
) -> _Job:
    """Cut output rows into runs of pixels whose quads and sums, `wide` channels each, fit into the cache."""
    geometry = Geometry.of(shape, kernel, window, x_zero)
    (kh, kw), channels, width = kernel, shape[3], geometry.size[1]
    quad_rows = -(-kh // 4)
    pixels = _CACHE // (4 * (wide + quad_rows * window.strides[1] * channels))
    pixels = min(max(pixels // _PIXELS, 1) * _PIXELS, width + -width % _PIXELS)
    columns = (pixels - 1) * window.strides[1] + (kw - 1) * window.dilations[1] + 1
    line = _rounded(columns * channels + ALIGNMENT)
    work_bytes = (kh + 4 * quad_rows) * line
    return _Job(
        size=geometry.size,
        numbers=geometry.numbers,
        cut=np.array([pixels, wide, line, work_bytes], np.int64),
        scratch_bytes=_rounded(work_bytes + 4 * pixels * wide),
    )


def _job_of(prepared: Depthwise, shape: tuple[int, ...]) -> _Job:
    shape = (*shape[:3], prepared.bias.size)
    return _plan_job(shape, prepared.kernel, prepared.window, prepared.x_zero, prepared.weights.shape[2])


def _rounded(count: int) -> int:
    return count + -count % ALIGNMENT


@cache
def _convolver(tier: int) -> Any:
    """Return the function that makes output rows `begin` to `end` of all images, for an instruction set."""
    finish, add_up = finisher(tier), _adder(tier)

    @jit
    def compute(
        weights: NDArray[np.int8],
        x: NDArray[np.uint8],
        numbers: NDArray[np.int64],
        cut: NDArray[np.int64],
        begin: int,
        end: int,
        scratch: NDArray[np.uint8],
        bias: NDArray[np.int32],
        integers: NDArray[np.int64],
        factors: NDArray[np.float32],
        floats: NDArray[np.float32],
        residual: NDArray[np.uint8],
        out: NDArray[np.uint8],
    ) -> None:
        oh, ow = numbers[6], numbers[7]
        pixels, wide, line, work_bytes = cut[0], cut[1], cut[2], cut[3]
        channel = np.int64(0)  # a plain 0 would be compiled for
        sums = scratch[work_bytes : work_bytes + 4 * pixels * wide].view(np.int32).reshape(pixels, wide)
        for row in range(begin, end):
            image, down = divmod(row, oh)
            for first in range(0, ow, pixels):
                count = min(pixels, ow - first)
                add_up(weights, x, numbers, line, image, down, first, count, scratch, sums)
                finish(
                    sums, count, bias.size, row * ow + first, channel,
                    bias, integers, factors, floats, residual, out,
                )  # fmt: skip

    return compute


@cache
def _adder(tier: int) -> Any:
    """Return the function that sums over the taps, for an instruction set.

    ``add_up(weights, x, numbers, line, image, down, first, count, work, sums)`` does output pixels `first`,
    .., `first` + `count` - 1 of output row `down`; `line` is the pitch of the lines in `work`.
    """
    if INSTRUCTION_SETS[tier].width == 0:
        return _add_up

    @jit
    def add_up(
        weights: NDArray[np.int8],
        x: NDArray[np.uint8],
        numbers: NDArray[np.int64],
        line: int,
        image: int,
        down: int,
        first: int,
        count: int,
        work: NDArray[np.uint8],
        sums: NDArray[np.int32],
    ) -> None:
        height, width, channels, kh, kw = numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
        step, aside = numbers[9] * channels, numbers[13] * channels
        left = first * numbers[9] - numbers[11]
        columns = (count - 1) * numbers[9] + (kw - 1) * numbers[13] + 1
        size = columns * channels
        # those that lie in the image
        begin = min(max(-left, 0), columns) * channels
        end = max(min(width - left, columns) * channels, begin)
        for i in range(kh):
            y = down * numbers[8] - numbers[10] + i * numbers[12]
            inside = 0 <= y < height
            emit_run(
                tier, x, x.size, ((image * height + y) * width + left) * channels, work, kh * line, i * line,
                begin if inside else size, end if inside else size, size, numbers[15],
            )  # fmt: skip
        _emit_quads(tier, work, line, kh, size)
        _emit_sums(tier, work, line, kh, kw, weights, step, aside, count, sums.shape[1], sums)

    return add_up


@emitted
def _emit_quads(e: Emitter, work: Any, line: Any, kh: Any, size: Any) -> None:
    """Weave the lines, which lie first in `work`, into the quads behind them."""
    lanes = e.lanes(i32)

    def weave(start: Pointer, quads: Pointer, rows: int) -> None:
        for k in e.range(0, size, lanes):
            total = e.load(start + k, i8, lanes).unsigned(i32)
            for row in range(1, rows):
                total |= e.load(start + (line * row + k), i8, lanes).unsigned(i32) << 8 * row
            e.store(quads + k * 4, total)

    for i in e.range(0, kh, 4):
        start, quads = work + i * line, work + (kh + i) * line
        for rows in range(1, 4):
            with e.when((kh - i).equals(rows)):
                weave(start, quads, rows)
        with e.when(kh - i >= 4):
            weave(start, quads, 4)


@emitted
def _emit_sums(
    e: Emitter, work: Any, line: Any, kh: Any, kw: Any, weights: Any, step: Any, aside: Any,
    count: Any, wide: Any, sums: Any,
) -> None:  # fmt: skip
    """Sum over all taps; the last pixels may be more than asked for, for which there is room."""
    lanes = e.lanes(i32)
    quads = work + kh * line
    usual = (kh <= 4) & kw.equals(_COLUMNS)

    def add_usual(m: Value) -> None:
        factors = [e.load(weights + (j * wide + m) * 4, i8) for j in range(_COLUMNS)]
        for pixel in e.range(0, count, _PIXELS):
            for p in range(_PIXELS):
                total = e.zeros(i32)
                for j, factor in enumerate(factors):
                    taps = quads + ((pixel + p) * step + aside * j + m) * 4
                    total = e.dot(total, e.load(taps, i8), factor)
                e.store(sums + ((pixel + p) * wide + m) * 4, total)

    def add_any(m: Value) -> None:
        for pixel in e.range(0, count, _PIXELS):
            totals = [e.variable(e.zeros(i32)) for _ in range(_PIXELS)]
            weight = e.variable(weights + m * 4)
            for i in e.range(0, kh, 4):
                for j in e.range(0, kw):
                    taps = quads + (i * line + (pixel * step + j * aside + m) * 4)
                    factors = e.load(weight, i8)
                    for p, total in enumerate(totals):
                        total.value = e.dot(total, e.load(taps + step * (4 * p), i8), factors)
                    weight += wide * 4
            for p, total in enumerate(totals):
                e.store(sums + ((pixel + p) * wide + m) * 4, total)

    with e.when(usual):
        for m in e.range(0, wide, lanes):
            add_usual(m)
    with e.when(usual.equals(0)):
        for m in e.range(0, wide, lanes):
            add_any(m)


@jit
def _add_up(
    weights: NDArray[np.int8],
    x: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    line: int,
    image: int,
    down: int,
    first: int,
    count: int,
    work: NDArray[np.uint8],
    sums: NDArray[np.int32],
) -> None:
    height, width, channels = numbers[1], numbers[2], numbers[3]
    padding = work[:channels]
    padding[:] = numbers[15]
    for pixel in range(count):
        total = sums[pixel]
        total[:] = 0
        for i in range(weights.shape[0]):
            y = down * numbers[8] - numbers[10] + i * numbers[12]
            for j in range(weights.shape[1]):
                z = (first + pixel) * numbers[9] - numbers[11] + j * numbers[13]
                start = ((image * height + y) * width + z) * channels
                inside = 0 <= y < height and 0 <= z < width
                taps, seen = weights[i, j], x[start : start + channels] if inside else padding
                for m in range(channels):
                    total[m] += np.int32(taps[m]) * np.int32(seen[m])
