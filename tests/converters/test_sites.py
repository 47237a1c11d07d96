"""Where quantizers stand, told by the operators that onnxruntime makes of a converted model."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from fgq import Session, convert
from fgq.config import Activations

ON_INTEGERS = {
    *("QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool"),
    *("QLinearMatMul", "QGemm", "MaxPool", "NhwcMaxPool", "Clip", "Transpose", "Reshape", "Flatten"),
    *("ReorderInput", "ReorderOutput"),  # the blocked layout of some processors
}
"""Operators of an optimized model that read and write integers; QGemm alone may write floats."""

QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def batch_norm(rng, name, channels):
    """Return the parameters of a BatchNormalization, negative gains and a zero one among them."""
    gain = normal(rng, channels)
    gain[0] = 0
    parameters = {"g": gain, "s": normal(rng, channels), "m": normal(rng, channels)}
    return {f"{name}{key}": value for key, value in parameters.items()} | {
        f"{name}v": rng.uniform(0.5, 2, channels).astype(np.float32)
    }


def converted(model, feeds, **options):
    return convert(model, calibration=feeds, group_size=4, **options)


RESIDUAL = """(float[N,8,8,8] x) => (float y) {
    s = Conv<pads=[1,1,1,1]>(x, w0)
    sb = BatchNormalization(s, ng, ns, nm, nv)
    sr = Relu(sb)
    a = Conv<pads=[1,1,1,1]>(sr, w1, b1)
    ab = BatchNormalization(a, ng, ns, nm, nv)
    ar = Relu(ab)
    b = Conv<pads=[1,1,1,1]>(ar, w2)
    bb = BatchNormalization(b, ng, ns, nm, nv)
    c = Add(bb, sr)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    y = Gemm<transB=1>(f, w3, b3)
}"""


def residual_weights(rng):
    weights = {f"w{i}": normal(rng, 8, 8, 3, 3) for i in range(3)}
    weights |= {"b1": normal(rng, 8), "w3": normal(rng, 5, 8), "b3": normal(rng, 5)}
    return weights | batch_norm(rng, "n", 8)


@pytest.mark.parametrize("activations", [Activations.INT8, Activations.INT4])
def test_residual_block_is_integers_throughout(make_model, optimized, check_integers, rng, activations):
    model = make_model(RESIDUAL, residual_weights(rng))
    feeds = {"x": normal(rng, 8, 8, 8, 8)}
    result = converted(model, feeds, activations=activations)
    found = optimized(result.model)
    assert set(found) - QUANTIZERS <= ON_INTEGERS
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (3, 1, 1)
    # The residual keeps its 8 bits; its 4-bit reader quantizes it once more.
    assert found["QuantizeLinear"] == (1 if activations is Activations.INT8 else 2)
    check_integers(result.model, feeds)


JOINTS = {
    "MaxPool": "c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)",
    "AveragePool": "c = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)",
    "padding counted": "c = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(r)",
    "GlobalAveragePool": "c = GlobalAveragePool(r)",
    "Concat": "c = Concat<axis=1>(r, q)",
    "Concat of one tensor twice": "c = Concat<axis=1>(r, r)",
    "Concat along the width": "c = Concat<axis=3>(r, q)",
    "Add": "c = Add(r, q)",
    "Add to itself": "c = Add(r, r)",
    "Sum": "c = Sum(r, q)",
    "channel shuffle": """
        c1 = Reshape(r, grouped)
        c2 = Transpose<perm=[0,2,1,3,4]>(c1)
        c = Reshape(c2, together)""",
    "pool of a shuffled sum": """
        c1 = Add(r, q)
        c2 = Transpose<perm=[0,1,3,2]>(c1)
        c = MaxPool<kernel_shape=[3,3]>(c2)""",
    "Clip": "c = Clip(q, zero, six)",
    "two bounds": """
        c1 = Relu(q)
        c = Clip(c1, , six)""",
}


@pytest.mark.parametrize("activations", [Activations.INT8, Activations.INT4])
@pytest.mark.parametrize("joint", JOINTS)
def test_no_float_operator_between_layers(make_model, optimized, check_integers, rng, joint, activations):
    channels = 16 if "Concat" in joint and "width" not in joint else 8
    weights = {
        "w0": normal(rng, 8, 3, 3, 3),
        "w1": normal(rng, 8, 8, 1, 1),
        "w2": normal(rng, 6, channels, 1, 1),
    }
    weights |= {"grouped": np.array([0, 2, 4, 8, 8]), "together": np.array([0, 8, 8, 8])}
    weights |= {"zero": np.float32(0), "six": np.float32(6), "w3": normal(rng, 5, 6, 1, 1)}
    text = f"""(float[N,3,8,8] x) => (float y) {{
        p = Conv<pads=[1,1,1,1]>(x, w0)
        r = Relu(p)
        q = Conv(r, w1)
        {JOINTS[joint]}
        d = Conv(c, w2)
        y = Conv(d, w3)
    }}"""
    feeds = {"x": normal(rng, 8, 3, 8, 8)}
    result = converted(make_model(text, weights), feeds, activations=activations)
    found = optimized(result.model)
    # The last convolution's result is an output of the model. Bounds that cut off the quantizer's range,
    # which 16 steps never fill, keep a convolution in float.
    bounded = activations is Activations.INT4 and "six" in JOINTS[joint]
    assert set(found) - QUANTIZERS <= ON_INTEGERS | {"Conv"} | ({"FusedConv"} if bounded else set())
    assert found["Conv"] == 1
    # Of sums onnxruntime's float Conv rounds each product; 27 of them differ by some 2**-22.
    check_integers(result.model, feeds, rtol=1e-5)


def test_squeeze_and_excitation(make_model, optimized, check_integers, rng):
    weights = {"w0": normal(rng, 8, 3, 3, 3), "w1": normal(rng, 4, 8, 1, 1), "b1": normal(rng, 4)}
    weights |= {"w2": normal(rng, 8, 4, 1, 1), "w3": normal(rng, 6, 8, 1, 1), "w4": normal(rng, 5, 6, 1, 1)}
    text = """(float[N,3,8,8] x) => (float y) {
        p = Conv(x, w0)
        h = HardSwish(p)
        g = GlobalAveragePool(h)
        s = Conv(g, w1, b1)
        t = Relu(s)
        u = Conv(t, w2)
        v = HardSigmoid(u)
        m = Mul(h, v)
        d = Conv(m, w3)
        y = Conv(d, w4)
    }"""
    feeds = {"x": normal(rng, 8, 3, 8, 8)}
    result = converted(make_model(text, weights), feeds)
    found = optimized(result.model)
    assert found["QLinearConv"] == 4
    assert found["Conv"] == 1
    check_integers(result.model, feeds, rtol=1e-5)


TRANSFORMER = """(float[N,T,32] x) => (float y) {
    n = LayerNormalization<axis=-1>(x, gain, shift)
    q0 = MatMul(n, wq)
    q1 = Add(q0, bias)
    q2 = Reshape(q1, heads)
    q = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(n, wk)
    k1 = Add(k0, bias)
    k2 = Reshape(k1, heads)
    k = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(n, wv)
    v1 = Add(v0, bias)
    v2 = Reshape(v1, heads)
    v = Transpose<perm=[0,2,1,3]>(v2)
    scores = MatMul(q, k)
    probabilities = Softmax<axis=-1>(scores)
    mixed = MatMul(probabilities, v)
    turned = Transpose<perm=[0,2,1,3]>(mixed)
    joined = Reshape(turned, flat)
    o0 = MatMul(joined, wo)
    o = Add(o0, x)
    m = LayerNormalization<axis=-1>(o, gain, shift)
    f0 = MatMul(m, w1)
    f1 = Add(f0, bias1)
    f2 = Div(f1, root)
    f3 = Erf(f2)
    f4 = Add(f3, one)
    f5 = Mul(f1, f4)
    f = Mul(f5, half)
    g = MatMul(f, w2)
    y = Add(g, o)
}"""


@pytest.mark.parametrize("activations", [Activations.INT8, Activations.INT4])
def test_transformer_block(make_model, optimized, check_integers, rng, activations):
    weights = {name: normal(rng, 32, 32) / 6 for name in ("wq", "wk", "wv", "wo")}
    weights |= {"w1": normal(rng, 32, 64) / 6, "w2": normal(rng, 64, 32) / 6, "bias": normal(rng, 32)}
    weights |= {"bias1": normal(rng, 64), "gain": normal(rng, 32), "shift": normal(rng, 32)}
    weights |= {"heads": np.array([0, 0, 4, 8]), "flat": np.array([0, 0, 32])}
    weights |= {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    feeds = {"x": normal(rng, 4, 7, 32)}
    result = converted(make_model(TRANSFORMER, weights), feeds, activations=activations, smooth=False)
    found = optimized(result.model)
    assert found["MatMulIntegerToFloat"] == 6
    # One quantizer for q, k and v, and one for each of the three products after them.
    quantized = [node for node in result.model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == 4
    assert sorted(layer.is_converted for layer in result.report.layers) == [False] * 2 + [True] * 6
    # Float operators stand between the layers: a quantized value may fall on the other side of a tie.
    check_integers(result.model, {"x": normal(rng, 2, 5, 32)}, rtol=1e-5)


def test_tensor_that_is_an_output_and_a_layer_input(make_model, run, check_integers, rng):
    weights = {"w0": normal(rng, 8, 3, 3, 3), "w1": normal(rng, 6, 8, 1, 1), "w2": normal(rng, 5, 6, 1, 1)}
    text = """(float[N,3,8,8] x) => (float h, float y, float y2, float x2) {
        p = Conv(x, w0)
        h = Relu(p)
        d = Conv(h, w1)
        y = Conv(d, w2)
        y2 = Identity(y)
        x2 = Identity(x)
    }"""
    feeds = {"x": normal(rng, 8, 3, 8, 8)}
    model = make_model(text, weights)
    result = converted(model, feeds)
    assert [output.name for output in result.model.graph.output] == ["h", "y", "y2", "x2"]
    check_integers(result.model, feeds, rtol=1e-5)
    found, exact = run(result.model, feeds), run(model, feeds)
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[3], exact[3])
    assert not np.array_equal(found[0], np.round(found[0] / 0.1) * 0.1)  # a float output, not requantized


def test_two_inputs_and_outputs(make_model, check_integers, rng):
    weights = {"w0": normal(rng, 8, 3, 3, 3), "w1": normal(rng, 8, 2, 3, 3), "w2": normal(rng, 5, 8, 1, 1)}
    text = """(float[N,3,8,8] x, float[N,2,8,8] z) => (float y, float t) {
        a = Conv(x, w0)
        b = Conv(z, w1)
        c = Add(a, b)
        y = Conv(c, w2)
        t = Tanh(b)
    }"""
    feeds = {"x": normal(rng, 8, 3, 8, 8), "z": 3 * normal(rng, 8, 2, 8, 8)}
    result = converted(make_model(text, weights), feeds)
    notes = {layer.shape: layer.reason for layer in result.report.layers}
    assert notes[8, 3, 3, 3] == notes[8, 2, 3, 3] == "first convolution"
    check_integers(result.model, feeds, rtol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "integer"),
    [
        ("kernel_shape=[3,3], strides=[2,2], ceil_mode=1", True),
        ("kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1", True),
        ("kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1", False),
        ("kernel_shape=[2,2], dilations=[2,2]", False),
    ],
)
@pytest.mark.parametrize("read_twice", [False, True])
def test_average_pools_that_onnxruntime_has_no_integer_operator_for_stay_float(
    make_model, run, optimized, rng, attributes, integer, read_twice
):
    text = f"""(float[N,8,7,8] x) => (float y, float z) {{
        a = Conv(x, w, b)
        p = AveragePool<{attributes}>(a)
        y = Conv(p, w)
        z = Conv({"a" if read_twice else "p"}, w)
    }}"""
    model = make_model(text, {"w": normal(rng, 8, 8, 1, 1) / 3, "b": 3 + normal(rng, 8)}, opset=19)
    feeds = {"x": normal(rng, 16, 8, 7, 8)}
    found, report = converted(
        model, feeds, weights="int8", recipe="fgq", x86_without_vnni=True, first_last_int8=False
    )
    counted = optimized(found)
    assert counted["QLinearAveragePool"] == integer
    assert counted["AveragePool"] == (not integer)
    reasons = [line for line in report.warnings if "left float" in line]
    assert len(reasons) == (not integer)
    exact, theirs, ours = (
        run(model, feeds),
        run(found, feeds),
        Session(found.SerializeToString()).run(None, feeds),
    )
    for x, a, b in zip(exact, theirs, ours, strict=True):
        assert np.linalg.norm(a - x) < 0.03 * np.linalg.norm(x)
        assert np.abs(a - b).max() < 0.02 * np.abs(x).max()  # a step at most


def test_a_maximum_whose_places_are_an_output(make_model, run, rng):
    text = """(float[N,8,8,8] x) => (float y, int64 places) {
        a = Conv(x, w)
        p, places = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
        y = Conv(p, w)
    }"""
    model = make_model(text, {"w": normal(rng, 8, 8, 1, 1) / 3})
    feeds = {"x": normal(rng, 16, 8, 8, 8)}
    found, _ = converted(model, feeds, weights="int8", recipe="fgq", x86_without_vnni=True)
    (y, places), (ours, our_places) = run(found, feeds), Session(found.SerializeToString()).run(None, feeds)
    np.testing.assert_array_equal(our_places, places)
    assert np.abs(ours - y).max() < 1e-5 * np.abs(y).max()
    assert np.mean(places == run(model, feeds)[1]) > 0.95  # but where two were within a step


@pytest.mark.parametrize("classes", [1, 3])
def test_a_softmax_between_layers_stays_real(make_model, run, optimized, rng, classes):
    """onnxruntime's QLinearSoftmax gives 0 where a probability exceeds the range of its quantizer."""
    text = """(float[N,8] x) => (float y) {
        a = Gemm(x, w, b)
        p = Softmax(a)
        y = Gemm(p, v)
    }"""
    weights = {"w": 3 * normal(rng, 8, classes), "b": normal(rng, classes), "v": normal(rng, classes, 4)}
    model = make_model(text, weights)
    feeds = {"x": normal(rng, 64, 8)}
    found, _ = converted(model, feeds, weights="int8", recipe="fgq", x86_without_vnni=True)
    assert not optimized(found)["QLinearSoftmax"]
    (exact,), (theirs,) = run(model, feeds), run(found, feeds)
    (ours,) = Session(found.SerializeToString()).run(None, feeds)
    largest = np.abs(exact).max()
    np.testing.assert_allclose(theirs, exact, 0, 0.1 * largest)
    np.testing.assert_allclose(ours, theirs, 0, 0.02 * largest)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6), (1, 1, 1, 6)])
