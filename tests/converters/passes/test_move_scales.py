"""Moved scales leave every output as it was, bit for bit, and go no further than this holds."""

import json
import re

import numpy as np
import onnx_ir as ir
import pytest

from fgq.converters.float_layers import Layer, find_layers
from fgq.converters.passes import prepare
from fgq.converters.passes.move_scales import MoveScales, find_readings, repeat_moves
from fgq.converters.reader import read_float_model
from fgq.errors import ModelError


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": normal(6, 4, 3, 3),
    "b": normal(6),
    "v": normal(5, 6, 3, 3),
    "depthwise": normal(6, 1, 3, 3),
    "q": normal(8, 6),
    "p": normal(6, 8),
    "t": normal(6, 5),
    "g": normal(6),
    "c": normal(6),
    "stack": normal(3, 6, 5),
    "left": normal(5, 7),
}
IMAGE, ROWS = (2, 4, 9, 9), (2, 7, 8)

# The graph, its input's shape, and for each tensor that can be scaled the number of constants before it, or
# None where it takes a Mul.
MODELS = {
    "convolutions": ("a = Conv(x, w, b) r = Relu(a) y = Conv(r, v)", IMAGE, {"r": 2}),
    "without bias": ("a = Conv(x, w) y = Conv(a, v)", IMAGE, {"a": 1}),
    "through pooling": (
        "a = Conv(x, w, b) r = Relu(a) m = MaxPool<kernel_shape=[2,2]>(r) y = Conv(m, v)",
        IMAGE,
        {"m": 2},
    ),
    "two convolutions read": (
        "a = Conv(x, w, b) d = Conv(a, v) e = Conv<strides=[2,2]>(a, v) f = ReduceMax(e) y = Add(d, f)",
        IMAGE,
        {"a": 2},
    ),
    "a residual reads too": (
        "a = Conv(x, w, b) d = Conv<pads=[1,1,1,1]>(a, v) s = ReduceMax(a) y = Add(d, s)",
        IMAGE,
        {},
    ),
    "a sigmoid between": ("a = Conv(x, w, b) r = Sigmoid(a) y = Conv(r, v)", IMAGE, {}),
    "depthwise": ("a = Conv(x, w, b) r = Relu(a) y = Conv<group=6>(r, depthwise)", IMAGE, {}),
    "normalization": ("a = MatMul(x, q) n = LayerNormalization(a, g, c) y = MatMul(n, p)", ROWS, {"n": 2}),
    "normalization without shift": (
        "a = MatMul(x, q) n = LayerNormalization(a, g) y = MatMul(n, p)",
        ROWS,
        {"n": 1},
    ),
    "normalization and residual": (
        "a = MatMul(x, q) n = LayerNormalization(a, g, c) d = MatMul(n, p) e = MatMul(n, t) "
        "k = MatMul(d, q) f = ReduceMax(e) h = Add(n, k) y = Add(h, f)",
        ROWS,
        {"n": None, "d": 1},
    ),
    "affine": ("m = MatMul(x, q) s = Mul(m, g) n = Add(s, c) y = MatMul(n, p)", ROWS, {"n": 2}),
    "product and bias": ("m = MatMul(x, q) n = Add(m, c) r = Relu(n) y = MatMul(r, p)", ROWS, {"r": 2}),
    "another function": ("m = MatMul(x, q) r = Tanh(m) y = MatMul(r, p)", ROWS, {"r": None}),
    "batched constant": (
        "m = MatMul(x, q) r = Tanh(m) k = Unsqueeze(r, one) y = MatMul(k, stack)",
        ROWS,
        {"k": None},
    ),
    "constant on the left": ("m = MatMul(x, q) y = MatMul(left, m)", ROWS, {}),
    "gemm": ("m = Gemm(x, q, c) r = Relu(m) y = Gemm<transB=1>(r, tt)", (2, 8), {"r": 2}),
    "an output": ("a = Conv(x, w, b) y = Relu(a) z = Conv(y, v)", IMAGE, {}),
}
WEIGHTS |= {"one": np.array([1]), "tt": normal(5, 6, seed=1)}


def prepared(make_model, name):
    body, shape, _ = MODELS[name]
    outputs = "(float y, float z)" if " z = " in body else "(float y)"
    dims = ",".join(["N", *map(str, shape[1:])])
    used = {key: WEIGHTS[key] for key in re.findall(r"\w+", body) if key in WEIGHTS}
    model = read_float_model(make_model(f"(float[{dims}] x) => {outputs} {{{body}}}", used))
    prepare(model)
    return model, [entry for entry in find_layers(model) if isinstance(entry, Layer)]


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_that_can_be_scaled_are_found(make_model, name):
    _, layers = prepared(make_model, name)
    found = {
        str(reading.tensor.name): None if reading.source is None else len(reading.source)
        for reading in find_readings(layers)
        if reading.tensor.name != "x"
    }
    assert found == MODELS[name][2]


