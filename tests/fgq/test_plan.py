"""Assignments against all there are, and whole conversions under a budget."""

import itertools

import numpy as np
import pytest

from fgq import convert
from fgq.errors import ConfigError, DataError
from fgq.plan import assign, memory_bits
from fgq.scheme import Codes, WeightScheme


@pytest.mark.parametrize("seed", range(30))
def test_the_assignment_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    layers = [int(rng.integers(1, 4)) for _ in range(6)]
    bits = [np.sort(rng.integers(1, 20, count)).astype(float) for count in layers]
    costs = [rng.integers(0, 9, count).astype(float) for count in layers]  # ties too
    budget = float(sum(each.min() for each in bits) + rng.integers(0, 30))
    picked = assign(bits, costs, budget)

    def total(values, options):
        return sum(each[option] for each, option in zip(values, options, strict=True))

    assert total(bits, picked) <= budget
    every = itertools.product(*(range(count) for count in layers))
    least = min(total(costs, options) for options in every if total(bits, options) <= budget)
    assert total(costs, picked) == least


def test_bits_in_memory_are_codes_and_a_share_of_alpha():
    assert memory_bits(WeightScheme(group_size=64), 640) == 2.125
    assert memory_bits(WeightScheme(codes=Codes.TIED, group_size=4), 640) == 6
    assert memory_bits(WeightScheme(group_size=64), 10) == 2.8
    assert memory_bits(WeightScheme(codes=Codes.INT8), 640) == 8


TEXT = """(float[N,64] x) => (float y) {
    a = MatMul(x, small)
    b = Relu(a)
    c = MatMul(b, large)
    y = Add(c, x)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"small": normal(64, 64), "large": 30 * normal(64, 64)}
FEEDS = {"x": normal(64, 64)}


def schemes(make_model, target):
    model = make_model(TEXT, WEIGHTS)
    return [layer.scheme for layer in convert(model, calibration=FEEDS, target_bits=target).report.layers]


def test_bits_go_where_the_output_needs_them(make_model):
    assert schemes(make_model, 2.125) == ["ternary N=64"] * 2
    assert schemes(make_model, 8) == ["int8"] * 2
    found = schemes(make_model, 3.2)
    assert sorted(found) == ["ternary N=64", "tied N=64"]


def test_a_budget_that_cannot_be_met_says_what_could_be(make_model):
    with pytest.raises(ConfigError, match=r"target bits: found 2, wanted at least 2\.12 for this model"):
        schemes(make_model, 2)
    with pytest.raises(DataError, match="wanted some hundred samples to plan by"):
        convert(make_model(TEXT, WEIGHTS), target_bits=3, activations="none")
    for options in ({"target_bits": 0}, {"target_bits": True}, {"target_bits": 3, "weights": "tied"}):
        with pytest.raises(ConfigError, match="target_bits: found"):
            convert(make_model(TEXT, WEIGHTS), calibration=FEEDS, **options)
