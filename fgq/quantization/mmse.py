"""Activation ranges of least mean squared error, from histograms of bounded size.

The quantizer of an activation tensor is the one that minimises the expected squared difference
between a value and its quantized value, clipping and rounding together (OMSE: Choukroun et al., "Low-bit
Quantization of Neural Networks for Efficient Inference", arXiv 1902.06822, section 3).

Symbols: s scale, z zero point, Q the largest integer, ``v_q = s * (q - z)`` the value of integer q,
``t_q = s * (q - z + 1/2)`` the threshold between the integers q and q + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import DataError
from fgq.quantization.magnitudes import Magnitudes, Peak
from fgq.quantization.scheme import ActivationScheme, Quantizer

BINS = 1 << 14
"""Bins of a histogram, half of them on each side of zero: 128 KiB a tensor."""

SYMMETRIC_TOLERANCE = 1.01
"""The symmetric quantizer is preferred up to this multiple of the affine one's expected error."""

_HALF = BINS // 2
_CHUNK = 1 << 16  # values binned at a time, so that the temporaries stay in the second-level cache
_LOWEST_EXPONENT = -100  # keeps BINS / 2 / 2**exponent a finite float32
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class StreamingHistogram:
    """Counts of a tensor's values, in memory that does not grow with the data.

    The BINS bins are equally wide, half-open and cover ``[-2**exponent, 2**exponent)``. A value outside
    raises the exponent, and neighbouring bins are added in pairs. Because the bins of one exponent nest
    exactly in those of the next, the result depends on the values alone: not on their order, nor on how
    they were cut into batches. (A negative value smaller than the bin
    width by a factor beyond 2**126 underflows into the bin above zero.)

    Parameters
    ----------
    name : str
        The tensor's name, for messages.
    percentile : float, optional
        What share of the values a quantizer's range is to hold, in percent, in place of the range of least
        squared error (`choose_quantizer`).

    Attributes
    ----------
    counts : ndarray of int64, shape (BINS,)
        Values in each bin, exact zeros included.
    exponent : int
        Half the range is ``2**exponent``, the smallest that exceeds every magnitude seen.
    count, zeros : int
        All values, and those that are exactly 0.
    minimum, maximum : float
        The exact extremes; infinity and minus infinity before the first value.
    peaks : list of Peak
        The largest magnitude of each sample, where the one who observes adds it.
    """

    def __init__(self, name: str, percentile: float | None = None) -> None:
        self.name = name
        self.percentile = percentile
        self.peaks: list[Peak] = []
        self._magnitudes = None if percentile is None else Magnitudes()
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.exponent = _LOWEST_EXPONENT
        self.count = 0
        self.zeros = 0
        self.minimum = math.inf
        self.maximum = -math.inf

    @property
    def bin_width(self) -> float:
        """The width of one bin, a power of two."""
        return math.ldexp(1.0, self.exponent) / _HALF

    def update(self, values: NDArray[np.floating[Any]]) -> None:
        """Count the values of an array.

        Parameters
        ----------
        values : ndarray of float16, float32 or float64, any shape
            Left as it is. A contiguous array is not copied.

        Raises
        ------
        DataError
            If the array has another type or holds NaN, infinity or a magnitude beyond float32.
        """
        if values.dtype not in (np.float16, np.float32, np.float64):
            raise DataError(
                f"tensor {self.name!r}: found {values.dtype} values, wanted float16, float32 or float64"
            )
        if values.size == 0:
            return
        flat = values.reshape(-1)
        lowest, highest = float(flat.min()), float(flat.max())
        magnitude = max(-lowest, highest)
        if not magnitude <= _LARGEST:  # NaN fails every comparison
            raise DataError(
                f"tensor {self.name!r}: found {self._describe_overflow(flat)} among {flat.size} values, "
                "wanted finite float32 activations; check the model and its input data"
            )
        if magnitude:  # frexp gives 0 the exponent of 1/2
            self._widen(math.frexp(magnitude)[1])
        self.minimum = min(self.minimum, lowest)
        self.maximum = max(self.maximum, highest)
        self.count += flat.size
        self.zeros += flat.size - int(np.count_nonzero(flat))
        self._bin(flat)
        if self._magnitudes is not None:
            self._magnitudes.update(flat)

    def percentile_range(self) -> tuple[float, float]:
        """Return the ends of the range that holds `percentile` percent of the values, and 0."""
        if self._magnitudes is None or self.percentile is None:
            raise ValueError(f"tensor {self.name!r}: found no percentile, wanted one from the beginning")
        low, high = self._magnitudes.range(self.percentile)
        return max(low, min(self.minimum, 0.0)), min(high, max(self.maximum, 0.0))

    def beyond(self, limit: float) -> int:
        """Return how many values have a magnitude above a limit, by whole bins."""
        bins = int(limit / self.bin_width) + 1
        if bins >= _HALF:
            return 0
        return int(self.counts[: _HALF - bins].sum() + self.counts[_HALF + bins :].sum())

    def _widen(self, exponent: int) -> None:
        if exponent <= self.exponent:
            return
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, _coarser_bin(exponent - self.exponent), self.counts)
        self.counts, self.exponent = counts, exponent

    def _bin(self, flat: NDArray[np.floating[Any]]) -> None:
        dtype = np.float64 if flat.dtype == np.float64 else np.float32
        per_unit = math.ldexp(_HALF, -self.exponent)
        size = min(flat.size, _CHUNK)
        scaled, index = np.empty(size, dtype), np.empty(size, np.intp)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            position, target = scaled[: chunk.size], index[: chunk.size]
            np.multiply(chunk, per_unit, out=position, dtype=dtype)
            np.floor(position, out=position)
            # The offset is added after floor: before it, tiny negative values would round up to zero.
            np.add(position, _HALF, out=position)
            target[...] = position
            self.counts += np.bincount(target, minlength=BINS)

    @staticmethod
    def _describe_overflow(flat: NDArray[np.floating[Any]]) -> str:
        nans = int(np.isnan(flat).sum())
        if nans:
            return f"{nans} NaN"
        infinite = int(np.isinf(flat).sum())
        return f"{infinite} infinite" if infinite else f"magnitude {float(np.abs(flat).max()):.3g}"


