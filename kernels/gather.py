"""Gather the taps of output pixels into the rows of a panel: implicit GEMM for any window.

A row of the panel holds, in the order (kernel row, kernel column, input channel), the activations under the
window of one output pixel; on the padding they are the zero point, which adds nothing. Taps that lie next
to each other in NHWC are copied as one run of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.window import Window


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
        """The same for compiled code: rows, H, W, C, kh, kw, OH, OW, strides, pads, dilations, C / groups, zero."""
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
    `first` + 1, .. in conv group `group` into the rows of `panel`, uint8 [>= count, >= K].
    """
    return _gather


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
