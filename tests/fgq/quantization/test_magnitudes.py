"""Percentiles that a far value does not blur, and samples that stand out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgq.quantization.magnitudes import (
    Magnitudes,
    Peak,
    few_values,
    peaks_of,
    percentile_without,
    standing_out,
)


def counted(values):
    found = Magnitudes()
    for part in np.array_split(np.asarray(values, np.float32), 3):
        found.update(part)
    return found


@pytest.mark.parametrize("far", [10.0, 1e4, 1e30])
@pytest.mark.parametrize("percentile", [99.9, 99.0, 90.0])
def test_a_far_value_does_not_blur_a_percentile(far, percentile):
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    values[7] = far
    low, high = counted(values).range(percentile)
    beyond = (100 - percentile) / 2
    expected = np.percentile(values, [beyond, 100 - beyond])
    np.testing.assert_allclose([low, high], expected, rtol=0.01)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=60),
    percentile=st.floats(50.5, 100.0),
)
def test_no_more_values_lie_outside_than_asked(values, percentile):
    array = np.array(values, np.float32)
    low, high = counted(array).range(percentile)
    assert low <= 0 <= high
    tiny = 2.0**-100  # too small for a bin of its own
    outside = np.count_nonzero((array < low - tiny) | (array > high + tiny))
    assert outside <= (1 - percentile / 100) * len(array) + 1e-6
    assert high <= 1.01 * max(array.max(), 0) + tiny
    assert low >= 1.01 * min(array.min(), 0) - tiny


def test_one_sign_takes_all_that_lies_beyond():
    values = np.arange(1, 1001, dtype=np.float32)
    assert counted(values).range(90.0) == (0.0, pytest.approx(900, rel=0.01))
    assert counted(-values).range(90.0) == (pytest.approx(-900, rel=0.01), 0.0)
    assert counted(np.zeros(9)).range(99.0) == (0.0, 0.0)


def test_peaks_are_those_of_the_samples_where_the_first_axis_is_the_batch():
    values = np.array([[1.0, -3.0], [2.0, 0.5]], np.float32)
    assert peaks_of(values, 10, 2) == [Peak(10, 1, 3.0), Peak(11, 1, 2.0)]
    assert peaks_of(values, 10, 5) == [Peak(10, 5, 3.0)]
    assert peaks_of(values[:0], 10, 0) == []
    assert (str(Peak(3, 1, 1.0)), str(Peak(3, 2, 1.0))) == ("sample 3", "samples 3..4")


def test_few_samples_that_stand_out_are_found():
    peaks = [Peak(place, 1, 1.0 + place / 100) for place in range(40)]
    assert standing_out(peaks, 1.4) is None
    peaks[17] = Peak(17, 1, 50.0)
    few, rest = standing_out(peaks, 50.0)
    assert ([peak.first for peak in few], rest) == ([17], pytest.approx(1.39))
    peaks[3] = Peak(3, 1, 30.0)
    few, rest = standing_out(peaks, 50.0)
    assert ([peak.first for peak in few], rest) == ([17, 3], pytest.approx(1.39))
    assert standing_out(peaks, 1.5) is None  # the range leaves them out
    assert standing_out(peaks[:3] + peaks[17:18], 50.0) is not None
    assert standing_out(peaks[1:4], 50.0) is None


def test_shares_that_are_few():
    assert [few_values(far, count) for far, count in ((0, 9), (1, 9), (2, 9), (9, 10**6), (11, 10**6))] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert [percentile_without(share) for share in (0, 1e-5, 1e-4, 0.2)] == [99.999, 99.99, 99.9, 90.0]
