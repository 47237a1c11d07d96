"""Histograms of a layer's weights and of what it reads, with what its quantizers make of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgq.quantization.mmse import StreamingHistogram, expected_error
from fgq.quantization.scheme import Quantizer
from fgq.quantization.tensor import QuantizedTensor

BARS = 64
"""Bars of a histogram, equally wide."""


class Thresholds(NamedTuple):
    """Magnitudes below which a weight is nearest to zero: half of its group's smallest step.

    Parameters
    ----------
    low, median, high : float
        The 5 %, 50 % and 95 % quantiles over the groups whose alpha is not 0.
    """

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightHistogram:
    """The float weights of a layer, and which of them became zero.

    Parameters
    ----------
    low, high : float
        The ends of the histogram, about 0.
    counts, zeros : ndarray of int64, shape (BARS,)
        All weights, and those whose quantized value is 0.
    zero_share : float
        The share of weights that became zero.
    thresholds : Thresholds or None
        None where every group's alpha is 0.
    """

    low: float
    high: float
    counts: NDArray[np.int64]
    zeros: NDArray[np.int64]
    zero_share: float
    thresholds: Thresholds | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActivationHistogram:
    """What a layer reads in the float model, and the quantizer of the converted one.

    Parameters
    ----------
    low, high : float
        The ends of the histogram.
    counts : ndarray of int64, shape (BARS,)
    minimum, maximum : float
        The exact extremes.
    quantizer : Quantizer or None
        None where the layer reads floats.
    clipped_share : float
        The share of values more than half a step outside the quantizer's range; 0 without a quantizer.
    signal_to_noise_db : float
        Of the quantizer on these values; infinite without one.
    """

    low: float
    high: float
    counts: NDArray[np.int64]
    minimum: float
    maximum: float
    quantizer: Quantizer | None
    clipped_share: float
    signal_to_noise_db: float

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value that the quantizer gives back; infinite ones without it."""
        return (-np.inf, np.inf) if self.quantizer is None else quantizer_range(self.quantizer)


def weight_histogram(weight: NDArray[np.floating], tensor: QuantizedTensor) -> WeightHistogram:
    """Count the weights of a layer by what became of them.

    Parameters
    ----------
    weight : ndarray of float
        Finite.
    tensor : QuantizedTensor
        Of the same shape.
    """
    end = float(np.abs(weight).max()) or 1.0
    became_zero = tensor.int8() == 0
    counts, zeros = (
        np.histogram(values, bins=BARS, range=(-end, end))[0] for values in (weight, weight[became_zero])
    )
    return WeightHistogram(
        low=-end,
        high=end,
        counts=counts,
        zeros=zeros,
        zero_share=float(became_zero.mean()),
        thresholds=_thresholds(tensor),
    )


def activation_histogram(seen: StreamingHistogram, quantizer: Quantizer | None) -> ActivationHistogram:
    """Bring a histogram of observed values to few bars, and see what its quantizer does to them.

    Parameters
    ----------
    seen : StreamingHistogram
        Of at least one value.
    quantizer : Quantizer or None
    """
    ends = [0.0, seen.minimum, seen.maximum, *(quantizer_range(quantizer) if quantizer else ())]
    low, high = min(ends), max(ends)
    if low == high:  # zeros alone, without a quantizer
        low, high = -1.0, 1.0
    centres = (np.arange(seen.counts.size) - seen.counts.size // 2 + 0.5) * seen.bin_width
    # Bins reach a little beyond the extremes.
    counts, _ = np.histogram(centres.clip(low, high), bins=BARS, range=(low, high), weights=seen.counts)
    error = expected_error(seen, quantizer) if quantizer else None
    return ActivationHistogram(
        low=low,
        high=high,
        counts=counts.astype(np.int64),
        minimum=seen.minimum,
        maximum=seen.maximum,
        quantizer=quantizer,
        clipped_share=error.clipped_share if error else 0.0,
        signal_to_noise_db=error.snr_db if error else np.inf,
    )


def quantizer_range(quantizer: Quantizer) -> tuple[float, float]:
    """Return the least and the largest value that a quantizer gives back."""
    return (
        -quantizer.zero_point * quantizer.scale,
        (quantizer.highest - quantizer.zero_point) * quantizer.scale,
    )


def _thresholds(tensor: QuantizedTensor) -> Thresholds | None:
    scale = tensor.row_scale
    if scale.ndim:
        along = [1] * len(tensor.shape)
        along[tensor.channel_axis] = -1
        scale = scale.reshape(along)
    # Planes of one layer have steps of their own; the finest is what is left of small weights.
    steps = [plane.alpha.astype(np.float64) * scale for plane in tensor.planes]
    step = reduce(np.minimum, [np.where(each > 0, each, np.inf) for each in steps])
    used = step[np.isfinite(step)]
    return Thresholds(*(float(q) for q in np.quantile(used, [0.05, 0.5, 0.95]) / 2)) if used.size else None
