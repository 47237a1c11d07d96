"""Bounds between a layer and its quantizer, absorbed into the integers that the layer writes."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq import Session
from fgq.runtime.layers import find_integer_layers

LAYER = """(uint8[N,8] x) => (uint8 y) {{
    a = DequantizeLinear(x, s, zx)
    w = DequantizeLinear<axis=1>(w8, r, zw)
    b = MatMul(a, w)
    {bounds}
    {quantize}
}}"""
RNG = np.random.default_rng(0)
WEIGHTS = {
    "s": np.float32(0.1),
    "zx": np.uint8(7),
    "zy": np.uint8(100),
    "w8": RNG.integers(-127, 128, (8, 5)).astype(np.int8),
    "r": RNG.uniform(0.001, 0.01, 5).astype(np.float32),
    "zw": np.zeros(5, np.int8),
    "m2": np.float32(-2),
    "m1": np.float32(-1),
    "one": np.float32(1),
    "two": np.float32(2),
    "q0": np.uint8(0),
    "q15": np.uint8(15),
    "q90": np.uint8(90),
}
EIGHT = "y = QuantizeLinear(c, s, zy)"
FOUR = "q = QuantizeLinear(c, s, zx)\n y = Clip(q, q0, q15)"


def model_of(make_model, bounds, quantize=EIGHT):
    return make_model(LAYER.format(bounds=bounds, quantize=quantize), WEIGHTS)


def layer_of(model):
    (layer,) = find_integer_layers(ir.from_proto(model).graph)
    return layer


@pytest.mark.parametrize(
    ("bounds", "quantize", "expected"),
    [
        ("c = Relu(b)", EIGHT, (100, 255)),
        ("c = Clip(b, m1, two)", EIGHT, (90, 120)),
        ("c = Clip(b, , two)", EIGHT, (0, 120)),
        ("c = Clip(b, m1)", EIGHT, (90, 255)),
        ("c = Clip(b)", EIGHT, (0, 255)),
        ("d = Relu(b)\n c = Clip(d, , one)", EIGHT, (100, 110)),
        ("d = Clip(b, m2, m1)\n c = Relu(d)", EIGHT, (100, 100)),
        ("d = Clip(b, one, two)\n c = Clip(d, m2, m1)", EIGHT, (90, 90)),
        ("c = Relu(b)", FOUR, (7, 15)),
        ("c = Clip(b, m2, one)", FOUR, (0, 15)),
        ("d = Relu(b)\n c = Clip(d, , m1)", EIGHT, (90, 90)),
    ],
)
def test_bounds(make_model, run, bounds, quantize, expected):
    model = model_of(make_model, bounds, quantize)
    layer = layer_of(model)
    assert layer.result.name == "y"
    assert (layer.requantization.lowest, layer.requantization.highest) == expected
    x = RNG.integers(0, 256, (200, 8)).astype(np.uint8)
    (ours,), (theirs,) = Session(model.SerializeToString()).run(None, {"x": x}), run(model, {"x": x})
    # onnxruntime keeps some of these bounds and computes the product in float: one step at most.
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.mean(ours != theirs) < 0.01


@pytest.mark.parametrize(
    "bounds",
    [
        "c = Tanh(b)",
        "d = ReduceMax<keepdims=0>(a)\n c = Clip(b, d, two)",
        "d = Neg(b)\n c = Add(b, d)",
        "d = Relu(b)\n e = Neg(d)\n c = Add(d, e)",
    ],
)
def test_results_that_stay_float(make_model, run, bounds):
    model = model_of(make_model, bounds)
    layer = layer_of(model)
    assert layer.requantization is None
    assert layer.result.name == "b"
    x = RNG.integers(0, 256, (50, 8)).astype(np.uint8)
    (ours,), (theirs,) = Session(model.SerializeToString()).run(None, {"x": x}), run(model, {"x": x})
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("s", np.full(8, 0.1, np.float32)),  # a scale for each channel of the activations
        ("zw", np.ones(5, np.int8)),  # weights with a zero point
    ],
)
def test_foreign_layers_are_left_to_onnxruntime(make_model, name, value):
    weights = WEIGHTS | {name: value}
    text = LAYER.format(bounds="", quantize="y = QuantizeLinear(b, one, zy)")
    assert not find_integer_layers(ir.from_proto(make_model(text, weights)).graph)


def test_int8_activations_are_held_as_the_uint8_above_them(make_model, run):
    weights = WEIGHTS | {"zx": np.int8(7), "zy": np.int8(-28)}
    text = LAYER.format(bounds="c = Relu(b)", quantize=EIGHT).replace("uint8", "int8")
    model = make_model(text, weights)
    layer = layer_of(model)
    assert layer.activation.zero_point == 135
    assert (layer.requantization.lowest, layer.requantization.highest) == (100, 255)
    x = RNG.integers(-128, 128, (50, 8)).astype(np.int8)
    (ours,), (theirs,) = Session(model.SerializeToString()).run(None, {"x": x}), run(model, {"x": x})
    assert ours.dtype == np.int8
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # as above
