"""What weights mean to every kernel, and what is refused before a kernel sees it.

    w8[m, .., k] = sum over planes p of  alpha_p[m, .., g(k)] * code_p[m, .., k]        an int8, |w8| <= 127
    acc[m]       = sum over k of w8[m, k] * (x[k] - x_zero)  +  bias[m]                 an int32

The sum fits: for each row the largest and the smallest value that any activations 0..255 can give are
computed here, exactly, and a row that could leave int32 is refused. Without bias no row of up to 66,000
weights can, since 66,000 * 255 * 127 < 2**31.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.window import Window

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """One of the terms that a weight is the sum of.

    Parameters
    ----------
    codes : ndarray of int8, shape (M, K) or (M, kh, kw, C / groups)
        Small integers: -1..1 ternary, -4..4 two tied ternary planes, -7..7 INT4, -127..127 with alpha 1.
    alpha : ndarray of uint8, shape (M, G) or (M, kh, kw, G)
        Scale of each group.
    """

    codes: NDArray[np.int8]
    alpha: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """The weights of a layer.

    Parameters
    ----------
    planes : tuple of Plane
        One or more, of the same shapes.
    group : ndarray of int32, shape (K,) or (C / groups,)
        The group of each position on the last axis: 0, .., 0, 1, .., G - 1; lengths may differ.
    """

    planes: tuple[Plane, ...]
    group: NDArray[np.int32]

    @classmethod
    def single(cls, codes: NDArray[np.int8], alpha: NDArray[np.uint8], group: NDArray[np.int32]) -> Weight:
        """Return a weight of one plane."""
        return cls((Plane(codes, alpha),), group)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.planes[0].codes.shape

    @property
    def largest_code(self) -> int:
        """Largest magnitude of a code in any plane: 1 is ternary, 4 two tied planes, 7 INT4."""
        return max(int(np.abs(plane.codes.astype(np.int16)).max(initial=0)) for plane in self.planes)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each group begins on the last axis."""
        return np.flatnonzero(np.diff(self.group, prepend=-1))

    def int8(self) -> NDArray[np.int8]:
        """Return ``w8``, of the shape of the codes.

        Raises
        ------
        KernelError
            If a sum is not an int8 of magnitude 127 at most.
        """
        wide = _wide(self.planes[0], self.group)
        for plane in self.planes[1:]:
            wide = wide.astype(np.int32) + _wide(plane, self.group)
        lowest, highest = int(wide.min(initial=0)), int(wide.max(initial=0))
        if lowest < -127 or highest > 127:
            raise KernelError(f"alpha * code: found {lowest}..{highest}, wanted -127..127")
        return wide.astype(np.int8)

    def ternary(self) -> Weight:
        """Return the same weight in planes of codes -1..1: a code of two tied planes is ``3 * t1 + t2``.

        Raises
        ------
        KernelError
            If a code is beyond -4..4.
        """
        if (largest := self.largest_code) > 4:
            raise KernelError(f"codes: found magnitudes up to {largest}, wanted the ternary -1..1 or -4..4")
        planes: list[Plane] = []
        for plane in self.planes:
            if np.abs(plane.codes).max(initial=0) <= 1:
                planes.append(plane)
                continue
            upper = (plane.codes > 1).astype(np.int8) - (plane.codes < -1).astype(np.int8)
            planes.append(Plane(upper, plane.alpha * np.uint8(3)))
            planes.append(Plane(plane.codes - np.int8(3) * upper, plane.alpha))
        return Weight(tuple(planes), self.group)

    def matrices(self, groups: int) -> list[Weight]:
        """Return each conv group's weights as a matrix [M / groups, K], with K = kh * kw * C / groups.

        K runs over kernel rows, kernel columns and input channels; each tap has scale groups of its own.
        """
        taps = int(np.prod(self.shape[1:-1], dtype=np.int64))
        steps = np.arange(taps, dtype=np.int32)[:, None]
        group = (steps * np.int32(self.planes[0].alpha.shape[-1]) + self.group).reshape(-1)
        outputs = self.shape[0]
        flat = [
            (
                np.ascontiguousarray(plane.codes).reshape(outputs, -1),
                np.ascontiguousarray(plane.alpha).reshape(outputs, -1),
            )
            for plane in self.planes
        ]
        made = outputs // groups
        return [
            Weight(tuple(Plane(c[g : g + made], a[g : g + made]) for c, a in flat), group)
            for g in range(0, outputs, made)
        ]


