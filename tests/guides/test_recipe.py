"""The guide "A recipe" of CONTRIBUTING.md: one class in one file of `fgq/recipes/registered`."""

import sys

import numpy as np
import pytest

import fgq
from fgq.config import Recipe
from fgq.recipes import registered

MODULE = '''"""The recipe `swept`: one sweep of descent from the nearest rows."""

from fgq.recipes.codebook import Codebook
from fgq.recipes.descent import sweep
from fgq.recipes.registered import RegisteredRecipe
from fgq.recipes.rows import nearest


class Swept(RegisteredRecipe):
    """One sweep."""

    def propose(self, problem, grouping, scheme, least, without):
        """Propose the rows after a sweep."""
        rows = nearest(problem.target, scheme, grouping, least)
        yield sweep(problem, grouping, Codebook(scheme.max_code, scheme.alpha_limit), rows)
'''
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((16, 6)).astype(np.float32)
SAMPLES = (RNG.standard_normal((400, 16)) @ RNG.standard_normal((16, 16))).astype(np.float32)
TEXT = "(float[N,16] x) => (float y) { y = MatMul(x, w) }"


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """As a contributor would write it: `swept.py` beside the other recipes, and so a name of `Recipe`."""
    (tmp_path / "swept.py").write_text(MODULE)
    monkeypatch.setattr(registered, "__path__", [*registered.__path__, str(tmp_path)])
    member = str.__new__(Recipe, "swept")
    member._name_, member._value_ = "SWEPT", "swept"
    monkeypatch.setitem(Recipe._member_map_, "SWEPT", member)
    monkeypatch.setitem(Recipe._value2member_map_, "swept", member)
    yield member
    sys.modules.pop(f"{registered.__name__}.swept", None)
    registered._REGISTERED.pop(f"{registered.__name__}.swept", None)


def test_the_rows_that_it_proposes_are_taken(swept, make_model):
    options = {"calibration": {"x": SAMPLES}, "first_last_int8": False, "group_size": 4}
    model, report = fgq.convert(make_model(TEXT, {"w": WEIGHT}), recipe="swept", **options)
    assert report.options["recipe"] == "swept"
    (layer,) = report.layers
    assert layer.output_error < layer.nearest_output_error
    (found,) = fgq.Session(model.SerializeToString()).run(None, {"x": SAMPLES})
    exact = SAMPLES @ WEIGHT
    assert np.sum((found - exact) ** 2) < 0.3 * np.sum(exact**2)


def test_it_wants_data_as_others_do(swept, make_model):
    with pytest.raises(fgq.FgqError, match="wanted some hundred samples for the recipe swept"):
        fgq.convert(make_model(TEXT, {"w": WEIGHT}), recipe="swept")