def _coarser_bin(doublings: int) -> NDArray[np.intp]:
    """Where each bin goes when the range doubles so many times."""
    return ((np.arange(BINS) - _HALF) >> min(doublings, BINS.bit_length())) + _HALF


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedError:
    """What a quantizer does to the values of a histogram.

    Parameters
    ----------
    mse : float
        Expected squared error of one value.
    snr_db : float
        ``10 log10(E[x^2] / mse)`` in decibels, infinite when nothing is lost.
    clipped_share : float
        Share of values more than half a step outside the representable range.
    """

    mse: float
    snr_db: float
    clipped_share: float


def choose_quantizer(histogram: StreamingHistogram, scheme: ActivationScheme) -> Quantizer:
    """Choose the scale and zero point of least expected squared error (arXiv 1902.06822, section 3).

    The sign of the values decides the zero point: 0 where none is negative (after a ReLU), the largest
    integer Q where none is positive. For both signs it is the middle (128 or 8) unless a free one has an
    expected error more than 1 % smaller (SYMMETRIC_TOLERANCE). A tensor of one repeated value c gets a
    scale of ``|c| / 2**(bits - 1)``, of which c is an exact multiple; a tensor of zeros gets scale 1.
    With a percentile the range is what holds so many percent of the values, and 0.

    Parameters
    ----------
    histogram : StreamingHistogram
        The values seen in calibration.
    scheme : ActivationScheme
        How many bits.

    Returns
    -------
    Quantizer
        Its scale is a float32 value.

    Raises
    ------
    DataError
        If the histogram has counted no value.
    """
    if histogram.count == 0:
        raise DataError(f"tensor {histogram.name!r}: found no values, wanted at least one to calibrate")
    highest, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    if histogram.minimum == histogram.maximum:
        value = histogram.minimum
        return _quantizer(abs(value) / middle if value else 1.0, middle if value < 0 else 0, scheme)
    if histogram.percentile is not None:
        return _covering(*histogram.percentile_range(), scheme)
    density = _Density(histogram)
    if histogram.minimum >= 0 or histogram.maximum <= 0:
        zero_point = 0 if histogram.minimum >= 0 else highest
        return _quantizer(density.best_scale(zero_point, highest)[1], zero_point, scheme)
    symmetric_error, symmetric_scale = density.best_scale(middle, highest)
    affine_error, affine_scale, zero_point = _best_affine(density, highest)
    if symmetric_error <= SYMMETRIC_TOLERANCE * affine_error:
        return _quantizer(symmetric_scale, middle, scheme)
    return _quantizer(affine_scale, zero_point, scheme)


