"""The quantized weight tensor and its equation.

Symbols, the same in every module: M output channels (rows), K weights of one row, N group size,
G groups along the group axis, P planes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.errors import WeightError
from fgq.quantization.scheme import INT8_LIMIT, WeightScheme

MAX_REDUCTION = 66_000
"""Longest sum that stays inside an int32: 66,000 * 255 * 127 < 2**31 (docs/architecture.md)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plane:
    """One term ``alpha * code`` of a quantized tensor.

    Parameters
    ----------
    codes : ndarray of int8
        One small integer per weight, in the weight's own shape and layout.
    alpha : ndarray of uint8
        Group scales, with as many axes as `codes`: G long on the group axis, and on every other axis
        either as long as `codes` or 1 (shared).
    """

    codes: NDArray[np.int8]
    alpha: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedTensor:
    """A weight as a sum of planes of small integers with integer group scales and float row scales.

    With ``g`` the group of a weight's position on the group axis and ``m`` its output channel::

        w8[.., k, ..] = sum over planes p of  alpha_p[.., g(k), ..] * code_p[.., k, ..]     |w8| <= 127
        w[..]         = row_scale[m] * w8[..]

    Parameters
    ----------
    planes : tuple of Plane
        At least one; all codes have the same shape, that of the weight in its model.
    group : ndarray of int32, shape (codes.shape[group_axis],)
        The group of each position on the group axis, 0..G-1, never decreasing by position; a ragged
        last group is simply shorter.
    group_axis : int
        The reduction axis along which groups run: input channels of a convolution, K of a matrix.
    channel_axis : int
        The axis of output channels.
    row_scale : ndarray of float32, shape (M,) or ()
        Positive and finite. A scalar where the operator allows no scale per channel.
    scheme : WeightScheme
        What the codes are and how far alpha may reach.
    """

    planes: tuple[Plane, ...]
    group: NDArray[np.int32]
    group_axis: int
    channel_axis: int
    row_scale: NDArray[np.float32]
    scheme: WeightScheme

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.planes[0].codes.shape

    @property
    def rows(self) -> int:
        """M, the number of output channels."""
        return self.shape[self.channel_axis]

    @property
    def groups(self) -> int:
        """G, the number of groups along the group axis."""
        return int(self.group.max()) + 1

    @property
    def zero_share(self) -> float:
        """The share of weights that are exactly zero."""
        return float(np.mean(self.int8() == 0))

    def int8(self) -> NDArray[np.int8]:
        """Return ``w8``, the exact 8-bit weights, in the weight's own shape."""
        total = np.zeros(self.shape, np.int32)
        for plane in self.planes:
            total += plane.codes * np.take(plane.alpha, self.group, self.group_axis).astype(np.int32)
        return total.astype(np.int8)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the float32 weights that the tensor stands for, in the weight's own shape."""
        scale = self.row_scale
        if scale.ndim:
            along = [1] * len(self.shape)
            along[self.channel_axis] = -1
            scale = scale.reshape(along)
        return self.int8().astype(np.float32) * scale

    def validate(self) -> None:
        """Check every invariant of the class docstring.

        Raises
        ------
        WeightError
            Naming the first field that breaks its invariant, with what was found and wanted.
        """
        if not self.planes:
            raise WeightError("planes: found none, wanted at least one")
        rank = len(self.shape)
        if not (0 <= self.group_axis < rank and 0 <= self.channel_axis < rank):
            raise WeightError(
                f"axes: found group axis {self.group_axis} and channel axis {self.channel_axis}, "
                f"wanted two axes of a tensor of rank {rank}"
            )
        if self.group_axis == self.channel_axis:
            raise WeightError(f"axes: found {self.group_axis} for groups and channels, wanted two axes")
        self._validate_group()
        for index, plane in enumerate(self.planes):
            self._validate_plane(index, plane)
        self._validate_row_scale()
        self._validate_range()

    def _validate_group(self) -> None:
        length = self.shape[self.group_axis]
        if self.group.dtype != np.int32 or self.group.shape != (length,):
            raise WeightError(
                f"group: found {self.group.dtype}{list(self.group.shape)}, wanted int32[{length}]"
            )
        if not length:
            raise WeightError("group: found no positions on the group axis, wanted at least one")
        steps = np.diff(self.group, prepend=self.group[:1])
        if self.group[0] != 0 or not np.isin(steps, (0, 1)).all():
            raise WeightError("group: found gaps or a decrease, wanted 0, .., 1, .., in order")

    def _validate_plane(self, index: int, plane: Plane) -> None:
        name = f"plane {index}"
        if plane.codes.dtype != np.int8 or plane.codes.shape != self.shape:
            raise WeightError(
                f"{name} codes: found {plane.codes.dtype}{list(plane.codes.shape)}, "
                f"wanted int8{list(self.shape)}"
            )
        highest = int(np.abs(plane.codes.astype(np.int16)).max(initial=0))
        if highest > self.scheme.max_code:
            raise WeightError(
                f"{name} codes: found magnitude {highest}, wanted at most {self.scheme.max_code}"
            )
        full = list(self.shape)
        full[self.group_axis] = self.groups
        fits = len(plane.alpha.shape) == len(full) and all(
            found == wanted or (found == 1 and axis != self.group_axis)
            for axis, (found, wanted) in enumerate(zip(plane.alpha.shape, full, strict=True))
        )
        if plane.alpha.dtype != np.uint8 or not fits:
            raise WeightError(
                f"{name} alpha: found {plane.alpha.dtype}{list(plane.alpha.shape)}, "
                f"wanted uint8{full} or 1 where it is shared"
            )
        largest = int(plane.alpha.max(initial=0))
        if largest > self.scheme.alpha_limit:
            raise WeightError(f"{name} alpha: found {largest}, wanted at most {self.scheme.alpha_limit}")

    def _validate_row_scale(self) -> None:
        scale = self.row_scale
        if scale.dtype != np.float32 or scale.shape not in ((), (self.rows,)):
            raise WeightError(
                f"row scale: found {scale.dtype}{list(scale.shape)}, wanted float32[{self.rows}] or a scalar"
            )
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise WeightError("row scale: found a value that is not positive and finite")

    def _validate_range(self) -> None:
        bound = np.zeros((), np.int32)
        for plane in self.planes:
            alpha = np.take(plane.alpha, self.group, self.group_axis).astype(np.int32)
            bound = bound + plane.codes * alpha
        highest = int(np.abs(bound).max(initial=0))
        if highest > INT8_LIMIT:
            raise WeightError(f"w8: found magnitude {highest}, wanted at most {INT8_LIMIT}")
