r"""The least-squares problem of a layer, and its float solution.

With moments ``A = sum x x^T / n`` and ``B = sum y x^T / n``, ridge regression towards the float weights W,

.. math:: \min_V  E\|y - V x\|^2 + \lambda \|V - W\|^2,

has the solution ``T = (B + lambda W) (A + lambda I)^{-1}``, and the cost of any V exceeds that of T by
``tr (V - T) H (V - T)^T`` with ``H = A + lambda I``. Where x is exact and y = W x, T is W: this is the
objective of GPTQ (Frantar et al. 2022, arXiv 2210.17323, section 3). Where x comes from a quantized prefix
and y from the float network, T also makes up for what the layers before have lost (asymmetric calibration,
Li et al. 2025, "GPTAQ", arXiv 2504.02692).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fgq.recipes.moments import Float, Moments

DAMPINGS = (0.01, 0.1, 1.0)
"""Candidates of lambda in units of the mean of A's diagonal; held-out data choose."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Find integers V close to the target, as the inputs measure it: least ``tr (V - T) H (V - T)^T``.

    Parameters
    ----------
    hessian : ndarray of float64, shape (K, K)
        H, symmetric and positive definite.
    target : ndarray of float64, shape (M, K)
        T.
    """

    hessian: Float
    target: Float


def solve(weights: Float, train: Moments, held_out: Moments, *, keep_weights: bool = False) -> list[Problem]:
    """Set up the problems of a layer with the damping that held-out data like best.

    Parameters
    ----------
    weights : ndarray of float64, shape (C, M, K)
        The float weights W.
    train, held_out : Moments
    keep_weights : bool
        Take W itself as the target, whatever the inputs have become.

    Returns
    -------
    list of Problem
        One for each of the C reductions. The weights of an input that was always zero stay as they are;
        inputs that were always equal, or more inputs than positions, are told apart by the damping alone.
        Where held-out data like W itself better than every T, it is the target. H is in units of a power of
        two, for which no solution cares.
    """
    best, least = None, np.inf
    for damping in DAMPINGS:
        hessian, target = _damped(weights, train, damping)
        error = float(held_out.error(target).sum())
        if best is None or error < least:
            best, least = (hessian, target), error
    assert best is not None
    hessians, targets = best
    if keep_weights or float(held_out.error(weights).sum()) < least:
        targets = weights
    return [
        Problem(hessian=hessian / _unit(hessian), target=target)
        for hessian, target in zip(hessians, targets, strict=True)
    ]


def _unit(hessian: Float) -> float:
    """Return a power of two near the mean of a matrix's diagonal, for searches that work in float32."""
    return float(np.exp2(np.rint(np.log2(np.trace(hessian) / len(hessian)))))


def _damped(weights: Float, moments: Moments, damping: float) -> tuple[Float, Float]:
    gram = moments.gram / max(moments.positions, 1)
    mean = np.trace(gram, axis1=1, axis2=2) / gram.shape[1]
    added = np.where(mean > 0, damping * mean, 1.0)
    hessian = gram + added[:, None, None] * np.eye(gram.shape[1])
    # In differences from W, so that without a drift the target is W to the last bit.
    drift = moments.cross / max(moments.positions, 1) - weights @ gram
    change = np.linalg.solve(hessian, drift.transpose(0, 2, 1)).transpose(0, 2, 1)
    return hessian, weights + change
