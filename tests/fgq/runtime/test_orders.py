"""Orders of axes, against NumPy's transposes."""

from itertools import permutations

import numpy as np
import pytest

from fgq.runtime.orders import after_transpose, between, channels_last, place_of, simplified

EVERY = list(permutations(range(3)))
X = np.arange(24).reshape(2, 3, 4)


def stored(value, order):
    return value if order is None else value.transpose(order)


@pytest.mark.parametrize("order", EVERY)
def test_a_transpose_moves_nothing(order):
    kept = simplified(order)
    for permutation in EVERY:
        made = after_transpose(kept, permutation)
        np.testing.assert_array_equal(stored(X.transpose(permutation), made), stored(X, kept))


@pytest.mark.parametrize("order", EVERY)
def test_from_any_order_into_any_other(order):
    kept = simplified(order)
    for other in EVERY:
        wanted = simplified(other)
        found = stored(X, kept).transpose(between(kept, wanted, 3))
        np.testing.assert_array_equal(found, stored(X, wanted))


@pytest.mark.parametrize("order", EVERY)
def test_where_an_axis_lies(order):
    for axis in (-3, -2, -1, 0, 1, 2):
        place = place_of(axis, simplified(order), 3)
        assert stored(X, simplified(order)).shape[place] == X.shape[axis]


def test_channels_last():
    assert channels_last(4) == (0, 2, 3, 1)
    assert channels_last(2) is None
    assert simplified((0, 1, 2)) is None
