r"""Quantization of groups of weights to evenly spaced levels: INT4 codes and two tied ternary planes.

A group of N weights ``w`` becomes ``a * c`` with one scale ``a >= 0`` and codes ``c`` in ``-L .. L`` that
minimise ``||w - a c||^2`` (minimum-mean-square-error quantization, OMSE, arXiv 1902.06822, section 3). For a
given scale the best codes are the nearest ones, and for given codes the best scale is
``sum(w c) / sum(c^2)``; the error has several minima, so a grid of scales comes first.

Tie rule: a magnitude half way between two levels takes the even code. A group of zeros has alpha and codes 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fgq.quantization.ternary import Float, bounded_row_scale

CLIPPING = np.linspace(0.4, 1.0, 37)
"""Scales that are tried, as multiples of the one that clips nothing."""

STARTS = (1.0, 0.85)
"""Row scales to begin with, as multiples of the one whose largest alpha reaches every group scale."""

ROUNDS = 3
"""Rounds of joint refinement from each start; further ones lower the error of normal rows by under 0.1 %."""


def fit_rows(
    groups: NDArray[np.floating],
    max_code: int,
    alpha_limit: int,
    least_row_scale: Float | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    """Choose codes, integer alphas and the row scale of each row together.

    The group scales of a row are ``alpha * row_scale`` with whole ``alpha`` in ``0 .. alpha_limit``. From
    the real optimum of each group, the better of the two neighbouring integers for each alpha and the
    least-squares row scale ``sum(w alpha c) / sum((alpha c)^2)`` are found in turn, and the best row scale
    met is taken.

    Parameters
    ----------
    groups : ndarray of float, shape (M, G, N)
        Finite weights, G groups of N in each of M rows, zero-padded where a group is shorter.
    max_code : int
        L, the largest magnitude of a code.
    alpha_limit : int
        Largest alpha.
    least_row_scale : ndarray of float64, shape (M,), optional
        A lower bound on each row scale.

    Returns
    -------
    codes : ndarray of int8, shape (M, G, N)
    alpha : ndarray of uint8, shape (M, G)
        0 where every code of the group is 0.
    row_scale : ndarray of float32, shape (M,)
        0 for a row of zeros, else positive.
    """
    weights = groups.astype(np.float64)
    real = best_scale(weights, max_code)
    widest = real.max(axis=-1, initial=0.0) / alpha_limit
    best_error = np.full(widest.shape, np.inf)
    best_row_scale = widest
    for start in STARTS:
        row_scale = bounded_row_scale(start * widest, least_row_scale)
        for _ in range(ROUNDS):
            codes, alpha, error = _choose_alpha(weights, real, row_scale, max_code, alpha_limit)
            better = error < best_error
            best_row_scale = np.where(better, row_scale, best_row_scale)
            best_error = np.where(better, error, best_error)
            integers = codes * alpha[..., None]
            square = np.einsum("mgn,mgn->m", integers, integers)
            covered = np.einsum("mgn,mgn->m", integers, weights)
            fitted = np.divide(covered, square, out=np.zeros_like(covered), where=square > 0)
            row_scale = bounded_row_scale(fitted, least_row_scale)
    codes, alpha, _ = _choose_alpha(weights, real, best_row_scale, max_code, alpha_limit)
    return codes.astype(np.int8), alpha.astype(np.uint8), best_row_scale.astype(np.float32)


def best_scale(groups: Float, max_code: int) -> Float:
    """Return the best real scale of each group on the grid, then fitted to its codes.

    Parameters
    ----------
    groups : ndarray of float64, shape (..., N)
    max_code : int
        L.

    Returns
    -------
    ndarray of float64, shape (...)
        0 for a group of zeros.
    """
    widest = np.abs(groups).max(axis=-1, initial=0.0) / max_code
    best_error = np.full(widest.shape, np.inf)
    best: Float = widest
    for clipping in CLIPPING:
        scale, error = _fitted(groups, clipping * widest, max_code)
        best = np.where(error < best_error, scale, best)
        best_error = np.minimum(error, best_error)
    for _ in range(ROUNDS):
        best = _fitted(groups, best, max_code)[0]
    return best


def _fitted(groups: Float, scale: Float, max_code: int) -> tuple[Float, Float]:
    """Return the least-squares scale for the codes of another one, and its error less ``||w||^2``."""
    codes = _codes(groups, scale, max_code)
    square = np.einsum("...n,...n->...", codes, codes)
    covered = np.einsum("...n,...n->...", codes, groups)
    fitted: Float = np.divide(covered, square, out=np.zeros_like(covered), where=square > 0)
    return fitted, -covered * fitted


def _codes(groups: Float, scale: Float, max_code: int) -> Float:
    """Return the codes nearest to weights at a scale for each group; 0 where the scale is 0."""
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    codes: Float = np.clip(np.rint(groups * inverse[..., None]), -max_code, max_code)
    return codes


def _choose_alpha(
    weights: Float, real: Float, row_scale: Float, max_code: int, limit: int
) -> tuple[Float, Float, Float]:
    """Return codes and alpha of each group, and the error (less ``||w||^2``) of each row."""
    scale = row_scale[:, None]
    lower = np.floor(np.divide(real, scale, out=np.zeros_like(real), where=scale > 0))
    candidates = []
    for alpha in (np.minimum(lower, limit), np.minimum(lower + 1, limit)):
        level = alpha * scale
        codes = _codes(weights, level, max_code)
        square = np.einsum("mgn,mgn->mg", codes, codes)
        covered = np.einsum("mgn,mgn->mg", codes, weights)
        candidates.append((codes, alpha * (square > 0), level * (level * square - 2 * covered)))
    (low, low_alpha, low_error), (high, high_alpha, high_error) = candidates
    raised = high_error < low_error
    codes = np.where(raised[..., None], high, low)
    return codes, np.where(raised, high_alpha, low_alpha), np.where(raised, high_error, low_error).sum(-1)
