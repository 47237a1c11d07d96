"""Whole conversions by targets, by a measured loss, and by a plan given back."""

import json

import numpy as np
import pytest

from fgq import convert
from fgq.errors import ConfigError, DataError
from fgq.plan import PlannedLayer, read_plan
from fgq.plan.options import memory_bits
from fgq.plan.plan_file import Plan, plan_of
from fgq.plan.tradeoffs import Tradeoffs
from fgq.quantization.scheme import Codes, WeightScheme


def test_bits_in_memory_are_codes_and_a_share_of_alpha():
    assert memory_bits(WeightScheme(group_size=64), 640) == 2.125
    assert memory_bits(WeightScheme(codes=Codes.TIED, group_size=4), 640) == 6
    assert memory_bits(WeightScheme(group_size=64), 10) == 2.8
    assert memory_bits(WeightScheme(codes=Codes.INT8), 640) == 8
    assert memory_bits(None, 640) == 32


TEXT = """(float[N,64] x) => (float[N,64] y) {
    a = MatMul(x, small)
    b = Relu(a)
    c = MatMul(b, large)
    y = Add(c, x)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"small": normal(64, 64), "large": 30 * normal(64, 64)}
FEEDS = {"x": normal(80, 64)}


@pytest.fixture
def model(make_model):
    return make_model(TEXT, WEIGHTS)


def report(model, **options):
    return convert(model, calibration=FEEDS, **options).report


def schemes(model, **targets):
    return [layer.scheme for layer in report(model, **targets).layers]


def test_bits_go_where_the_output_needs_them(model):
    assert schemes(model, target_bits=2.125) == ["ternary N=64"] * 2
    assert schemes(model, target_bits=8) == ["int8"] * 2
    mixed = report(model, target_bits=3.2)
    assert sorted(layer.scheme for layer in mixed.layers) == ["int4 N=64", "ternary N=64"]
    assert mixed.plan["takes"]["bits"] == 3.125
    assert mixed.held_out.samples == 16
    assert mixed.held_out.measure == "relative squared error"


def test_a_layer_may_stay_float_and_counts(model):
    found = report(model, target_bits=20)
    assert sorted(layer.scheme for layer in found.layers) == ["float", "int8"]
    assert next(layer for layer in found.layers if not layer.is_converted).shape == (64, 64)
    assert found.bits_per_weight > 20  # 32 and 8, and row scales
    with pytest.raises(ConfigError, match="found every layer float, wanted at least one to convert"):
        report(model, target_bits=32)


def test_multiplications_that_are_left(model):
    found = report(model, target_multiplications=0.6)
    assert 1 - found.multiplications_removed == pytest.approx(found.plan["takes"]["multiplications"])
    assert found.plan["takes"]["multiplications"] == (1 + 1 / 64) / 2
    both = report(model, target_multiplications=1 / 64, target_bits=4.2)
    assert [layer.scheme for layer in both.layers] == ["tied N=64"] * 2
    with pytest.raises(ConfigError, match=r"target multiplications: found 0.01, wanted at least 0.02"):
        report(model, target_multiplications=0.01)


def test_targets_that_cannot_be_kept_together():
    tradeoffs = Tradeoffs(
        names=["layer"],
        options=[[WeightScheme(), None]],
        costs=[np.array([1.0, 0.0])],
        takes={"bits": [np.array([2.0, 8.0])], "latency": [np.array([3.0, 1.0])]},
        units={"bits": 1.0, "latency": 2.0},
        measure="",
    )
    assert tradeoffs.plan({"bits": 3, "latency": 2}).takes == {"bits": 2, "latency": 1.5}
    assert tradeoffs.plan({"latency": 1}).layers["layer"].scheme is None
    with pytest.raises(ConfigError, match="target bits 3 and target latency 1: found no plan that keeps all"):
        tradeoffs.plan({"bits": 3, "latency": 1})
    assert tradeoffs.curve({"latency": 1}) == []  # but for the one that leaves all float
    assert len(tradeoffs.curve({"latency": 2})) == 1


def test_targets_that_cannot_be(model):
    with pytest.raises(ConfigError, match=r"target bits: found 2, wanted at least 2\.12 for this model"):
        report(model, target_bits=2)
    with pytest.raises(DataError, match="wanted some hundred samples to plan by"):
        convert(model, target_bits=3, activations="none")
    names = ("target_bits", "target_multiplications", "target_latency", "max_drop")
    for name in names:
        for value in (-1, True, "3", float("nan"), float("inf")):
            with pytest.raises(ConfigError, match=f"{name}: found .*, wanted a"):
                report(model, **{name: value})
        for other in ({"weights": "tied"}, {"recipe": "omse"}):
            with pytest.raises(ConfigError, match=f"{name}: found 1 for"):
                report(model, **{name: 1}, **other)
    for name in names[:3]:
        with pytest.raises(ConfigError, match=f"{name}: found 0, wanted a positive number"):
            report(model, **{name: 0})


def test_samples_to_measure_on(model):
    held_out = {"x": normal(30, 64)}
    assert report(model, target_bits=3, held_out=held_out).held_out.samples == 30
    assert report(model, held_out=held_out).held_out.samples == 30
    assert report(model).held_out is None
    few = convert(model, calibration={"x": normal(3, 64)}, target_bits=3).report
    assert any("the plan was not measured" in warning for warning in few.warnings)
    with pytest.raises(DataError, match="held-out data: found too few samples to set any aside"):
        convert(model, calibration={"x": normal(3, 64)}, max_drop=1)


@pytest.fixture(scope="module")
def classifier(make_model):
    text = """(float[N,64] x) => (float[N,10] y) {
        a = MatMul(x, v)
        b = Relu(a)
        c = MatMul(b, u)
        y = MatMul(c, w)
    }"""
    weights = {"v": normal(64, 96), "u": normal(96, 32), "w": normal(32, 10)}
    return make_model(text, weights)


@pytest.fixture(scope="module")
def data(classifier, run):
    x = np.random.default_rng(5).standard_normal((600, 64)).astype(np.float32)
    return {"x": x, "labels": run(classifier, {"x": x})[0].argmax(axis=1)}


@pytest.fixture(scope="module")
def losses(classifier, data):
    found = {}
    for most in (1, 6, 60):
        report = convert(classifier, calibration=data, max_drop=most, recipe="fgq").report
        assert report.held_out.measure == "top-1"
        assert report.held_out.loss.value <= most
        found[most] = report
    return found


def test_a_looser_one_takes_fewer_bits(losses):
    bits = [losses[most].plan["takes"]["bits"] for most in (1, 6, 60)]
    assert bits[0] > bits[1] > bits[2]
    assert [layer.scheme for layer in losses[60].layers] == ["ternary N=64"] * 2 + ["int8"]


def test_room_for_a_greater_loss_is_told(losses):
    check = losses[1].held_out
    assert check.loss.high > 1
    assert any("leave room for a loss of" in warning for warning in losses[1].warnings)


def test_an_impossible_one_says_what_was_reached(classifier, data):
    with pytest.raises(
        ConfigError, match=r"max drop: found a loss of .* points .* at best .*wanted at most 0"
    ):
        convert(classifier, calibration=data, max_drop=0, target_bits=2.5, recipe="fgq")


def test_its_plan_gives_the_same_file(classifier, data):
    found = convert(classifier, calibration=data, max_drop=6, recipe="fgq")
    again = convert(classifier, calibration=data, plan=plan_of(found.report.plan), recipe="fgq")
    assert again.model.SerializeToString() == found.model.SerializeToString()
    assert again.report.held_out == found.report.held_out


def test_a_plan_gives_the_same_file(model, tmp_path):
    found = convert(model, calibration=FEEDS, target_bits=3.2)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found.report.plan))
    again = convert(model, calibration=FEEDS, plan=read_plan(path))
    assert again.model.SerializeToString() == found.model.SerializeToString()
    assert again.report.layers == found.report.layers
    assert again.report.plan == found.report.plan


def test_a_plan_by_hand_needs_no_data(model):
    names = [layer.name for layer in convert(model, activations="none").report.layers]
    layers = {
        names[0]: PlannedLayer(scheme=None),
        names[1]: PlannedLayer(scheme=WeightScheme(group_size=16)),
    }
    report = convert(model, plan=Plan(layers=layers), activations="none").report
    assert [layer.scheme for layer in report.layers] == ["float", "ternary N=16"]

    def refused(message, **changed):
        with pytest.raises(ConfigError, match=message):
            convert(model, plan=Plan(layers=layers | changed), activations="none")

    refused("plan: found the layer 'other', which the model lacks", other=PlannedLayer(scheme=None))
    refused("plan: found every layer float", **{names[1]: PlannedLayer(scheme=None)})
    with pytest.raises(
        ConfigError, match=f"plan: found no entry for '{names[1]}', wanted one for every layer"
    ):
        convert(model, plan=Plan(layers={names[0]: layers[names[0]]}), activations="none")
    with pytest.raises(ConfigError, match="plan: found one, and targets to make one by"):
        convert(model, plan=Plan(layers=layers), calibration=FEEDS, target_bits=3)
    with pytest.raises(
        ConfigError, match=f"plan: found ternary N=16 for '{names[1]}', wanted float: excluded"
    ):
        convert(model, plan=Plan(layers=layers), activations="none", exclude=f"^{names[1]}$")