@pytest.mark.parametrize("name", MODELS)
def test_powers_of_two_change_no_output(make_model, run, name):
    model, layers = prepared(make_model, name)
    x = normal(*MODELS[name][1])
    before = run(ir.to_proto(model), {"x": x})
    scales = {}
    for index, reading in enumerate(find_readings(layers)):
        count = reading.layers[0].shape[reading.layers[0].group_axis]
        exponents = np.random.default_rng(index).integers(-6, 7, count)
        scales[reading] = np.exp2(exponents).astype(np.float32)
    weights = [layer.weight_array.copy() for layer in layers]
    assert MoveScales(scales)(model).modified == bool(scales)
    after = run(ir.to_proto(model), {"x": x})
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)
    changed = [not np.array_equal(a, layer.weight_array) for a, layer in zip(weights, layers, strict=True)]
    assert any(changed) == bool(scales)


@pytest.mark.parametrize("name", MODELS)
def test_moves_are_repeated_from_what_a_file_tells(make_model, name):
    model, layers = prepared(make_model, name)
    scales = {}
    for index, reading in enumerate(find_readings(layers)[: 1 + len(name) % 2]):
        count = reading.layers[0].shape[reading.layers[0].group_axis]
        scales[reading] = np.exp2(np.random.default_rng(index).integers(-6, 7, count)).astype(np.float32)
    MoveScales(scales)(model)
    converted = ir.from_proto(ir.to_proto(model))
    again, layers_again = prepared(make_model, name)
    repeat_moves(again, converted)
    assert again.metadata_props == model.metadata_props
    for mine, theirs in zip(layers_again, layers, strict=True):
        np.testing.assert_array_equal(mine.weight_array, theirs.weight_array)
    other, _ = prepared(make_model, "an output")
    if scales:
        with pytest.raises(ModelError, match="wanted the model from which it was converted"):
            repeat_moves(other, converted)


RECORD = {"tensor": "n", "layers": ["m"], "exponents": "AAAAAAAA"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is not valid JSON"),
        ("3", "found 3, wanted a list"),
        ("{}", "found {}, wanted a list"),
        ("[" * 99_999, "is not valid JSON .maximum recursion"),
        ([{"tensor": "n"}], "0: layers: found nothing, wanted a value"),
        ([RECORD | {"layers": 3}], "0: layers: found 3, wanted a list"),
        ([RECORD | {"layers": []}], "0: layers: found 0 entries, wanted at least 1"),
        ([RECORD | {"layers": [["m"]]}], r"0: layers: 0: found \['m'\], wanted text"),
        ([RECORD | {"tensor": None}], "0: tensor: found None, wanted text"),
        ([RECORD | {"more": 1}], "0: found 'more', wanted tensor, layers, exponents alone"),
        ([RECORD | {"exponents": "é"}], "0: exponents: found 'é', wanted bytes in base 64"),
        ([RECORD | {"exponents": 3}], "0: exponents: found 3, wanted text"),
        ([RECORD | {"exponents": ""}], "'n': exponents: found 0 from 0 to 0, wanted 6 within"),
        ([RECORD | {"exponents": "AA=="}], "'n': exponents: found 1 from 0 to 0, wanted 6 within"),
        ([RECORD | {"exponents": "AAAAAAB/"}], "'n': exponents: found 6 from 0 to 127, wanted 6 within"),
        ([RECORD | {"exponents": "fn5+fn5+"}], "found scales that the float model.s weights overflow with"),
        ([RECORD, RECORD], "'n': found scales of its channels twice"),
        ([RECORD | {"tensor": "y"}], "'y': found scales of channels that no layer of the float model takes"),
        ([RECORD | {"tensor": "\ud800"}], "tensor: found .*, wanted text without halves"),
    ],
)
def test_metadata_that_are_no_scales_are_refused(make_model, metadata, message):
    weights = {"g": WEIGHTS["g"], "p": WEIGHTS["p"] * np.float32(1e4)}
    graph = "(float[N,6] x) => (float y) {n = LayerNormalization(x, g, g) y = MatMul(n, p)}"
    model = read_float_model(make_model(graph, weights))
    prepare(model)
    (layer,) = [entry for entry in find_layers(model) if isinstance(entry, Layer)]
    layer.node.name = "m"
    converted = model.clone()
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    converted.metadata_props["fgq.scaled"] = text
    with pytest.raises(ModelError, match=f"c.onnx: metadata fgq.scaled: .*{message}") as refused:
        repeat_moves(model, converted, "c.onnx")
    assert str(refused.value).startswith("c.onnx: metadata fgq.scaled")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_a_constant_that_others_share_stays_as_it_is(make_model, run):
    graph = """(float[N,8] x) => (float y) {
        a = MatMul(x, q) n = LayerNormalization(a, g, g) m = MatMul(n, p) s = MatMul(m, q) y = Add(s, g)
    }"""
    model = read_float_model(make_model(graph, {key: WEIGHTS[key] for key in "qgp"}))
    prepare(model)
    layers = [entry for entry in find_layers(model) if isinstance(entry, Layer)]
    (reading,) = [found for found in find_readings(layers) if found.tensor.name == "n"]
    before = run(ir.to_proto(model), {"x": normal(3, 8)})
    MoveScales({reading: np.array([1, 2, 4, 8, 0.5, 0.25], np.float32)})(model)
    np.testing.assert_array_equal(before[0], run(ir.to_proto(model), {"x": normal(3, 8)})[0])
