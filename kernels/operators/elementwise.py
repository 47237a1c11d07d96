"""Sums and products of two quantized tensors, rounded as onnxruntime rounds.

    add:       see :mod:`fgq.kernels.products.epilogue`, whose sum with a residual is the same QLinearAdd
    multiply:  yq = clip(round_half_even(((a - za) * (b - zb)) * m + zy), lowest, highest)
               with m = a_scale * b_scale / y_scale

All steps are float32. These are QLinearAdd and QLinearMul (onnxruntime, core/mlas/lib/qladd.cpp, qlmul.cpp),
to which onnxruntime fuses Add and Mul with the quantizers around them. With a ReLU or Clip in between, which
says more than the range of the integers does, it fuses nothing and computes what is written:

    r  = (a - za) * a_scale + (b - zb) * b_scale        or the product of both
    yq = clip(round_half_even(r / y_scale) + zy, lowest, highest)

In the fused sum the first operand is multiplied last, so its rounding depends on the order of the operands.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check
from fgq.kernels.products.epilogue import QuantizedAdd
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store
from fgq.kernels.threads import spread

_ADD, _MULTIPLY, _PLAIN_ADD, _PLAIN_MULTIPLY = range(4)

_WIDTH = 4096
"""Activations in a run, if nothing repeats."""

_REPEATED = 256
"""An operand that repeats more often than this is written out several times first: short runs cost more."""

_PIECE = 1 << 14
"""Activations that a thread takes at a time."""

_LARGEST = 2.0**30
"""Below this, results fit an int32 before they are clipped."""


class _Cut(IntEnum):
    """What each number of the operands' cut into runs is."""

    SPAN = 0
    """Elements over which a repeated operand lasts."""
    WIDTH = 1
    """Elements of a run."""
    RUNS = 2
    """Runs in a span."""
    TOTAL = 3
    """Runs in all."""
    A_REPEATS = 4
    B_REPEATS = 5


class _Factor(IntEnum):
    """What each float32 of an operation is; `_result` says how the first three enter it."""

    A = 0
    """Scale of `a`; in the fused forms divided by that of the result, in a product times that of `b`."""
    B = 1
    """Scale of `b`; in the fused sum divided by that of the result."""
    Y = 2
    """Scale of the result; in the fused sum what is added."""
    A_ZERO = 3
    B_ZERO = 4
    Y_ZERO = 5


class _Range(IntEnum):
    """What each integer of an operation is: the ends of the results' range."""

    LOWEST = 0
    HIGHEST = 1


