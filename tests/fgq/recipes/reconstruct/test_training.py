"""When held-out samples find a result worse."""

import importlib

import numpy as np
import pytest

pytest.importorskip("torch")
training = importlib.import_module("fgq.recipes.reconstruct.training")


def errors(*columns):
    return np.array(columns, np.float64).T


def test_errors_of_each_sample_and_output():
    y, z = np.arange(6.0).reshape(2, 3), np.ones((2, 1, 2))
    found = training.squared_errors([(y + 1, y), (z, z - [[[2.0, 0.0]], [[0.0, 1.0]]])])
    np.testing.assert_array_equal(found, [[3.0, 4.0], [3.0, 1.0]])


def test_outputs_of_other_first_axes_count_as_one_sample():
    y, z = np.zeros((2, 3)), np.zeros((6, 1))
    np.testing.assert_array_equal(training.squared_errors([(y + 1, y), (z + 2, z)]), [[6.0, 24.0]])


def test_a_number_is_one_sample():
    np.testing.assert_array_equal(training.squared_errors([(np.float32(3), np.float32(1))]), [[4.0]])


@pytest.mark.parametrize(
    ("found", "before", "worse"),
    [
        (errors([1.0, 1.0, 1.0]), errors([1.0, 1.0, 1.0]), False),
        (errors([1.1, 1.1, 1.1]), errors([1.0, 1.0, 1.0]), True),
        (errors([0.5, 1.4, 1.3]), errors([1.0, 1.0, 1.0]), False),  # more by 0.2, and by chance 0.85
        (errors([1.4, 1.5, 1.3]), errors([1.0, 1.0, 1.0]), True),
        (errors([1.01]), errors([1.0]), True),
        (errors([0.99]), errors([1.0]), False),
        (errors([0.0, 0.0]), errors([0.0, 0.0]), False),
        (errors([np.nan, 1.0]), errors([1.0, 1.0]), True),
    ],
)
def test_worse_by_more_than_chance(found, before, worse):
    assert training.is_worse(found, before) == worse


def test_outputs_count_by_their_own_errors():
    """A small output's doubled error outweighs one of a hundredth less at a large one."""
    before = errors([100.0] * 4, [0.1] * 4)
    assert training.is_worse(errors([99.0] * 4, [0.2] * 4), before)
    assert not training.is_worse(errors([101.0] * 4, [0.05] * 4), before)
