"""The recipes as their modules register them, and the rows that they propose for correlated inputs."""

import importlib.util
from itertools import pairwise

import numpy as np
import pytest

from fgq.config import Recipe, Step
from fgq.errors import ConfigError
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.recipes.problem import Problem
from fgq.recipes.registered import RegisteredRecipe, load_recipe
from fgq.recipes.rows import Grouping, nearest

M, K = 6, 24


def problem(**scheme):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * K, K)) @ rng.standard_normal((K, K))
    hessian = x.T @ x / len(x) + 0.1 * np.eye(K)
    made = WeightScheme(**{"group_size": 4} | scheme)
    return Problem(hessian=hessian, target=rng.laplace(size=(M, K))), Grouping.of(made, 1, K), made


def costs(recipe, without=(), **scheme):
    """Return what the proposals miss, as inputs weigh it, and the nearest rows before them."""
    given, grouping, made = problem(**scheme)
    start = nearest(given.target, made, grouping, None)

    def cost(rows):
        lost = rows.weights(grouping) - given.target
        return float(np.einsum("mk,kj,mj->", lost, given.hessian, lost))

    proposed = load_recipe(recipe).propose(given, grouping, made, None, without)
    return cost(start), [cost(rows) for rows in proposed]


@pytest.mark.parametrize("recipe", Recipe)
def test_each_name_has_a_recipe(recipe):
    found = load_recipe(recipe)
    assert isinstance(found, RegisteredRecipe)
    assert load_recipe(recipe) is found
    assert type(found).__module__ == f"fgq.recipes.registered.{recipe}"
    assert found.needs_data == (recipe is not Recipe.FGQ)


def test_the_paper_s_own_proposes_nothing_beyond_the_nearest():
    assert costs(Recipe.FGQ)[1] == []


def test_calibrated_begins_with_the_nearest_and_descends():
    start, found = costs(Recipe.CALIBRATED)
    assert found[0] == start
    assert len(found) == 5
    assert found[-1] < 0.8 * start
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(found[1:]))


@pytest.mark.parametrize(
    ("without", "count"), [((Step.FEEDBACK,), 4), ((Step.DESCENT,), 2), ((Step.FEEDBACK, Step.DESCENT), 1)]
)
def test_steps_can_be_left_out(without, count):
    assert len(costs(Recipe.CALIBRATED, without)[1]) == count


def test_rows_without_group_scales_are_the_nearest():
    start, found = costs(Recipe.CALIBRATED, codes=Codes.INT8, group_size=64)
    assert found == [start]


@pytest.mark.parametrize(("codes", "count"), [(Codes.INT4, 4), (Codes.INT8, 3)])
def test_omse_fits_scales_under_the_inputs(codes, count):
    start, found = costs(Recipe.OMSE, codes=codes)
    assert found[0] == start
    assert len(found) == count
    assert found[-1] < start
    assert len(costs(Recipe.OMSE, (Step.DESCENT,), codes=codes)[1]) == (2 if codes is Codes.INT8 else 1)


def test_reconstruct_starts_from_calibrated_and_wants_pytorch(monkeypatch):
    found = load_recipe(Recipe.RECONSTRUCT)
    assert (found.starts_from, found.batch) == (Recipe.CALIBRATED, 8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"recipe reconstruct: found no PyTorch.*fgq\[train\]"):
        found.check()