def expected_error(histogram: StreamingHistogram, quantizer: Quantizer) -> ExpectedError:
    """Return the error that a quantizer is expected to make on the values of a histogram.

    Parameters
    ----------
    histogram : StreamingHistogram
        The values seen in calibration.
    quantizer : Quantizer
        Any quantizer, not only the chosen one.

    Returns
    -------
    ExpectedError
        In the units of the tensor; values count as evenly spread inside a bin, zeros as exact. For
        values on a coarse lattice of their own (small whole numbers) it is an estimate.

    Raises
    ------
    DataError
        If the histogram has counted no value.
    """
    if histogram.count == 0:
        raise DataError(f"tensor {histogram.name!r}: found no values, wanted at least one to calibrate")
    density = _Density(histogram)
    scale, highest = quantizer.scale, quantizer.highest
    mse = float(density.error(np.array([scale]), quantizer.zero_point, highest)[0])
    lowest_value = -(quantizer.zero_point + 0.5) * scale
    highest_value = (highest - quantizer.zero_point + 0.5) * scale
    below, above = density.share_below(np.array([lowest_value, highest_value]))
    return ExpectedError(
        mse=mse,
        snr_db=10 * math.log10(density.power / mse) if mse > 0 else math.inf,
        clipped_share=float(below + density.mass - above),
    )


