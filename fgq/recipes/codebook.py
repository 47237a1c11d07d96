r"""The values that a group of weights may take, and the best of them for a quadratic cost.

Weights are in units of their row scale here, so a group is ``alpha c`` with a whole alpha and codes c. All
searches minimise, for each row, the cost

.. math:: q A q^T - 2 b q^T, \quad q = \alpha c,

with one positive definite A for all rows. For given codes the best alpha is the whole number nearest to
``b c / (c A c)``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fgq.quantization.ternary import ternarize

Single = NDArray[np.float32]

_MOST_PATTERNS = 500
"""Up to so many patterns of codes, signs not counted, all of them are tried."""

_TRIED_SCALES = 13


@dataclass(frozen=True)
class Codebook:
    """The values of one scheme.

    Parameters
    ----------
    max_code : int
        Codes are the whole numbers from ``-max_code`` to ``max_code``.
    alpha_limit : int
        The largest alpha.
    """

    max_code: int
    alpha_limit: int

    @cached_property
    def _patterns(self) -> dict[int, Single]:
        return {}

    def patterns(self, N: int) -> Single | None:
        """Return all codes of N weights but zero, of each pair of opposites one; None where they are many.

        Parameters
        ----------
        N : int

        Returns
        -------
        ndarray of float32, shape (patterns, N), or None
        """
        if ((2 * self.max_code + 1) ** N - 1) // 2 > _MOST_PATTERNS:
            return None
        if N not in self._patterns:
            every = itertools.product(range(-self.max_code, self.max_code + 1), repeat=N)
            zero = (0,) * N
            self._patterns[N] = np.array([codes for codes in every if codes > zero], np.float32)
        return self._patterns[N]

    def best_alpha(self, numerator: Single, denominator: Single) -> Single:
        """Return the whole number in 0 .. alpha_limit nearest to a quotient, 0 where it is 0 / 0."""
        quotient = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
        alpha: Single = np.clip(np.rint(quotient), 0, self.alpha_limit)
        return alpha

    def exhaust(self, b: Single, A: Single, patterns: Single) -> tuple[Single, Single]:
        """Return the best codes (M, N) and alpha (M,) of all.

        Parameters
        ----------
        b : ndarray of float32, shape (M, N)
        A : ndarray of float32, shape (N, N)
        patterns : ndarray of float32, shape (patterns, N)
            As `patterns` returns them.
        """
        along = b @ patterns.T
        curvature = np.einsum("pn,nk,pk->p", patterns, A, patterns)
        alpha = np.minimum(np.rint(np.abs(along) / curvature), self.alpha_limit)
        cost = alpha * (alpha * curvature - 2 * np.abs(along))
        best = cost.argmin(1)
        rows = np.arange(len(b))
        signs = np.sign(along[rows, best])
        chosen = alpha[rows, best]
        return patterns[best] * (signs * (chosen > 0))[:, None], chosen

    def nearest(self, block: Single, factor: Single) -> tuple[Single, Single]:
        """Return codes (M, N) and alpha (M,) near to a block of weights, as ``A = (U^T U)^{-1}`` measures.

        Parameters
        ----------
        block : ndarray of float32, shape (M, N)
        factor : ndarray of float32, shape (N, N)
            U, upper triangular.
        """
        N = block.shape[1]
        inverse = np.linalg.inv(factor.astype(np.float64))
        A = (inverse @ inverse.T).astype(np.float32)
        patterns = self.patterns(N)
        b = block @ A
        if patterns is not None:
            return self.exhaust(b, A, patterns)
        codes = self._round_in_turn(block, factor)
        flat = codes.reshape(-1, N)
        numerator = np.einsum("cmn,mn->cm", codes, b)
        denominator = np.einsum("in,in->i", flat @ A, flat).reshape(numerator.shape)
        alpha = self.best_alpha(numerator, denominator)
        cost = alpha * (alpha * denominator - 2 * numerator)
        best = cost.argmin(0)
        rows = np.arange(len(block))
        chosen = alpha[best, rows]
        return codes[best, rows] * (chosen > 0)[:, None], chosen

    def _round_in_turn(self, block: Single, factor: Single) -> Single:
        """Round a block weight by weight at several scales, feeding each error on; codes (C, M, N)."""
        scale = self._scales(block)
        C, M, N = *scale.shape, block.shape[1]
        flat = scale.reshape(-1)
        inverse = np.divide(1, flat, out=np.zeros_like(flat), where=flat > 0)
        left = np.tile(block.T[:, None, :], (1, C, 1)).reshape(N, C * M)
        codes = np.empty((N, C * M), np.float32)
        for j in range(N):
            code = np.clip(np.rint(left[j] * inverse), -self.max_code, self.max_code, out=codes[j])
            error = (left[j] - code * flat) / factor[j, j]
            left[j + 1 :] -= factor[j, j + 1 :, None] * error
        return codes.reshape(N, C, M).transpose(1, 2, 0)

    def _scales(self, block: Single) -> Single:
        """Return the whole scales to try for each row, (C, M)."""
        if self.max_code == 1:
            base, ratios = ternarize(block)[1], np.geomspace(0.65, 1.5, _TRIED_SCALES)
        else:
            base, ratios = np.abs(block).max(1) / self.max_code, np.geomspace(0.45, 1.05, _TRIED_SCALES)
        return np.clip(np.rint(ratios[:, None] * base), 0, self.alpha_limit).astype(np.float32)
