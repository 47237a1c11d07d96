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

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8
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
        below, aside = numbers[12] * columns * channels, numbers[13] * channels
        joined = kw if aside == inputs else 1
        runs, size = kw // joined, joined * inputs
        last_down, last_right = (kh - 1) * numbers[12], (kw - 1) * numbers[13]
        # from the first tap to the end of the last one, with what a vector may read too much
        reach = (kh - 1) * below + (kw - 1) * aside + inputs + width
        image, place = divmod(first, oh * ow)
        down, right = divmod(place, ow)
        for row in range(count):
            top, left = down * numbers[8] - numbers[10], right * numbers[9] - numbers[11]
            source = ((image * height + top) * columns + left) * channels + group * inputs
            target = row * panel.shape[1]
            inside = top >= 0 and left >= 0 and top + last_down < height and left + last_right < columns
            room = source + reach <= x.size and target + kh * runs * size + width <= panel.size
            if inside and room:
                for i in range(kh):
                    for j in range(runs):
                        _emit_copy(tier, x, source + i * below + j * aside, panel, target, size)
                        target += size
            else:
                for i in range(kh):
                    y = top + i * numbers[12]
                    for j in range(runs):
                        # of the run's taps, those from `begin` to `end` lie in the image
                        z, begin, end = left + j * numbers[13], joined, joined
                        if 0 <= y < height:
                            begin = min(max(-z, 0), joined)
                            end = max(min(columns - z, joined), begin)
                        start = source + i * below + j * aside + begin * inputs
                        _emit_fill(tier, panel, panel.size, target, begin * inputs, fill)
                        target += begin * inputs
                        _emit_careful_copy(
                            tier, x, x.size, start, panel, panel.size, target, (end - begin) * inputs
                        )
                        target += (end - begin) * inputs
                        _emit_fill(tier, panel, panel.size, target, (joined - end) * inputs, fill)
                        target += (joined - end) * inputs
            right += 1
            if right == ow:
                right, down = 0, down + 1
                if down == oh:
                    down, image = 0, image + 1

    return gather


@emitted
def _emit_copy(e: Emitter, x: Any, source: Any, panel: Any, target: Any, size: Any) -> None:
    """Copy at least `size` bytes, and up to a vector more."""
    whole = e.lanes(i8)
    start, end = x + source, panel + target
    if whole > _SHORT:
        with e.when(size <= _SHORT):
            e.store(end, e.load(start, i8, _SHORT))
        with e.when(size > _SHORT):
            for k in e.range(0, size, whole):
                e.store(end + k, e.load(start + k, i8))
    else:
        for k in e.range(0, size, whole):
            e.store(end + k, e.load(start + k, i8))


@emitted
def _emit_careful_copy(
    e: Emitter, x: Any, x_size: Any, source: Any, panel: Any, panel_size: Any, target: Any, size: Any
) -> None:
    """Copy at least `size` bytes, and more only within both arrays."""
    start, end = x + source, panel + target
    room = e.smaller(x_size - source, panel_size - target)
    _pieces(
        e,
        size,
        room,
        lambda k: e.store(end + k, e.load(start + k, i8)),
        lambda k: e.store(end + k, e.load_number(start + k, i8)),
    )


@emitted
def _emit_fill(e: Emitter, panel: Any, panel_size: Any, target: Any, size: Any, number: Any) -> None:
    """Write a number into at least `size` bytes, and more only within the panel."""
    end, byte = panel + target, e.number(number, i8)
    vector = e.filled(byte, i8)
    _pieces(
        e, size, panel_size - target, lambda k: e.store(end + k, vector), lambda k: e.store(end + k, byte)
    )


def _pieces(e: Emitter, size: Value, room: Value, vector: Any, byte: Any) -> None:
    """Emit `vector` for each vector of `size` bytes that has room, and `byte` for each byte left."""
    whole = e.lanes(i8)
    with e.when(size > 0):
        done = e.smaller((size + (whole - 1)) & -whole, room & -whole)
        for k in e.range(0, done, whole):
            vector(k)
        for k in e.range(done, size):
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