@pytest.mark.parametrize("mode", ["int8-dynamic", "int8-dynamic-token"])
def test_an_addend_of_more_axes_than_the_product(make_model, run, rng, shape, mode):
    """onnxruntime fuses it with products whose ranges are found at run time, and loses its axes."""
    model = make_model(
        "(float[N,8] x) => (float y) { h = MatMul(x, w) y = Add(b, h) }",
        {"w": normal(rng, 8, 6), "b": normal(rng, *shape)},
    )
    found, _ = convert(model, weights="int8", activations=mode, x86_without_vnni=True)
    feeds = {"x": normal(rng, 5, 8)}
    (exact,), (theirs,) = run(model, feeds), run(found, feeds)
    (ours,) = Session(found.SerializeToString()).run(None, feeds)
    assert theirs.shape == ours.shape == exact.shape
    np.testing.assert_allclose(theirs, exact, 0, 0.05 * np.abs(exact).max())
    np.testing.assert_allclose(ours, theirs, 0, 1e-5 * np.abs(exact).max())


FLOAT_PRODUCTS = {
    "Conv": ("c = Conv(b, k)", np.s_[:, 0]),
    "ConvTranspose": ("c = ConvTranspose(b, k)", np.s_[0]),
    "Gemm": ("c = Gemm(b, k)", np.s_[0]),
    "MatMul": ("d = MatMul(b, k)  c = Add(d, t)", np.s_[0]),
}
"""Layers, and which of their weights meet the first channel."""


