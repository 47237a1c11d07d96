"""Windows that slide over images of any number of dimensions: what convolution and pooling share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgq.errors import ModelError
from fgq.graph.windows import padding, spans
from fgq.runtime.operators.operator import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliding:
    """Where windows lie, one number for each dimension of the image.

    Parameters
    ----------
    image : tuple of int
        The image's size.
    kernel, strides, dilations : tuple of int
        Taps of a window, steps between windows, and distances between taps.
    before, after : tuple of int
        Padding; the model's, without what `ceil_mode` adds.
    sizes : tuple of int
        How many windows there are.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls,
        image: Sequence[int],
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        auto_pad: str = "NOTSET",
        ceil_mode: bool = False,
    ) -> Sliding:
        """Read the attributes of ONNX's Conv and pooling operators.

        Raises
        ------
        ModelError
            If an attribute is unknown or has another number of dimensions than the image.
        """
        rank = len(image)
        steps, distances = strides or (1,) * rank, dilations or (1,) * rank
        ends = pads or (0,) * (2 * rank)
        if not len(kernel) == len(steps) == len(distances) == rank == len(ends) / 2:
            raise ModelError(
                f"found a kernel {list(kernel)} or attributes that do not fit an image {list(image)}"
            )
        reach = spans(kernel, distances)
        before, after = padding(auto_pad, ends, image, reach, steps)
        if auto_pad.startswith("SAME"):
            sizes = [-(-size // step) for size, step in zip(image, steps, strict=True)]
        else:
            sizes = [
                _count(size, first, last, span, step, ceil_mode)
                for size, first, last, span, step in zip(image, before, after, reach, steps, strict=True)
            ]
        every = (image, kernel, steps, distances, before, after, sizes)
        names = ("image", "kernel", "strides", "dilations", "before", "after", "sizes")
        return cls(**{name: tuple(map(int, values)) for name, values in zip(names, every, strict=True)})

    def padded(self, x: Array, value: Any) -> Array:
        """Return images, on the last axes, with padding enough for every window.

        Parameters
        ----------
        x : ndarray, shape (.., *image)
        value : scalar
            What the padding holds.
        """
        last = zip(self.sizes, self.strides, self.kernel, self.dilations, strict=True)
        ends = [(count - 1) * step + (taps - 1) * distance + 1 for count, step, taps, distance in last]
        width = [
            (first, max(end - size - first, 0))
            for first, end, size in zip(self.before, ends, self.image, strict=True)
        ]
        return np.pad(x, [(0, 0)] * (x.ndim - len(width)) + width, constant_values=value)

    def taps(self, padded: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Yield each tap of the kernel with what all windows see there, of shape (.., *sizes).

        Parameters
        ----------
        padded : ndarray
            From :meth:`padded`.
        """
        for tap in np.ndindex(*self.kernel):
            parts = tuple(
                slice(index * distance, index * distance + (count - 1) * step + 1, step)
                for index, distance, count, step in zip(
                    tap, self.dilations, self.sizes, self.strides, strict=True
                )
            )
            yield tap, padded[(slice(None),) * (padded.ndim - len(parts)) + parts]


def _count(size: int, before: int, after: int, span: int, step: int, ceil_mode: bool) -> int:
    """Return how many windows there are; with `ceil_mode`, the last may overhang but begins inside."""
    free = size + before + after - span
    if free < 0:
        raise ModelError(f"found an image of {size} with padding {before + after}, wanted at least {span}")
    if not ceil_mode:
        return free // step + 1
    count = -(-free // step) + 1
    return count - 1 if (count - 1) * step >= size + before else count
