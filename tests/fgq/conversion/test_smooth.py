"""Channels of very different size are evened out, others are not, and the network gives what it gave."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.config import ConversionConfig
from fgq.conversion.smooth import smooth
from fgq.converters.float_layers import find_layers
from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model
from fgq.converters.select import choose_schemes

GRAPH = """(float[N,32] x) => (float y) {
    a = Add(x, shift)
    n = LayerNormalization(a, gain, zero)
    m = MatMul(n, w)
    y = Identity(m)
}"""


def encoder(make_model, gain):
    rng = np.random.default_rng(0)
    weights = {
        "shift": np.zeros(32, np.float32),
        "zero": np.zeros(32, np.float32),
        "gain": gain.astype(np.float32),
        "w": rng.standard_normal((32, 64)).astype(np.float32),
    }
    model = read_float_model(make_model(GRAPH, weights))
    prepare(model)
    return model


def feeds(count, rows=64):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((rows, 32)).astype(np.float32)} for _ in range(count)]


def smoothed(model, data, **options):
    config = ConversionConfig(recipe="omse", group_size=8, first_last_int8=False, **options)
    choices = choose_schemes(model, find_layers(model), config)
    return smooth(model, choices, data, lambda done, total: None)


OUTLIERS = np.where(np.arange(32) % 8 == 0, 40.0, 1.0)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("activations", ["int8", "int4"])
def test_outlying_channels_are_evened_out(make_model, run, count, activations):
    model, data = encoder(make_model, OUTLIERS), feeds(count)
    before = run(ir.to_proto(model), data[0])[0]
    (choice,) = smoothed(model, data, activations=activations)
    assert "input scaled by channel in " in choice.note
    np.testing.assert_array_equal(before, run(ir.to_proto(model), data[0])[0])
    gain = next(node for node in model.graph if node.op_type == "LayerNormalization").inputs[1]
    left = np.abs(gain.const_value.numpy())
    assert left.max() / left.min() <= 40 / 2


def test_even_channels_stay_as_they_are(make_model):
    model = encoder(make_model, np.ones(32))
    (choice,) = smoothed(model, feeds(4), activations="int8")
    assert choice.note == ""


def test_dead_channels_keep_their_scale(make_model, run):
    gain = OUTLIERS.copy()
    gain[1:4] = 0
    model, data = encoder(make_model, gain), feeds(3)
    before = run(ir.to_proto(model), data[0])[0]
    (choice,) = smoothed(model, data, activations="int4")
    assert choice.note
    np.testing.assert_array_equal(before, run(ir.to_proto(model), data[0])[0])


def test_one_position_decides_nothing(make_model):
    model = encoder(make_model, OUTLIERS)
    (choice,) = smoothed(model, feeds(1, rows=1), activations="int4")
    assert choice.note == ""


def test_the_same_data_give_the_same_scales(make_model):
    models = [encoder(make_model, OUTLIERS) for _ in range(2)]
    for model in models:
        smoothed(model, feeds(5), activations="int4")
    first, second = (model.graph for model in models)
    for one, two in zip(first, second, strict=True):
        for left, right in zip(one.inputs, two.inputs, strict=True):
            if left is not None and left.const_value is not None:
                np.testing.assert_array_equal(left.const_value.numpy(), right.const_value.numpy())


def test_a_few_huge_positions_do_not_speak_for_the_others(make_model):
    """All but a few positions are lost beside those, whose error alone the scales would lower."""
    weights = {"w": np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)}
    weights["shift"] = np.zeros(32, np.float32)
    model = read_float_model(
        make_model(
            "(float[N,32] x) => (float y) { a = Add(x, shift) m = MatMul(a, w) y = Identity(m) }", weights
        )
    )
    prepare(model)
    data = feeds(6)
    for feed in data:
        feed["x"] *= OUTLIERS.astype(np.float32)
        feed["x"][::32] *= 1e5
    (choice,) = smoothed(model, data, activations="int4")
    assert choice.note == ""
