"""Intervals for measured qualities: every figure of an evaluation is a sample mean and has an error.

Accuracies are proportions and get the Wilson score interval. Other means (reciprocal rank, cosine) get a
percentile bootstrap. Two models measured on the same samples are compared by the bootstrap of their
per-sample differences, which is much narrower than the two separate intervals suggest.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgq.errors import ConfigError, DataError

_DRAWS_AT_ONCE = 1 << 21
"""Random indices drawn at once: 16 MiB of int64, and as much again for the values they pick."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value with the two ends of its confidence interval, all in the same unit."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write three decimals, such as ``0.582 [0.557, 0.607]``."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def percent(self, decimals: int = 1) -> str:
        """Write a proportion in percent, such as ``93.2 % [92.7, 93.7]``."""
        # Adding 0.0 makes a rounded -0.0 a 0.0.
        rounded = (round(100 * x, decimals) + 0.0 for x in (self.value, self.low, self.high))
        value, low, high = (f"{x:.{decimals}f}" for x in rounded)
        return f"{value} % [{low}, {high}]"


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a proportion.

    With p = successes / n and z the normal quantile at (1 + confidence) / 2, the ends are::

        (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927). Unlike the normal
    approximation it stays inside [0, 1] and keeps a width when all samples are right or all are wrong.

    Parameters
    ----------
    successes : int
        Samples answered rightly, from 0 to `n`.
    n : int
        Samples, at least 1.
    confidence : float
        Coverage, strictly between 0 and 1.

    Returns
    -------
    tuple of float
        Low and high end.

    Raises
    ------
    DataError
        If there are no samples, or `successes` is not among 0 .. `n`.
    ConfigError
        If `confidence` is not strictly between 0 and 1.
    """
    _require_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise DataError(
            f"Wilson interval: found {successes} successes of {n} samples, wanted at least one sample "
            "and 0 <= successes <= n; check what was counted."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half_width = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At p = 0 and p = 1 one end is exactly p; rounding would leave it a hair away.
    low = (centre - half_width) / scale if successes > 0 else 0.0
    high = (centre + half_width) / scale if successes < n else 1.0
    return low, high


def bootstrap_interval(
    per_sample: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    The ends are the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the means of `resamples`
    samples drawn with replacement. Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
    chapter 13. A single sample gives an interval of no width: it says nothing about its own error.

    Parameters
    ----------
    per_sample : array_like of float, shape [n]
        One score per sample.
    confidence : float
        Coverage, strictly between 0 and 1.
    resamples : int
        Bootstrap samples, at least 1.
    seed : int
        Seed of the draws; the same seed gives the same interval.

    Returns
    -------
    tuple of float
        Low and high end.

    Raises
    ------
    DataError
        If the scores are not one vector of at least one finite number.
    ConfigError
        If `confidence` is not strictly between 0 and 1, or there are no resamples.
    """
    _require_confidence(confidence)
    if resamples < 1:
        raise ConfigError(f"bootstrap: found resamples={resamples}, wanted at least 1.")
    scores = _finite_vector(per_sample)
    means = _resampled_means(scores, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Estimate mean(a) - mean(b) for two models measured on the same samples.

    Resampling the pairs is resampling their differences, so this is `bootstrap_interval` of a - b.

    Parameters
    ----------
    a, b : array_like of float, shape [n]
        Scores of the two models; entry i of both belongs to the same sample.
    confidence, resamples, seed
        As in `bootstrap_interval`.

    Returns
    -------
    Estimate
        The difference and its interval. An interval without 0 is a difference beyond chance.

    Raises
    ------
    DataError
        If the two are not vectors of equal length of finite numbers.
    ConfigError
        As `bootstrap_interval`.
    """
    scores_a, scores_b = _finite_vector(a), _finite_vector(b)
    if scores_a.size != scores_b.size:
        raise DataError(
            f"paired bootstrap: found {scores_a.size} and {scores_b.size} scores, wanted one of each model "
            "for every sample; evaluate both models on the same samples."
        )
    difference = scores_a - scores_b
    low, high = bootstrap_interval(difference, confidence=confidence, resamples=resamples, seed=seed)
    return Estimate(float(difference.mean()), low, high)


def _resampled_means(
    scores: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of `resamples` draws of n of the n `scores`, with replacement, in bounded memory."""
    means = np.empty(resamples)
    rows = max(1, _DRAWS_AT_ONCE // scores.size)
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        picks = rng.integers(0, scores.size, size=(block.size, scores.size))
        block[:] = scores[picks].mean(axis=1)
    return means


def _finite_vector(per_sample: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(per_sample, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise DataError(
            f"scores: found shape {scores.shape}, wanted a vector with one score for each sample."
        )
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(
            f"scores: found {scores[first]} at sample {first}, wanted finite numbers; "
            "look at what the model gave for that sample."
        )
    return scores


def _require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: found {confidence}, wanted a number between 0 and 1, such as 0.95.")