@pytest.mark.parametrize("operator", FLOAT_PRODUCTS)
@pytest.mark.parametrize("outputs", ["float y", "float y, float c"])
def test_products_that_stay_float_keep_their_weights(make_model, run, rng, operator, outputs):
    # between quantizers onnxruntime rounds float weights to int8, all of them by one scale
    call, first = FLOAT_PRODUCTS[operator]
    flat = operator in ("Gemm", "MatMul")
    layer, size, ones = ("Gemm<transB=1>", "", ()) if flat else ("Conv", ",4,4", (1, 1))
    text = f"""(float[N,5{size}] x) => ({outputs}) {{
        a = {layer}(x, u)
        b = Relu(a)
        {call}
        e = Relu(c)
        y = {layer}(e, v)
    }}"""
    weights = {"u": normal(rng, 6, 5, *ones), "k": normal(rng, 6, 6, *ones), "v": normal(rng, 3, 6, *ones)}
    weights["t"] = normal(rng, 6)
    weights["u"][0] = 0  # the first channel holds zeros, and its weights set the scale alone
    weights["k"][first] *= 1e4
    model, feeds = make_model(text, weights, opset=19), {"x": normal(rng, 40, 5, *map(int, size[1::2]))}
    model.graph.node[2].name = "middle"
    result = convert(model, calibration=feeds, exclude="middle", recipe="fgq", form="int8")
    wanted = ReferenceEvaluator(result.model).run(None, feeds)
    for found, other in zip(run(result.model, feeds), wanted, strict=True):
        assert np.abs(found - other).max() < 0.03 * np.abs(other).max()