class _Binary:
    """Operands cut into runs, in each of which neither of them begins anew."""

    _kinds: tuple[int, int]

    def __init__(
        self,
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        y: NDArray[np.uint8],
        *,
        scales: tuple[float, float, float],
        zeros: tuple[int, int, int],
        lowest: int = 0,
        highest: int = 255,
        fused: bool = True,
        threads: int = 1,
    ) -> None:
        # QuantizedAdd checks the numbers too
        add = QuantizedAdd(
            scale=scales[0], zero_point=zeros[0], residual_scale=scales[1], residual_zero_point=zeros[1],
            sum_scale=scales[2], sum_zero_point=zeros[2], lowest=lowest, highest=highest,
        )  # fmt: skip
        kind = self._kinds[0 if fused else 1]
        self._floats = np.zeros(len(_Factor), np.float32)
        self._floats[[_Factor.A_ZERO, _Factor.B_ZERO, _Factor.Y_ZERO]] = zeros
        a_scale, b_scale, y_scale = (np.float32(scale) for scale in scales)
        if kind == _MULTIPLY:
            with np.errstate(over="ignore"):
                a_scale = a_scale * b_scale / y_scale
        self._floats[[_Factor.A, _Factor.B, _Factor.Y]] = (
            add.floats if kind == _ADD else (a_scale, b_scale, y_scale)
        )
        if not np.isfinite(self._floats).all():
            raise KernelError(
                f"scales: found {list(scales)}, wanted such whose quotients are float32 numbers"
            )
        self._range = np.zeros(len(_Range), np.int64)
        self._range[_Range.LOWEST], self._range[_Range.HIGHEST] = lowest, highest
        for name, array in (("a", a), ("b", b), ("y", y)):
            check(type(self).__name__.lower(), **{name: (array, array.shape, np.uint8)})
        self._cut, self._tiles = _cut(a, b, y)
        self._a, self._b = (
            tile[1] if tile else x.reshape(-1) for x, tile in zip((a, b), self._tiles, strict=True)
        )
        self._y = y.reshape(-1)
        self._runs, width = int(self._cut[_Cut.TOTAL]), int(self._cut[_Cut.WIDTH])
        self._each = max(_PIECE // max(width, 1), 1)
        self._threads = threads
        # vectors go through int32 before they clip
        isa = available()[0] if self._largest(*scales) < _LARGEST else INSTRUCTION_SETS[-1]
        self._compute = _computer(index_of(isa), kind)

    @staticmethod
    def _largest(a_scale: float, b_scale: float, y_scale: float) -> float:
        """Return what no result exceeds, in steps of the result."""
        raise NotImplementedError

    def __call__(self) -> None:
        """Compute from what the operands now hold."""
        for tile in self._tiles:
            if tile:
                np.copyto(tile[2], tile[0])
        if self._threads == 1:
            self._work(0, 0, -(-self._runs // self._each))
        else:
            spread(-(-self._runs // self._each), self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._compute(
            self._a, self._b, self._cut, begin * self._each, min(end * self._each, self._runs),
            self._floats, self._range, self._y,
        )  # fmt: skip


class Add(_Binary):
    """The sum of two quantized tensors.

    Parameters
    ----------
    a, b : ndarray of uint8
        The operands, C order. One of them has the shape of `y`; the other one, too, or it is repeated:
        [B, 1, .., 1, C] or what broadcasts to that, or one number.
    y : ndarray of uint8, shape (B, .., C)
        Written by each call, C order.
    scales, zeros : tuple of float, tuple of int
        Scales and zero points of `a`, `b` and `y`.
    lowest, highest : int
        Range of the result: ReLU has ``lowest = zeros[2]``.
    fused : bool
        Whether onnxruntime would fuse quantizers and operator, which decides the rounding: not with a ReLU
        or Clip in between that the range 0..255 does not imply.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If shapes or numbers do not fit.

    Notes
    -----
    onnxruntime takes an operand that is constant along its innermost axes (a number, or [B, C, 1, 1] in
    NCHW) for the second one, wherever it stands. Its order is the caller's to choose.
    """

    _kinds = _ADD, _PLAIN_ADD

    @staticmethod
    def _largest(a_scale: float, b_scale: float, y_scale: float) -> float:
        return 255 * (float(a_scale) + float(b_scale)) / float(y_scale) + 255


class Multiply(_Binary):
    """The product of two quantized tensors; parameters as for :class:`Add`, in any order."""

    _kinds = _MULTIPLY, _PLAIN_MULTIPLY

    @staticmethod
    def _largest(a_scale: float, b_scale: float, y_scale: float) -> float:
        return 255**2 * float(a_scale) * float(b_scale) / float(y_scale) + 255


_Tile = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""A repeated operand as rows, where it is written out, and a view of that which broadcasts from the rows."""


def _cut(
    a: NDArray[np.uint8], b: NDArray[np.uint8], y: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], list[_Tile | None]]:
    """Return the cut, in the order of `_Cut`, and the operands that are written out several times first."""
    repeats = [operand.shape != y.shape for operand in (a, b)]
    small = a if repeats[0] else b
    if all(repeats) or y.ndim == 0 or not (small.shape == y.shape or _fits(small.shape, y.shape)):
        raise KernelError(
            f"operands: found {list(a.shape)} and {list(b.shape)} for a result {list(y.shape)}, wanted its "
            "shape and the same, [B, 1, .., 1, C] or one number"
        )
    tiles: list[_Tile | None] = [None, None]
    if not any(repeats):
        span, width = y.size, _WIDTH
    else:
        channels = y.shape[-1]
        per_image = y.ndim > 1 and small.ndim == y.ndim and small.shape[0] > 1
        images = small.shape[0] if per_image else 1
        times = max(_REPEATED // max(channels, 1), 1)
        span, width = y.size // max(images, 1), channels * times
        if times > 1 or small.size < images * channels:
            room = np.empty((images, times, channels), np.uint8)
            rows = small.reshape(images, 1, -1)
            tiles[0 if repeats[0] else 1] = rows, room.reshape(-1), room
    runs = -(-span // max(width, 1))
    total = runs * (y.size // max(span, 1))
    numbers = {
        _Cut.SPAN: span, _Cut.WIDTH: width, _Cut.RUNS: runs, _Cut.TOTAL: total,
        _Cut.A_REPEATS: repeats[0], _Cut.B_REPEATS: repeats[1],
    }  # fmt: skip
    return np.array([numbers[field] for field in _Cut], np.int64), tiles


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    full = (1,) * (len(whole) - len(shape)) + shape
    if len(full) != len(whole) or any(size != 1 for size in full[1:-1]):
        return False
    first = len(whole) == 1 or full[0] in (1, whole[0])
    # a number for each image would repeat in a way that no row does
    return first and (full[-1] == whole[-1] or (full[-1] == 1 and (len(full) == 1 or full[0] == 1)))


@cache
def _computer(tier: int, kind: int) -> Any:
    """Return the function that computes runs `begin` to `end`, for an instruction set."""
    if INSTRUCTION_SETS[tier].width == 0:
        return _portable(kind)

    @jit
    def compute(
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        cut: NDArray[np.int64],
        begin: int,
        end: int,
        floats: NDArray[np.float32],
        ends: NDArray[np.int64],
        y: NDArray[np.uint8],
    ) -> None:
        span, width, runs = cut[_Cut.SPAN], cut[_Cut.WIDTH], cut[_Cut.RUNS]
        a_repeats, b_repeats = cut[_Cut.A_REPEATS], cut[_Cut.B_REPEATS]
        for run in range(begin, end):
            image, part = divmod(run, runs)
            place, count = image * span + part * width, min(width, span - part * width)
            a_place, b_place = (
                (image * width if a_repeats else place),
                (image * width if b_repeats else place),
            )
            _emit_pairs(
                tier, kind, a, a_place, b, b_place, y, place, count, floats,
                ends[_Range.LOWEST], ends[_Range.HIGHEST],
            )  # fmt: skip

    return compute


@emitted
def _emit_pairs(
    e: Emitter, kind: Any, a: Any, a_place: Any, b: Any, b_place: Any, y: Any, place: Any, count: Any,
    floats: Any, lowest: Any, highest: Any,
) -> None:  # fmt: skip
    lanes = e.lanes(i32)
    a, b, y = a + a_place, b + b_place, y + place
    factors = {field: e.load_spread(floats + 4 * field, f32) for field in _Factor}
    ends = [e.number(end, i32) for end in (lowest, highest)]
    low, high = (e.filled(end, i32) for end in ends)
    low_bytes, high_bytes = (e.filled(end.signed(i8), i8) for end in ends)

    def real(pointer: Any, some: Any) -> Value:
        return load(e, pointer, some, i8, lanes).unsigned(i32).signed(f32)

    def do(k: Any, vectors: int, some: Any) -> None:
        places = [k + v * lanes for v in range(vectors)]
        results = [_result(e, kind, real(a + at, some), real(b + at, some), factors) for at in places]
        if vectors == 4:
            packed = e.packed(results)  # which saturates
            packed = e.call(f"llvm.umax.v{4 * lanes}i8", packed.type, packed, low_bytes)
            e.store(y + k, e.call(f"llvm.umin.v{4 * lanes}i8", packed.type, packed, high_bytes))
        else:
            store(e, y + k, e.smaller(e.larger(results[0], low), high).signed(i8), some)

    each_vector(e, count, lanes, do)


def _result(e: Emitter, kind: int, a: Value, b: Value, factors: dict[_Factor, Value]) -> Value:
    """Emit the rounded result of two vectors of integers held as floats, not yet clipped."""
    one, two, three = factors[_Factor.A], factors[_Factor.B], factors[_Factor.Y]
    a_zero, b_zero, y_zero = factors[_Factor.A_ZERO], factors[_Factor.B_ZERO], factors[_Factor.Y_ZERO]
    if kind == _ADD:
        return e.whole(e.fused(one, a, e.fused(two, b, three)))
    if kind == _MULTIPLY:
        # differences of bytes multiply exactly
        return e.whole((a - a_zero) * (b - b_zero) * one + y_zero)
    a, b = (a - a_zero) * one, (b - b_zero) * two
    real = a + b if kind == _PLAIN_ADD else a * b
    return e.whole(real / three) + e.whole(y_zero)


@cache
def _portable(kind: int) -> Any:
    """Return the same for other machines."""

    @jit
    def compute(
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        cut: NDArray[np.int64],
        begin: int,
        end: int,
        floats: NDArray[np.float32],
        ends: NDArray[np.int64],
        y: NDArray[np.uint8],
    ) -> None:
        span, width, runs = cut[_Cut.SPAN], cut[_Cut.WIDTH], cut[_Cut.RUNS]
        a_repeats, b_repeats = cut[_Cut.A_REPEATS], cut[_Cut.B_REPEATS]
        low, high = np.float32(ends[_Range.LOWEST]), np.float32(ends[_Range.HIGHEST])
        a_factor, b_factor, y_factor = floats[_Factor.A], floats[_Factor.B], floats[_Factor.Y]
        a_zero, b_zero, y_zero = floats[_Factor.A_ZERO], floats[_Factor.B_ZERO], floats[_Factor.Y_ZERO]
        for run in range(begin, end):
            image, part = divmod(run, runs)
            place, count = image * span + part * width, min(width, span - part * width)
            a_place, b_place = (
                (image * width if a_repeats else place),
                (image * width if b_repeats else place),
            )
            for k in range(count):
                one, two = np.float32(a[a_place + k]), np.float32(b[b_place + k])
                if kind == _ADD:
                    # products of float32 are exact in float64: each line rounds once, as a fused one does
                    value = np.float32(np.float64(b_factor) * two + np.float64(y_factor))
                    value = np.rint(np.float32(np.float64(a_factor) * one + np.float64(value)))
                elif kind == _MULTIPLY:
                    value = np.rint((one - a_zero) * (two - b_zero) * a_factor + y_zero)
                else:
                    one, two = (one - a_zero) * a_factor, (two - b_zero) * b_factor
                    real = one + two if kind == _PLAIN_ADD else one * two
                    value = np.rint(real / y_factor) + y_zero
                value = value if value > low else low
                y[place + k] = np.uint8(value if value < high else high)

    return compute
