"""Shapes, read back from what they are drawn as."""

import math
import re

import numpy as np
import pytest

from fgq.eval.report.charts import HEIGHT, WIDTH, activation_shapes, bar_lengths, bars_path, weight_shapes
from fgq.eval.report.histograms import ActivationHistogram, Thresholds, WeightHistogram
from fgq.quantization.scheme import Quantizer

COUNTS = np.array([0, 1, 1000, 30])


def bars(path):
    """Return left end, width and height of each bar of a path."""
    assert re.fullmatch(rf"M0 {HEIGHT}(V\d+h[\d.]+)+V{HEIGHT}z", path)
    found, left = [], 0.0
    for top, width in re.findall(r"V(\d+)h([\d.]+)", path):
        found.append((left, float(width), HEIGHT - int(top)))
        left += float(width)
    assert left == WIDTH
    return found


def test_bars_are_logarithms():
    heights = [height for _, _, height in bars(bars_path(COUNTS, 1000))]
    assert heights == [round(HEIGHT * math.log(1 + count) / math.log(1001)) for count in COUNTS]
    assert heights[0] == 0
    assert heights[2] == HEIGHT


def test_nothing_counted():
    assert {height for _, _, height in bars(bars_path(np.zeros(4, int), 0))} == {0}


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        ([1.0, 2.0, None], [50.0, 100.0, 0.0]),
        ([math.nan, -3.0, 4.0, math.inf], [0.0, 0.0, 100.0, 100.0]),
        ([0.0, None], [0.0, 0.0]),
        ([math.inf], [100.0]),
        ([math.nan], [0.0]),
        ([-1.0], [0.0]),
        ([], []),
    ],
)
def test_bar_lengths(values, lengths):
    assert bar_lengths(values) == lengths


def test_weights():
    histogram = WeightHistogram(
        low=-2.0,
        high=2.0,
        counts=COUNTS,
        zeros=COUNTS // 2,
        zero_share=0.5,
        thresholds=Thresholds(0.5, 1.0, 9.0),
    )
    shapes = weight_shapes(histogram)
    assert shapes.lines == [WIDTH / 4, 3 * WIDTH / 4]
    # The larger threshold lies outside; bands end with the picture.
    assert shapes.bands == [(0.0, 3 * WIDTH / 8), (5 * WIDTH / 8, 3 * WIDTH / 8)]
    assert max(height for _, _, height in bars(shapes.zeros)) < HEIGHT


def test_weights_without_thresholds():
    histogram = WeightHistogram(
        low=-1.0, high=1.0, counts=COUNTS, zeros=COUNTS, zero_share=1.0, thresholds=None
    )
    assert weight_shapes(histogram)[2:] == ([], [])


@pytest.mark.parametrize(
    ("quantizer", "bands", "lines"),
    [
        (None, [], []),
        (Quantizer(scale=1 / 255, zero_point=0), [(0.0, 80.0), (160.0, 160.0)], [80.0, 160.0]),
        (Quantizer(scale=4 / 255, zero_point=51), [(0.0, 16.0)], [16.0, 336.0]),
    ],
)
def test_activations(quantizer, bands, lines):
    histogram = ActivationHistogram(
        low=-1.0,
        high=3.0,
        counts=COUNTS,
        minimum=-1.0,
        maximum=3.0,
        quantizer=quantizer,
        clipped_share=0.0,
        signal_to_noise_db=30.0,
    )
    assert activation_shapes(histogram)[2:] == (bands, lines)
