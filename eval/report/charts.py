"""Findings as shapes: bars, and histograms as one path each, in the units of an SVG's view box."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgq.eval.report.histograms import ActivationHistogram, WeightHistogram

WIDTH, HEIGHT = 320, 80
"""The view box of a histogram."""

BAR = 100
"""The length of the longest bar."""


class Histogram(NamedTuple):
    """The shapes of one histogram.

    Parameters
    ----------
    outline : str
        The path of all counts.
    zeros : str
        That of the weights that became zero; empty for activations.
    bands : list of tuple of float
        Left end and width of shaded parts: between which magnitudes weights become zero, or where
        activations are clipped.
    lines : list of float
        Where the threshold, or the range, ends.
    """

    outline: str
    zeros: str
    bands: list[tuple[float, float]]
    lines: list[float]


def bar_lengths(values: Iterable[float | None]) -> list[float]:
    """Return the length of each value's bar, the largest finite one's BAR.

    Nothing, NaN and negative values have no bar; infinite ones have the longest.
    """
    known = [math.nan if value is None else value for value in values]
    largest = max((value for value in known if math.isfinite(value)), default=0.0)
    return [_length(value, largest) for value in known]


def weight_shapes(histogram: WeightHistogram) -> Histogram:
    """Draw the weights of a layer."""
    most = int(histogram.counts.max())
    bands, lines = [], []
    if histogram.thresholds is not None:
        low, median, high = (min(value, histogram.high) for value in histogram.thresholds)
        bands = [_span(-high, -low, histogram), _span(low, high, histogram)]
        lines = [_place(value, histogram) for value in (-median, median)]
    return Histogram(
        outline=bars_path(histogram.counts, most),
        zeros=bars_path(histogram.zeros, most),
        bands=bands,
        lines=lines,
    )


def activation_shapes(histogram: ActivationHistogram) -> Histogram:
    """Draw what a layer reads."""
    bands, lines = [], []
    if histogram.quantizer is not None:
        low, high = histogram.range
        bands = [_span(histogram.low, low, histogram), _span(high, histogram.high, histogram)]
        lines = [_place(value, histogram) for value in (low, high)]
    outline = bars_path(histogram.counts, int(histogram.counts.max()))
    return Histogram(outline=outline, zeros="", bands=[band for band in bands if band[1] > 0], lines=lines)


def bars_path(counts: NDArray[np.int64], most: int) -> str:
    """Return bars side by side as one closed path, their heights the logarithms of the counts.

    Parameters
    ----------
    counts : ndarray of int64, shape (bars,)
    most : int
        The count of a bar as high as the view box.
    """
    heights = np.log1p(counts) / math.log1p(max(most, 1)) * HEIGHT
    tops = HEIGHT - np.rint(heights).astype(int)
    step = f"h{WIDTH / len(counts):g}"
    return f"M0 {HEIGHT}" + "".join(f"V{top}{step}" for top in tops) + f"V{HEIGHT}z"


def _length(value: float, largest: float) -> float:
    if not value > 0:  # NaN too
        return 0.0
    return float(BAR) if value >= largest else round(BAR * value / largest, 1)


def _place(value: float, histogram: WeightHistogram | ActivationHistogram) -> float:
    return round(WIDTH * (value - histogram.low) / (histogram.high - histogram.low), 1)


def _span(low: float, high: float, histogram: WeightHistogram | ActivationHistogram) -> tuple[float, float]:
    left, right = _place(low, histogram), _place(high, histogram)
    return left, round(right - left, 1)
