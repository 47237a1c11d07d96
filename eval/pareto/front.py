"""Pareto fronts of cost and accuracy, and which precision holds how much of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_SAMPLES = 2001
"""Costs at which curves are compared."""


def front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Return the points that no other dominates, by rising cost.

    A point is dominated by one that costs no more and is no less accurate, and differs in either. Of equal
    points all stay.

    Parameters
    ----------
    costs, accuracies : sequence of float
        Of the same points; finite.
    """
    order = sorted(range(len(costs)), key=lambda index: (costs[index], -accuracies[index]))
    kept: list[int] = []
    for index in order:
        best = kept[-1] if kept else None
        equal = best is not None and (costs[index], accuracies[index]) == (costs[best], accuracies[best])
        if best is None or equal or accuracies[index] > accuracies[best]:
            kept.append(index)
    return kept


def shares(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Return the share of the range of costs in which each curve is the highest.

    A curve is the front of its points, between which accuracy is interpolated linearly over the logarithm of
    cost; it begins at its cheapest point and stays at its best accuracy beyond the dearest. The range goes
    from the cheapest to the dearest point of all, on a logarithmic axis. Where curves are equal they halve,
    or divide further, what is theirs together. The shares add up to 1.

    Parameters
    ----------
    curves : mapping of str to sequence of (cost, accuracy)
        At least one point each, of positive cost.
    """
    points = [cost for curve in curves.values() for cost, _ in curve]
    grid = np.linspace(math.log(min(points)), math.log(max(points)), _SAMPLES)
    heights = np.stack([_interpolated(curve, grid) for curve in curves.values()])
    highest = heights == heights.max(axis=0)
    return dict(zip(curves, (highest / highest.sum(axis=0)).mean(axis=1).tolist(), strict=True))


def _interpolated(curve: Sequence[tuple[float, float]], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    costs, accuracies = (list(column) for column in zip(*curve, strict=True))
    kept = list({costs[index]: index for index in front(costs, accuracies)}.values())
    x = [math.log(costs[index]) for index in kept]
    heights: NDArray[np.float64] = np.interp(grid, x, [accuracies[index] for index in kept], left=-np.inf)
    return heights
