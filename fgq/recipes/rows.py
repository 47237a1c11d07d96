"""Quantized rows of a reduction: codes and whole alphas in groups along K, and a row scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgq.quantization.scheme import Fit, Granularity, WeightScheme
from fgq.quantization.weights import fill_unused, fit_matrix, int8_rows
from fgq.recipes.moments import Float, Single


class Grouping(NamedTuple):
    """How K is cut into groups: they restart at each of E places (kernel positions), L long each.

    Parameters
    ----------
    E, L : int
        ``K = E * L``.
    N : int
        The length of a group; the last one of a place may be shorter.
    across : bool
        Whether a group takes one position of each place instead, so that N does not count.
    shared : bool
        Whether all rows have one row scale.
    """

    E: int
    L: int
    N: int
    across: bool = False
    shared: bool = False

    @classmethod
    def of(cls, scheme: WeightScheme, E: int, L: int) -> Grouping:
        """Return the groups of a scheme in rows of E places of L positions."""
        match scheme.granularity:
            case Granularity.GROUP:
                return cls(E, L, scheme.group_length(L))
            case Granularity.KERNEL:
                return cls(E, L, 1, across=True)
            case other:
                return cls(1, E * L, E * L, shared=other is Granularity.LAYER)

    @property
    def slices(self) -> list[slice]:
        """Where each group lies along K."""
        if self.across:
            return [slice(position, None, self.L) for position in range(self.L)]
        return [
            slice(e * self.L + start, e * self.L + min(start + self.N, self.L))
            for e in range(self.E)
            for start in range(0, self.L, self.N)
        ]

    @property
    def lengths(self) -> NDArray[np.intp]:
        """How long each group is."""
        K = self.E * self.L
        return np.array([len(range(*group.indices(K))) for group in self.slices])


class Rows(NamedTuple):
    """Quantized rows ``row_scale * alpha * codes``.

    Parameters
    ----------
    codes : ndarray of int8, shape (M, K)
    alpha : ndarray of uint8, shape (M, G)
    row_scale : ndarray of float64, shape (M,)
        Positive float32 values.
    """

    codes: NDArray[np.int8]
    alpha: NDArray[np.uint8]
    row_scale: Float

    def integers(self, grouping: Grouping) -> Single:
        """Return ``alpha * codes``, float32 of shape (M, K)."""
        if grouping.across:
            alpha = np.tile(self.alpha, grouping.E)
        else:
            alpha = np.repeat(self.alpha, grouping.lengths, axis=1)
        integers: Single = alpha.astype(np.float32)
        integers *= self.codes
        return integers

    def weights(self, grouping: Grouping) -> Float:
        """Return the weights that the rows stand for, float64 of shape (M, K)."""
        return self.integers(grouping) * self.row_scale[:, None]

    def where(self, better: NDArray[np.bool_], other: Rows) -> Rows:
        """Return the rows of another where they are better."""
        column = better[:, None]
        return Rows(
            np.where(column, other.codes, self.codes),
            np.where(column, other.alpha, self.alpha),
            np.where(better, other.row_scale, self.row_scale),
        )


def nearest(weights: Float, scheme: WeightScheme, grouping: Grouping, least: Float | None) -> Rows:
    """Return the rows of least squared distance from float ones (`fgq.quantization.weights.quantize_weight`).

    Parameters
    ----------
    weights : ndarray of float64, shape (M, K)
    scheme : WeightScheme
    grouping : Grouping
    least : ndarray of float64, shape (M,), or None
        Lower bounds on the row scales.
    """
    if scheme.codes.spec.fit is not Fit.LARGEST:
        return least_squares(weights, scheme, grouping, least)
    matrix, bound = _apart(weights, grouping, least)
    codes, row_scale = int8_rows(matrix, scheme, bound)
    return _together(weights, codes, np.ones((len(matrix), 1), np.uint8), row_scale, bound)


def least_squares(weights: Float, scheme: WeightScheme, grouping: Grouping, least: Float | None) -> Rows:
    """Return rows at scales of least squared error, which may clip: INT8 too (`weights.fit_matrix`).

    Parameters
    ----------
    weights : ndarray of float64, shape (M, K)
    scheme : WeightScheme
    grouping : Grouping
    least : ndarray of float64, shape (M,), or None
        Lower bounds on the row scales.
    """
    matrix, bound = _apart(weights, grouping, least)
    codes, alpha, row_scale = fit_matrix(matrix, scheme, bound)
    return _together(weights, codes, alpha, row_scale, bound)


def _apart(weights: Float, grouping: Grouping, least: Float | None) -> tuple[Float, Float | None]:
    """Return what has a row scale of its own as rows (M, E, L), or all as one row, and the bounds."""
    if grouping.shared:
        return weights.reshape(1, 1, -1), None if least is None else least.max(keepdims=True)
    return weights.reshape(len(weights), grouping.E, grouping.L), least


def _together(
    weights: Float,
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    row_scale: NDArray[np.float32],
    least: Float | None,
) -> Rows:
    M = len(weights)
    return Rows(
        np.ascontiguousarray(codes.reshape(M, -1)),
        np.broadcast_to(alpha, (M, alpha.shape[1])),
        np.broadcast_to(fill_unused(row_scale, least).astype(np.float64), M),
    )
