"""Pareto fronts against brute force, and the shares of curves."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgq.eval.pareto.front import front, shares

# A machine may be busy.
ANY_TIME = settings(
    derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
VALUES = st.integers(0, 6).map(float)


@ANY_TIME
@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_a_front_holds_the_points_that_no_other_dominates(points):
    def dominated(a, b):
        return b[0] <= a[0] and b[1] >= a[1] and a != b

    wanted = {i for i, a in enumerate(points) if not any(dominated(a, b) for b in points)}
    found = front([cost for cost, _ in points], [accuracy for _, accuracy in points])
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_a_curve_holds_the_costs_at_which_it_is_highest():
    # On a logarithmic axis from 1 to 100: only a is there up to 10, where b passes it.
    found = shares({"a": [(1.0, 0.5), (100.0, 0.5)], "b": [(10.0, 0.8)]})
    # One sample of the range is 1 / 2001 of it.
    assert found["a"] == pytest.approx(0.5, abs=1e-3)
    assert found["b"] == pytest.approx(0.5, abs=1e-3)


def test_accuracy_is_interpolated_over_the_logarithm_of_cost():
    # a rises from 0 to 1 over two decades and passes b's 0.5 in their middle.
    found = shares({"a": [(1.0, 0.0), (100.0, 1.0)], "b": [(1.0, 0.5)]})
    assert found["b"] == pytest.approx(0.5, abs=1e-3)


def test_a_dominated_point_does_not_lower_its_curve():
    found = shares({"a": [(1.0, 0.5), (10.0, 0.1), (100.0, 0.6)], "b": [(1.0, 0.4)]})
    assert found == {"a": 1.0, "b": 0.0}


def test_equal_curves_and_a_single_cost_divide_the_range():
    assert shares({"a": [(3.0, 0.5)], "b": [(3.0, 0.5)]}) == {"a": 0.5, "b": 0.5}
    assert shares({"a": [(3.0, 0.5)], "b": [(3.0, 0.6)]}) == {"a": 0.0, "b": 1.0}


@ANY_TIME
@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 1)), min_size=1),
        min_size=1,
    )
)
def test_shares_add_up_to_one(curves):
    found = shares(curves)
    # A sum of at most four means of 2001 samples.
    assert math.isclose(sum(found.values()), 1.0, rel_tol=1e-12)
