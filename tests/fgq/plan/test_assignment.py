"""Assignments against all there are."""

import itertools

import numpy as np
import pytest

from fgq.plan.assignment import assign, totals


@pytest.mark.parametrize("budgets", [1, 2])
@pytest.mark.parametrize("seed", range(15))
def test_the_assignment_is_the_best_of_all(seed, budgets):
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(1, 4)) for _ in range(6)]
    costs = [rng.integers(0, 9, size).astype(float) for size in sizes]  # ties too
    limits = []
    for _ in range(budgets):
        takes = [rng.integers(1, 20, size).astype(float) for size in sizes]
        limits.append((takes, float(sum(each.min() for each in takes) + rng.integers(0, 30))))
    picked = assign(costs, limits)

    def keeps(options):
        return all(totals(takes, options) <= budget for takes, budget in limits)

    every = [options for options in itertools.product(*map(range, sizes)) if keeps(options)]
    if not every:
        assert picked is None
    else:
        assert keeps(picked)
        assert totals(costs, picked) == min(totals(costs, options) for options in every)


def test_costs_that_are_all_zero_take_what_fits():
    takes = [np.array([1.0, 5.0]), np.array([2.0, 3.0])]
    picked = assign([np.zeros(2), np.zeros(2)], [(takes, 4.0)])
    assert totals(takes, picked) <= 4


def test_small_differences_of_cost_count():
    costs = [np.array([1.0, 1e-4]), np.array([2e-6, 1e-6])]
    takes = [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    assert assign(costs, [(takes, 4.0)]) == [1, 1]
    assert assign(costs, [(takes, 3.0)]) == [1, 0]
