"""Steps on real values: what is recognised, and that it computes what onnxruntime does."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.format.shapes import InferShapes
from fgq.runtime.steps.floats import read_gelu, read_layer_norm, read_softmax

ROOT = {"root": np.float32(np.sqrt(2)), "inverse": np.float32(np.sqrt(0.5)), "half": np.float32([0.5])}
ROOT |= {"one": np.float32(1), "near": np.float32(1.41), "s": np.float32(0.02), "z": np.uint8(9)}
QUANTIZERS = {"low": np.float32(-0.1), "high": np.float32(1)}

GELU = "(float[N,M] x) => (float y) {{ {} }}"
GELUS = {
    "x * (1 + erf) * half": "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)",
    "half * (..)": "a = Mul(x, inverse)  b = Erf(a)  c = Add(one, b)  d = Mul(c, x)  y = Mul(half, d)",
    "(half * x) * (..)": "h = Mul(half, x)  a = Div(x, root)  b = Erf(a)  c = Add(b, one)  y = Mul(h, c)",
    "x * (half * (..))": "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(c, half)  y = Mul(d, x)",
    "operator": "y = Gelu(x)",
    "operator with tanh": 'y = Gelu<approximate="tanh">(x)',
}


def found(model, read):
    """Return what a reader makes of the nodes of a model."""
    model = ir.from_proto(model)
    InferShapes()(model)
    return [step for node in model.graph if (step := read(node)) is not None]


def read_softmax_of_today(node):
    return read_softmax(node, 20)


def model_of(make_model, text, weights):
    return make_model(text, weights, opset=20, ir_version=9)


@pytest.mark.parametrize("body", GELUS.values(), ids=GELUS)
def test_gelu_in_every_way_of_writing_it(make_model, run, compute, body):
    model = model_of(make_model, GELU.format(body), ROOT)
    (step,) = found(model, read_gelu)
    assert ([value.name for value in step.sources], step.result.name) == (["x"], "y")
    x = np.random.default_rng(0).normal(0, 3, (7, 33)).astype(np.float32)
    # 3e-7 of x each, as tests/kernels/simd/test_functions.py says of ours
    np.testing.assert_allclose(compute(step, x), run(model, {"x": x})[0], 0, 6e-7 * np.abs(x).max())
    np.testing.assert_array_equal(compute(step, x, threads=3), compute(step, x))
    assert compute(step, x[:1, :1]).shape == (1, 1)


@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize(
    "behind", ["y = QuantizeLinear(r, s, z)", "c = Clip(r, low, high)  y = QuantizeLinear(c, s, z)"]
)
def test_gelu_and_the_quantizer_behind_it(make_model, run, compute, behind, form):
    text = f'(float[N,M] x) => (uint8 y) {{ r = Gelu<approximate="{form}">(x)  {behind} }}'
    model = model_of(make_model, text, ROOT | QUANTIZERS)
    (step,) = found(model, read_gelu)
    assert (step.result.name, step.dtype) == ("y", np.uint8)
    x = np.random.default_rng(1).normal(0, 2, (40, 50)).astype(np.float32)
    ours, theirs = compute(step, x), run(model, {"x": x})[0]
    # a value that rounds otherwise may lie on the other side of a tie
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.mean(ours != theirs) < 0.002


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, near)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)",
        "a = Div(x, root)  b = Erf(a)  c = Add(b, half)  d = Mul(x, c)  y = Mul(d, half)",
        "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, one)",
        "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(a, c)  y = Mul(d, half)",
        "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  e = Mul(d, half)  y = Add(e, c)",
        "a = Div(x, root)  b = Erf(a)  c = Sub(b, one)  d = Mul(x, c)  y = Mul(d, half)",
        "h = Mul(one, x)  a = Div(x, root)  b = Erf(a)  c = Add(b, one)  y = Mul(h, c)",
        'y = Gelu<approximate="relu">(x)',
        "y = Erf(x)",
    ],
    ids=["root", "one", "half", "of another value", "read twice", "Sub", "whole", "another form", "Erf"],
)
def test_what_is_no_gelu(make_model, body):
    assert not found(model_of(make_model, GELU.format(body), ROOT), read_gelu)


NORM = "(float[N,T,12] x) => (float y{more}) {{ y{more} = LayerNormalization<{attributes}>(x{operands}) }}"


def norms(rng):
    return {name: rng.normal(1, 0.5, 12).astype(np.float32) for name in ("g", "b")}


@pytest.mark.parametrize(
    ("attributes", "operands"),
    [("axis=-1", ", g, b"), ("axis=2", ", g, b"), ("axis=-1, epsilon=0.1", ", g, b"), ("axis=-1", ", g")],
)
def test_layer_norm(make_model, run, compute, attributes, operands):
    rng = np.random.default_rng(2)
    text = NORM.format(attributes=attributes, operands=operands, more="")
    model = model_of(make_model, text, norms(rng))
    (step,) = found(model, read_layer_norm)
    x = rng.normal(2, 3, (3, 5, 12)).astype(np.float32)
    x[0, 0] = 7  # no variance
    # sums of 12 numbers in another order, and a root
    np.testing.assert_allclose(compute(step, x), run(model, {"x": x})[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("attributes", "operands", "more"),
    [("axis=1", ", g, b", ""), ("axis=-1", ", b", ", mean"), ("axis=-1", ", computed", "")],
    ids=["two axes", "the mean too", "computed weights"],
)
def test_what_is_no_such_layer_norm(make_model, attributes, operands, more):
    text = NORM.format(attributes=attributes, operands=operands, more=more)
    if more:
        text = text.replace("float y, mean)", "float y, float mean)")
    if "computed" in operands:
        text = text.replace("{ y", "{ computed = ReduceMax<keepdims=0>(x, axes)  y")
    weights = norms(np.random.default_rng(0)) | {"axes": np.array([0, 1])}
    if attributes == "axis=1":
        weights = {name: np.ones((4, 12), np.float32) for name in ("g", "b")}
        text = text.replace("N,T", "N,4")
    assert not found(model_of(make_model, text, weights), read_layer_norm)


SOFTMAX = "(float[N,H,T,20] x, float[N,H,T,20] whole, float[N,1,1,20] mask) => (float y) {{ {} }}"
FACTORS = {
    "eighth": np.float32(0.125),
    "eight": np.float32([8]),
    "three": np.float32(3),
    "zero": np.float32(0),
}


@pytest.mark.parametrize(
    ("body", "sources"),
    [
        ("y = Softmax(x)", ["x"]),
        ("y = Softmax<axis=3>(x)", ["x"]),
        ("a = Mul(x, eighth)  y = Softmax(a)", ["x"]),
        ("a = Div(x, eight)  y = Softmax(a)", ["x"]),
        ("a = Div(x, three)  y = Softmax(a)", ["a"]),  # its inverse rounds
        ("a = Mul(x, zero)  y = Softmax(a)", ["a"]),
        ("a = Add(x, mask)  y = Softmax(a)", ["x", "mask"]),
        ("a = Add(mask, x)  y = Softmax(a)", ["x", "mask"]),
        ("a = Add(x, whole)  y = Softmax(a)", ["x", "whole"]),
        ("a = Mul(x, eighth)  b = Add(a, mask)  y = Softmax(b)", ["x", "mask"]),
        ("a = Add(x, three)  y = Softmax(a)", ["a"]),
        ("a = Add(x, mask)  b = Softmax(a)  y = Add(a, b)", ["a"]),  # the sum is read twice
    ],
)
def test_softmax(make_model, run, compute, body, sources):
    model = model_of(make_model, SOFTMAX.format(body), FACTORS)
    (step,) = found(model, read_softmax_of_today)
    assert [value.name for value in step.sources] == sources
    rng = np.random.default_rng(3)
    feeds = {name: rng.normal(0, 3, (2, 3, 4, 20)).astype(np.float32) for name in ("x", "whole")}
    feeds["mask"] = np.where(rng.random((2, 1, 1, 20)) < 0.3, np.float32(-1e4), np.float32(0))
    if "a" not in sources:  # what comes before it is left to others otherwise
        (theirs,) = run(model, feeds)
        # twenty exponentials and their sum; probabilities below 1e-30 may be 0
        np.testing.assert_allclose(compute(step, *(feeds[name] for name in sources)), theirs, 1e-6, 1e-30)


@pytest.mark.parametrize("body", ["y = Softmax<axis=1>(x)", "y = LogSoftmax(x)"])
def test_what_is_no_such_softmax(make_model, body):
    assert not found(model_of(make_model, SOFTMAX.format(body), FACTORS), read_softmax_of_today)