def _wide(plane: Plane, group: NDArray[np.int32]) -> NDArray[np.int16]:
    wide = np.take(plane.alpha, group, axis=-1).astype(np.int16)
    wide *= plane.codes  # 255 * 128 < 2**15
    return wide


def zero_point_bias(weight: Weight, bias: NDArray[np.int32], x_zero: int) -> NDArray[np.int32]:
    """Return ``bias[m] - x_zero * sum_k w8[m, k]`` modulo 2**32: kernels then sum over plain activations.

    Parameters
    ----------
    weight : Weight
        Of M output channels.
    bias : ndarray of int32, shape (M,)
        Added to the sums.
    x_zero : int
        Zero point of the activations.
    """
    sums = weight.int8().reshape(bias.size, -1).sum(axis=1, dtype=np.int64)
    folded: NDArray[np.int32] = (bias - x_zero * sums).astype(np.int32)
    return folded


def check_weights(weight: Weight, bias: NDArray[np.int32], x_zero: int, window: Window | None) -> None:
    """Refuse weights that break the layout or the range of a layer.

    Parameters
    ----------
    weight : Weight
        A matrix [M, K], or kernels [M, kh, kw, C / groups] where there is a window.
    bias : ndarray of int32, shape (M,)
        Added to the sums.
    x_zero : int
        Zero point of the activations, 0..255.
    window : Window or None
        The geometry of a convolution.

    Raises
    ------
    KernelError
        Naming the first argument that does not fit, what was found and what was wanted.
    """
    if not weight.planes:
        raise KernelError("planes: found none, wanted one or more")
    rank = 2 if window is None else 4
    for plane in weight.planes:
        _check_array("codes", plane.codes, np.int8, (None,) * rank)
    shape, groups = weight.shape, 1 if window is None else window.groups
    if shape[0] % groups:
        raise KernelError(f"codes: found {shape[0]} output channels, wanted a multiple of {groups} groups")
    _check_array("group", weight.group, np.int32, shape[-1:])
    if weight.group[0] != 0 or not np.isin(np.diff(weight.group), (0, 1)).all():
        raise KernelError("group: found a gap or a decrease, wanted 0, .., 1, .., in order")
    for plane in weight.planes:
        _check_array("codes", plane.codes, np.int8, shape)
        _check_array("alpha", plane.alpha, np.uint8, (*shape[:-1], int(weight.group[-1]) + 1))
    _check_array("bias", bias, np.int32, shape[:1])
    if not 0 <= x_zero <= 255:
        raise KernelError(f"x_zero: found {x_zero}, wanted 0..255")

    rows = weight.int8().reshape(shape[0], -1)
    plus = np.maximum(rows, 0).sum(axis=1, dtype=np.int64)
    minus = np.minimum(rows, 0).sum(axis=1, dtype=np.int64)
    lowest = int((minus * (255 - x_zero) - plus * x_zero + bias).min())
    highest = int((plus * (255 - x_zero) - minus * x_zero + bias).max())
    if lowest < _INT32.min or highest > _INT32.max:
        raise KernelError(
            f"sums: found rows that can reach {lowest}..{highest}, wanted an int32; "
            "split the reduction or use a larger row scale"
        )


def check_activations(x: NDArray[np.uint8], rank: int, channels: int) -> None:
    """Refuse activations of another dtype, rank or number of channels.

    Parameters
    ----------
    x : ndarray of uint8, shape (.., channels)
        Quantized activations, channels last.
    rank : int
        2 for a matrix product, 4 for a convolution.
    channels : int
        Length of the last axis.

    Raises
    ------
    KernelError
        Saying what was found and what was wanted.
    """
    if x.dtype != np.uint8 or x.ndim != rank or x.shape[-1] != channels:
        axes = ", ".join(["*"] * (rank - 1) + [str(channels)])
        raise KernelError(f"x: found {x.dtype}{list(x.shape)}, wanted uint8[{axes}]")


def _check_array(
    name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: Sequence[int | None]
) -> None:
    fits = array.ndim == len(shape) and all(
        found > 0 and wanted in (None, found) for found, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        axes = ", ".join("*" if wanted is None else str(wanted) for wanted in shape)
        raise KernelError(
            f"{name}: found {array.dtype}{list(array.shape)}, wanted {np.dtype(dtype)}[{axes}], none empty"
        )