class _Density:
    """The values of a histogram as a density: constant inside a bin, cut off at the exact extremes.

    Zeros are left out: every quantizer represents them exactly.
    """

    def __init__(self, histogram: StreamingHistogram) -> None:
        counts = histogram.counts.copy()
        counts[_HALF] -= histogram.zeros
        occupied = np.flatnonzero(counts)
        if occupied.size == 0:
            occupied = np.array([_HALF])
        self._width = histogram.bin_width
        self._first = int(occupied[0]) - _HALF
        last = int(occupied[-1]) - _HALF
        edges = np.arange(self._first, last + 2) * self._width
        edges[0] = max(edges[0], histogram.minimum)
        edges[-1] = max(min(edges[-1], histogram.maximum), edges[0])
        share = counts[occupied[0] : occupied[-1] + 1] / histogram.count
        left, right = edges[:-1], edges[1:]
        spread = right - left
        # Only the last bin can have no width (its values all equal the maximum); it is never entered.
        self._slope = np.divide(share, spread, out=np.zeros_like(share), where=spread > 0)
        self._left = left
        self._low, self._high = float(edges[0]), float(edges[-1])
        below = np.concatenate([[0.0], np.cumsum(share)])
        self._below = below[:-1]
        self._integral = np.concatenate([[0.0], np.cumsum((below[:-1] + below[1:]) / 2 * spread)])
        self.mass = float(below[-1])
        self._mean = float(share @ (left + right)) / 2
        self.power = float(share @ (left * left + left * right + right * right)) / 3

    def share_below(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return F(t), the share of nonzero values below t, for each t of `at`."""
        bin_, inside = self._locate(at)
        share = self._below[bin_] + self._slope[bin_] * inside
        return np.where(at > self._high, self.mass, share)

    def error(self, scales: NDArray[np.float64], zero_point: int, highest: int) -> NDArray[np.float64]:
        """Return the expected squared error of each of the scales, for one zero point.

        With F the cumulative share and ``G(t) = integral of F up to t = E[max(t - x, 0)]``, summing
        ``integral over cell q of (x - v_q)^2 dF`` by parts over the cells gives::

            E = E[(x - v_Q)^2] - 2 s * sum over q < Q of G(t_q)

        Parameters
        ----------
        scales : ndarray of float64, shape (S,)
            Positive scales s.
        zero_point, highest : int
            z and Q.

        Returns
        -------
        ndarray of float64, shape (S,)
            Never below 0.
        """
        top = scales * (highest - zero_point)
        thresholds = scales[:, None] * (np.arange(highest) - zero_point + 0.5)
        unrounded = self.power - 2 * top * self._mean + top * top * self.mass
        error = unrounded - 2 * scales * self._integrated_share(thresholds).sum(axis=1)
        nonnegative: NDArray[np.float64] = np.maximum(error, 0.0)
        return nonnegative

    def best_scale(self, zero_point: int, highest: int) -> tuple[float, float]:
        """Return the least expected error and its scale, for one zero point.

        The error may have several minima (one for the bulk, one for far outliers), so a geometric grid of
        8 scales an octave comes first, and its three best minima are each refined by narrowing grids.
        """
        sides = []
        if highest > zero_point:
            sides.append(self._high / (highest - zero_point))
        if zero_point > 0:
            sides.append(-self._low / zero_point)
        cover = max(sides)
        finest = min(self._width / 4, cover)
        scales = np.geomspace(finest, cover, 1 + math.ceil(8 * math.log2(cover / finest)))
        errors = self.error(scales, zero_point, highest)
        fenced = np.concatenate([[np.inf], errors, [np.inf]])
        minima = np.flatnonzero((errors <= fenced[:-2]) & (errors <= fenced[2:]))
        best = (math.inf, cover)
        for index in minima[np.argsort(errors[minima], kind="stable")][:3]:
            low, high = scales[max(index - 1, 0)], scales[min(index + 1, scales.size - 1)]
            for _ in range(3):
                finer = np.linspace(low, high, 17)
                finer_errors = self.error(finer, zero_point, highest)
                least = int(np.argmin(finer_errors))
                best = min(best, (float(finer_errors[least]), float(finer[least])))
                low, high = finer[max(least - 1, 0)], finer[min(least + 1, 16)]
        return best

    def _integrated_share(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        bin_, inside = self._locate(at)
        within = self._integral[bin_] + inside * (self._below[bin_] + self._slope[bin_] * inside / 2)
        return within + self.mass * np.maximum(at - self._high, 0.0)

    def _locate(self, at: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the bin of each position clipped to the extremes, and how far inside its bin that is."""
        clipped = np.clip(at, self._low, self._high)
        bin_ = np.floor(clipped / self._width).astype(np.intp) - self._first
        bin_ = np.clip(bin_, 0, self._left.size - 1)
        return bin_, clipped - self._left[bin_]


def _best_affine(density: _Density, highest: int) -> tuple[float, float, int]:
    """Return the least expected error over all zero points, its scale and its zero point.

    A coarse grid of zero points, then steps half as wide around the best one.
    """
    step = (highest + 1) // 16
    found = {z: density.best_scale(z, highest) for z in (*range(0, highest, step), highest)}
    while step > 1:
        step //= 2
        centre = min(found, key=lambda z: (found[z], z))
        for z in (centre - step, centre + step):
            if 0 <= z <= highest and z not in found:
                found[z] = density.best_scale(z, highest)
    zero_point = min(found, key=lambda z: (found[z], z))
    return *found[zero_point], zero_point


def _covering(low: float, high: float, scheme: ActivationScheme) -> Quantizer:
    """Return the quantizer whose integers reach from `low` to `high`, 0 among them."""
    highest = (1 << scheme.bits) - 1
    scale = (high - low) / highest
    if not scale > 0:
        return _quantizer(1.0, 0, scheme)
    return _quantizer(scale, min(max(round(-low / scale), 0), highest), scheme)


def _quantizer(scale: float, zero_point: int, scheme: ActivationScheme) -> Quantizer:
    rounded = float(np.float32(max(scale, _SMALLEST_SCALE)))
    return Quantizer(scale=rounded, zero_point=zero_point, bits=scheme.bits)
