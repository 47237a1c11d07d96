"""Quantized rows of a reduction: codes and whole alphas in groups along K, and a row scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgq.quantize import fit_groups, int8_rows
from fgq.refine.moments import Float, Single
from fgq.scheme import Codes, WeightScheme
from fgq.ternary import bounded_row_scale


class Grouping(NamedTuple):
    """How K is cut into groups: they restart at each of E places (kernel positions), L long each.

    Parameters
    ----------
    E, L : int
        ``K = E * L``.
    N : int
        The length of a group; the last one of a place may be shorter.
    """

    E: int
    L: int
    N: int

    @property
    def slices(self) -> list[slice]:
        """Where each group lies along K."""
        return [
            slice(e * self.L + start, e * self.L + min(start + self.N, self.L))
            for e in range(self.E)
            for start in range(0, self.L, self.N)
        ]

    @property
    def lengths(self) -> NDArray[np.intp]:
        """How long each group is."""
        return np.array([group.stop - group.start for group in self.slices])


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
        integers: Single = np.repeat(self.alpha, grouping.lengths, axis=1).astype(np.float32)
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
    """Return the rows of least squared distance from float ones (`fgq.quantize.quantize_weight`).

    Parameters
    ----------
    weights : ndarray of float64, shape (M, K)
    scheme : WeightScheme
    grouping : Grouping
    least : ndarray of float64, shape (M,), or None
        Lower bounds on the row scales.
    """
    M, (E, L, N) = len(weights), grouping
    if scheme.codes is Codes.INT8:
        codes, row_scale = int8_rows(weights[:, None], scheme, least)
        alpha = np.ones((M, len(grouping.lengths)), np.uint8)
    else:
        groups = np.zeros((M, E, -(-L // N) * N))
        groups[..., :L] = weights.reshape(M, E, L)
        codes, alpha, row_scale = fit_groups(groups.reshape(M, -1, N), scheme, least)
        codes = codes.reshape(M, E, -1)[..., :L]
    # A row of zeros may have any scale.
    positive = np.where(row_scale > 0, row_scale, 1.0).astype(np.float64)
    return Rows(np.ascontiguousarray(codes.reshape(M, -1)), alpha, bounded_row_scale(positive, least))
