"""How large values are: percentiles that one far value does not blur, and samples that stand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SHIFT = 16
_BINS = 1 << (31 - _SHIFT)
"""Bins of one sign: the exponent and seven more bits of a float32, so that a bin is 0.8 % wide at most."""

FAR = 4.0
"""A sample stands out where its largest value is this many times what the others have."""

_FEW_SAMPLES = 0.05
_FEW_VALUES = 1e-5
"""Shares of all samples, and of all values, that count as few; one always does."""


class Magnitudes:
    """Counts of values by their sign and magnitude, in bins as wide as their place is far from zero.

    A histogram of equal bins says nothing of ordinary values beside one that is far larger; this one does.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, _BINS), np.int64)

    def update(self, values: NDArray[np.floating[Any]]) -> None:
        """Count the values of an array.

        Parameters
        ----------
        values : ndarray of float, any shape
            Finite, with magnitudes that a float32 holds.
        """
        flat = values.reshape(-1).astype(np.float32)
        bins = flat.view(np.uint32) >> np.uint32(_SHIFT)
        self._counts += np.bincount(bins, minlength=2 * _BINS).reshape(2, _BINS)

    def range(self, percentile: float) -> tuple[float, float]:
        """Return the ends of the range that holds so many percent of the values, and 0.

        The rest lies beyond both ends alike where there are values of both signs, else beyond the one.

        Parameters
        ----------
        percentile : float
            100 leaves nothing out.

        Returns
        -------
        float, float
            Not above 0, and not below; edges of bins, so that up to 0.8 % more is inside.
        """
        beyond = (1 - percentile / 100) * self._counts.sum()
        positive, negative = (counts.copy() for counts in self._counts)
        positive[0] = negative[0] = 0  # zeros, and values too small to matter
        if positive.any() and negative.any():
            beyond /= 2
        return -_edge(negative, beyond), _edge(positive, beyond)


def _edge(counts: NDArray[np.int64], beyond: float) -> float:
    """Return the smallest edge of a bin with at most so many values above it."""
    above = np.cumsum(counts[::-1])[::-1]
    kept = np.flatnonzero(above > beyond)
    if not kept.size or not counts.any():
        return 0.0
    edge = np.array([(int(kept[-1]) + 1) << _SHIFT], np.uint32).view(np.float32)[0]
    return float(min(edge, np.finfo(np.float32).max))


class Peak(NamedTuple):
    """The largest magnitude in some samples that cannot be told apart, or in one.

    Parameters
    ----------
    first, samples : int
        The first one, and how many.
    largest : float
    """

    first: int
    samples: int
    largest: float

    def __str__(self) -> str:
        return (
            f"sample {self.first}"
            if self.samples == 1
            else f"samples {self.first}..{self.first + self.samples - 1}"
        )


def peaks_of(values: NDArray[Any], first: int, count: int) -> list[Peak]:
    """Return the largest magnitude of each sample of a batch, or that of all where the first axis is another.

    Parameters
    ----------
    values : ndarray
        What was observed for the batch.
    first, count : int
        The number of the batch's first sample, and how many it holds.
    """
    if not values.size:
        return []
    if values.ndim == 0 or values.shape[0] != count:
        return [Peak(first, count, float(max(values.max(), -values.min())))]
    rows = values.reshape(count, -1)
    largest = np.maximum(rows.max(1), -rows.min(1))
    return [Peak(first + place, 1, float(peak)) for place, peak in enumerate(largest)]


def standing_out(peaks: Sequence[Peak], limit: float) -> tuple[list[Peak], float] | None:
    """Return the few samples that alone make a range as wide as it is, and what the others need.

    Parameters
    ----------
    peaks : sequence of Peak
    limit : float
        How far the range goes.

    Returns
    -------
    list of Peak and float, or None
        Largest first; None where no few samples do so, or there are fewer than four to compare.
    """
    if len(peaks) < 4:
        return None
    ordered = sorted(peaks, key=lambda peak: -peak.largest)
    for few in range(1, 1 + max(1, round(_FEW_SAMPLES * len(peaks)))):
        rest = ordered[few].largest
        if limit > FAR * rest and ordered[few - 1].largest > FAR * rest:
            return ordered[:few], rest
    return None


def few_values(far: int, count: int) -> bool:
    """Tell whether so many far values of so many are few enough to be a fault of the data."""
    return 0 < far <= max(1, int(_FEW_VALUES * count))


def percentile_without(share: float) -> float:
    """Return a percentile whose range leaves out so large a share of the values on either side."""
    for percentile in (99.999, 99.99, 99.9, 99.0, 95.0):
        if (100 - percentile) / 200 >= share:
            return percentile
    return 90.0
