"""Gather the taps of output pixels into the rows of a panel: implicit GEMM for any window.

A row of the panel holds, in the order (kernel row, kernel column, input channel), the activations under the
window of one output pixel; on the padding they are the zero point, which adds nothing. Taps that lie next
to each other in NHWC are copied as one *run* of bytes: a whole kernel row where it is not dilated and there
is one conv group, else the channels of one tap::

    kernel row 0           kernel row 1           kernel row 2
    left mid right         left mid right         left mid right        a window inside the image: 3 runs
    fill fill fill         fill mid right         fill mid right        at its upper left corner: 2 runs

Runs are copied in order by whole vectors. What the last vector of a run brings too much, the next run or
the next row overwrites; where such a vector would leave the image or the panel, single bytes are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.simd.emit import Emitter, Pointer, Value, emitted, i8
from fgq.kernels.simd.isa import INSTRUCTION_SETS
from fgq.kernels.window import Window

_SHORT = 32
"""Bytes of a run up to which half of a 64-byte register does: it crosses fewer cache lines."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Geometry:
    """Where a window lies over an image, output pixel by output pixel.

    Parameters
    ----------
    images, height, width, channels : int
        Shape of the input, NHWC.
    kernel : tuple of int
        Taps (kh, kw).
    size : tuple of int
        Output height and width.
    window : Window
        Strides, padding, dilations, conv groups.
    x_zero : int
        What padding holds.
    """

    images: int
    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    window: Window
    x_zero: int

    @classmethod
    def of(cls, shape: tuple[int, ...], kernel: tuple[int, int], window: Window, x_zero: int) -> Geometry:
        """Return the geometry of a convolution of an input of that shape.

        Raises
        ------
        KernelError
            If the kernel does not fit into the padded image.
        """
        images, height, width, channels = shape
        return cls(
            images=images, height=height, width=width, channels=channels, kernel=kernel,
            size=window.output_size(height, width, kernel), window=window, x_zero=x_zero,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Number of output pixels in all images."""
        return self.images * self.size[0] * self.size[1]

    @property
    def groups(self) -> int:
        """Number of conv groups."""
        return self.window.groups

    @property
    def gapless(self) -> bool:
        """Whether the pixels of the input, as they lie, are the rows of the panel."""
        return self.kernel == (1, 1) and self.window == Window()

    @property
    def numbers(self) -> NDArray[np.int64]:
        """For compiled code: rows, H, W, C, kh, kw, OH, OW, strides, pads, dilations, C / groups, zero."""
        window = self.window
        return np.array(
            [self.rows, self.height, self.width, self.channels, *self.kernel, *self.size, *window.strides,
             *window.pads[:2], *window.dilations, self.channels // window.groups, self.x_zero],
            np.int64,
        )  # fmt: skip


@cache
def gatherer(tier: int) -> Any:
    """Return the function that gathers, compiled for an instruction set.

    ``gather(x, numbers, group, first, count, panel)`` writes the taps of output pixels `first`,
    `first` + 1, .. in conv group `group` into the rows of `panel`, uint8 [>= count, >= K]. Bytes of the
    panel behind K, and rows behind `count`, may be overwritten.
    """
    width = INSTRUCTION_SETS[tier].width
    if width == 0:
        return _gather

    @jit
    def gather(
        x: NDArray[np.uint8],
        numbers: NDArray[np.int64],
        group: int,
        first: int,
        count: int,
        panel: NDArray[np.uint8],
    ) -> None:
        height, columns, channels, kh, kw = numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
        oh, ow, inputs, fill = numbers[6], numbers[7], numbers[14], numbers[15]
        below, aside, step = numbers[12] * columns * channels, numbers[13] * channels, numbers[9] * channels
        joined = kw if aside == inputs else 1
        runs, size, pitch = kw // joined, joined * inputs, panel.shape[1]
        extra = -size % width  # bytes that the vectors of a run bring too much
        last_source = x.size - (kh - 1) * below - (runs - 1) * aside - size - extra
        end_row = min((panel.size - kh * kw * inputs - extra) // pitch + 1, count)
        # output columns whose taps lie inside the image
        last_down, last_right = (kh - 1) * numbers[12], (kw - 1) * numbers[13]
        begin_right = -(-numbers[11] // numbers[9])
        end_right = min((columns - 1 - last_right + numbers[11]) // numbers[9] + 1, ow)
        image, place = divmod(first, oh * ow)
        down, right = divmod(place, ow)
        row = 0
        while row < count:
            top, left = down * numbers[8] - numbers[10], right * numbers[9] - numbers[11]
            source = ((image * height + top) * columns + left) * channels + group * inputs
            pixels, target = 0, row * pitch
            if top >= 0 and top + last_down < height and right >= begin_right:
                pixels = min(end_right - right, end_row - row)
                if source + (pixels - 1) * step > last_source:
                    pixels = (last_source - source) // step + 1
            if pixels > 0:
                _emit_pixels(
                    tier, x, source, step, below, aside, panel, target, pitch, pixels, kh, runs, size
                )
            else:
                pixels = 1
                for i in range(kh):
                    y = top + i * numbers[12]
                    for j in range(runs):
                        # of the run's taps, those from `begin` to `end` lie in the image
                        z, begin, end = left + j * numbers[13], joined, joined
                        if 0 <= y < height:
                            begin = min(max(-z, 0), joined)
                            end = max(min(columns - z, joined), begin)
                        start = source + i * below + j * aside
                        emit_run(
                            tier, x, x.size, start, panel, panel.size, target,
                            begin * inputs, end * inputs, size, fill,
                        )  # fmt: skip
                        target += size
            row += pixels
            right += pixels
            if right == ow:
                right, down = 0, down + 1
                if down == oh:
                    down, image = 0, image + 1

    return gather


@emitted
def _emit_pixels(
    e: Emitter, x: Any, source: Any, step: Any, below: Any, aside: Any,
    panel: Any, target: Any, pitch: Any, pixels: Any, kh: Any, runs: Any, size: Any,
) -> None:  # fmt: skip
    """Copy the taps of neighbouring pixels inside the image, each run in whole vectors."""
    whole = e.lanes(i8)

    def copying(vectors: int, lanes: int = whole) -> Callable[[Pointer, Pointer], None]:
        def copy(start: Pointer, end: Pointer) -> None:
            for vector in range(vectors):
                e.store(end + vector * lanes, e.load(start + vector * lanes, i8, lanes))

        return copy

    def copy_long(start: Pointer, end: Pointer) -> None:
        most = size - size % (4 * whole)
        for begin in e.range(0, most, 4 * whole):
            copying(4)(start + begin, end + begin)
        for begin in e.range(most, size, whole):
            copying(1)(start + begin, end + begin)

    def each(copy_run: Callable[[Pointer, Pointer], None]) -> None:
        for pixel in e.range(0, pixels):
            start, end = e.variable(x + (source + pixel * step)), e.variable(panel + (target + pixel * pitch))
            with e.when(runs.equals(1)):
                for _ in e.range(0, kh):
                    copy_run(start.value, end.value)
                    start += below
                    end += size
            with e.when(runs > 1):
                for i in e.range(0, kh):
                    for j in e.range(0, runs):
                        copy_run(start.value + (i * below + j * aside), end.value)
                        end += size

    # loops for each length keep the branches out of them
    with e.when(size <= _SHORT):
        each(copying(1, _SHORT))
    shorter = _SHORT
    for vectors in range(1, 5):
        with e.when((size > shorter) & (size <= vectors * whole)):
            each(copying(vectors))
        shorter = vectors * whole
    with e.when(size > shorter):
        each(copy_long)


@emitted
def emit_run(
    e: Emitter, x: Any, x_size: Any, source: Any, panel: Any, panel_size: Any, target: Any,
    begin: Any, end: Any, size: Any, number: Any,
) -> None:  # fmt: skip
    """Copy the bytes from `begin` to `end` of a run to the same place in a panel, and fill the others.

    `source` and `target` are where the run starts, `size` its bytes. Up to a vector more may be written
    behind it, within the panel.
    """
    start, place, byte = x + source, panel + target, e.number(number, i8)
    vector, room = e.filled(byte, i8), panel_size - target

    def fill(first: Any, last: Any) -> None:
        _pieces(
            e, first, last, room, lambda k: e.store(place + k, vector), lambda k: e.store(place + k, byte)
        )

    fill(e.number(0), begin)
    _pieces(
        e, begin, end, e.smaller(room, x_size - source),
        lambda k: e.store(place + k, e.load(start + k, i8)),
        lambda k: e.store(place + k, e.load_number(start + k, i8)),
    )  # fmt: skip
    fill(end, size)


def _pieces(e: Emitter, first: Value, last: Value, room: Value, vector: Any, byte: Any) -> None:
    """Emit `vector` for the vectors from `first` to `last` that end before `room`, `byte` for the rest."""
    whole = e.lanes(i8)
    done = e.variable(first)
    with e.when(first < last):
        for k in e.range(first, e.smaller(last, room - (whole - 1)), whole):
            vector(k)
            done.value = k + whole
        for k in e.range(done, last):
            byte(k)


@jit
def _gather(
    x: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    group: int,
    first: int,
    count: int,
    panel: NDArray[np.uint8],
) -> None:
    height, width, channels, kh, kw = numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    oh, ow, inputs, fill = numbers[6], numbers[7], numbers[14], np.uint8(numbers[15])
    for row in range(count):
        image, place = divmod(first + row, oh * ow)
        down, right = divmod(place, ow)
        filled = 0
        for i in range(kh):
            y = down * numbers[8] - numbers[10] + i * numbers[12]
            for j in range(kw):
                z = right * numbers[9] - numbers[11] + j * numbers[13]
                taps = panel[row, filled : filled + inputs]
                if 0 <= y < height and 0 <= z < width:
                    begin = ((image * height + y) * width + z) * channels + group * inputs
                    for c in range(inputs):
                        taps[c] = x[begin + c]
                else:
                    for c in range(inputs):
                        taps[c] = fill
                filled += inputs
