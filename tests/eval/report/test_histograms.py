"""Histograms against NumPy's own, and what quantizers do to their values counted one by one."""

import numpy as np
import pytest

from fgq.eval.report.histograms import BARS, activation_histogram, quantizer_range, weight_histogram
from fgq.quantization.mmse import StreamingHistogram
from fgq.quantization.scheme import Codes, Quantizer, WeightScheme
from fgq.quantization.weights import quantize_weight

RNG = np.random.default_rng(3)


def quantized(weight, codes=Codes.TERNARY, group_size=8):
    scheme = WeightScheme(codes=codes, group_size=group_size)
    return quantize_weight(weight, scheme, group_axis=1, channel_axis=0)


def observed(values):
    histogram = StreamingHistogram("x")
    histogram.update(np.asarray(values, np.float32))
    return histogram


class TestWeights:
    @pytest.mark.parametrize("codes", list(Codes))
    def test_counts(self, codes):
        weight = RNG.standard_normal((16, 32)).astype(np.float32)
        tensor = quantized(weight, codes)
        found = weight_histogram(weight, tensor)
        zero = tensor.dequantize() == 0
        assert (found.counts.size, found.counts.sum(), found.zeros.sum()) == (BARS, weight.size, zero.sum())
        assert found.zero_share == zero.mean()
        assert found.high == -found.low == np.abs(weight).max()
        assert (found.zeros <= found.counts).all()

    def test_the_nearest_groups_turn_at_the_threshold(self):
        """Each group's threshold lies between the weights that became zero and those that did not."""
        weight = RNG.standard_normal((1, 64)).astype(np.float32)
        tensor = quantized(weight, group_size=64)
        found = weight_histogram(weight, tensor)
        zero = tensor.dequantize() == 0
        low, median, high = found.thresholds
        assert low == median == high
        assert np.abs(weight[zero]).max() <= median <= np.abs(weight[~zero]).min()

    def test_quantiles_are_those_of_the_groups(self):
        weight = RNG.standard_normal((8, 64)).astype(np.float32)
        tensor = quantized(weight)
        steps = np.abs(tensor.dequantize().reshape(8, 8, 8)).max(axis=2)  # alpha * row scale of each group
        expected = np.quantile(steps / 2, [0.05, 0.5, 0.95])
        # row_scale * alpha in double precision against a float32 product
        np.testing.assert_allclose(weight_histogram(weight, tensor).thresholds, expected, rtol=1e-6)

    def test_zeros(self):
        weight = np.zeros((2, 8), np.float32)
        found = weight_histogram(weight, quantized(weight))
        assert (found.low, found.high, found.zero_share) == (-1.0, 1.0, 1.0)
        assert found.thresholds is None
        assert found.zeros.sum() == 16

    def test_one_weight(self):
        weight = np.array([[-2.0]], np.float32)
        found = weight_histogram(weight, quantized(weight))
        assert (found.counts[0], found.counts.sum(), found.zero_share) == (1, 1, 0.0)


class TestActivations:
    @pytest.mark.parametrize("bits", [4, 8])
    def test_what_is_clipped(self, bits):
        values = RNG.standard_normal(10_000).astype(np.float32)
        quantizer = Quantizer(scale=3 / (1 << bits), zero_point=1 << (bits - 1), bits=bits)
        found = activation_histogram(observed(values), quantizer)
        low, high = found.range
        assert (low, high) == (-1.5, 1.5 - quantizer.scale)
        outside = (values < low - quantizer.scale / 2) | (values > high + quantizer.scale / 2)
        # Values count as evenly spread inside the bins of the streaming histogram, of which 2,000 hold most.
        assert found.clipped_share == pytest.approx(outside.mean(), abs=1e-3)
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        assert found.counts.sum() == values.size

    def test_bars_against_numpy(self):
        values = RNG.standard_normal(50_000).astype(np.float32)
        found = activation_histogram(observed(values), None)
        expected, edges = np.histogram(values, bins=BARS, range=(values.min(), values.max()))
        assert (found.low, found.high) == (edges[0], edges[-1])
        # A bin of the streaming histogram goes to one bar as a whole: 1 of more than 100 in each bar.
        np.testing.assert_allclose(found.counts, expected, atol=0.03 * expected.max())

    def test_without_a_quantizer(self):
        found = activation_histogram(observed([-1.0, 2.0]), None)
        assert found.range == (-np.inf, np.inf)
        assert (found.low, found.high, found.clipped_share) == (-1.0, 2.0, 0.0)
        assert found.signal_to_noise_db == np.inf

    @pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
    def test_one_value(self, value):
        found = activation_histogram(observed([value] * 3), None)
        assert found.low < found.high
        assert (found.counts.sum(), found.minimum, found.maximum) == (3, value, value)

    def test_the_range_is_shown_whole(self):
        wide = Quantizer(scale=1.0, zero_point=128)
        found = activation_histogram(observed([0.5]), wide)
        assert (found.low, found.high) == quantizer_range(wide) == (-128.0, 127.0)
