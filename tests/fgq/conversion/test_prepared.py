"""What the first stage finds and refuses."""

import numpy as np
import pytest

from fgq.config import ConversionConfig
from fgq.conversion import prepared
from fgq.conversion.context import Context
from fgq.conversion.prepared import prepare
from fgq.errors import ConfigError, DataError, ModelError, WeightError
from fgq.plan import Plan

TEXT = "(float[N,8] x) => (float y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }"


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def weights(**given):
    return {"v": normal(8, 8), "w": normal(8, 8)} | given


@pytest.fixture
def model(make_model):
    return make_model(TEXT, weights())


def context(samples=None, **options):
    data = None if samples is None else {"x": normal(samples, 8)}
    return Context(config=ConversionConfig(**options), calibration=data)


def test_layers_are_found_once(model, monkeypatch):
    calls = []
    find = prepared.find_layers
    monkeypatch.setattr(prepared, "find_layers", lambda graph: calls.append(graph) or find(graph))
    found = prepare(model, context(40))
    assert calls == [found.model]
    assert [choice.layer.op_type for choice in found.choices] == ["MatMul", "MatMul"]
    assert found.float_bytes == 2 * 8 * 8 * 4


def test_a_copy_has_a_model_and_layers_of_its_own(model):
    given = context(40)
    found = prepare(model, given)
    copy = found.copy(given.config)
    assert copy.model is not found.model
    names = [[choice.layer.name for choice in each.choices] for each in (found, copy)]
    assert names[0] == names[1]
    assert {choice.layer.node for choice in copy.choices} <= set(copy.model.graph)
    assert copy.feeds is found.feeds


@pytest.mark.parametrize(
    ("samples", "recipe", "lengths"),
    [
        (352, None, [32] * 11),
        (80, "reconstruct", [8] * 10),
        (40, None, [1] * 40),  # two batches would leave none to hold out
    ],
)
def test_batches(model, samples, recipe, lengths):
    if recipe == "reconstruct":
        pytest.importorskip("torch")
    found = prepare(model, context(samples, recipe=recipe))
    assert [len(feed["x"]) for feed in found.feeds] == lengths
    assert found.judge is None


def test_a_fifth_is_set_aside_where_schemes_are_planned(model):
    found = prepare(model, context(100, target_bits=5))
    assert sum(len(feed["x"]) for feed in found.feeds) == 80
    assert sum(len(feed["x"]) for feed, _ in found.judge.batches) == 20


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "for int8 activations; give .*, --activations int8-dynamic, or"),
        (
            {"recipe": "calibrated", "activations": "none"},
            "for the recipe calibrated; give .* or --recipe fgq",
        ),
        ({"target_bits": 3, "activations": "none"}, "wanted some hundred samples to plan by"),
    ],
)
def test_data_are_asked_for(model, options, found):
    with pytest.raises(DataError, match=found):
        prepare(model, context(**options))


def test_no_data_are_needed_for_weights_alone(model):
    found = prepare(model, context(activations="none", recipe="fgq"))
    assert found.feeds is None
    assert found.check.data == "random data"


def test_a_plan_and_targets_are_two_plans(model):
    given = context(40, target_bits=5)
    with pytest.raises(ConfigError, match="plan: found one, and targets to make one by"):
        prepare(model, Context(config=given.config, calibration=given.calibration, plan=Plan(layers={})))


def test_weights_that_are_no_numbers_are_named(make_model):
    broken = make_model(TEXT, weights(w=np.full((8, 8), np.nan, np.float32)))
    with pytest.raises(WeightError, match="weights: found 64 of 64 values NaN or infinite"):
        prepare(broken, context(40))


def test_a_model_without_layers_says_why(make_model):
    with pytest.raises(ModelError, match=r"found no layer to convert, wanted at least one \(no weights\)"):
        prepare(make_model("(float[N,8] x) => (float y) { y = Relu(x) }"), context(40))
