"""What is found to be a layer, and why anything else stays float."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from fgq import Session, convert
from fgq.config import Activations
from fgq.converters.float_layers import FloatNode, Layer, find_layers
from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def found(make_model):
    def find(text, weights, **options):
        model = read_float_model(make_model(text, weights, **options))
        prepare(model)
        return find_layers(model)

    return find


@pytest.mark.parametrize(
    ("text", "weight", "expected"),
    [
        ("(float[2,6,8,8] x) => (float y) { y = Conv(x, w) }", (4, 6, 3, 3), (1, 1, 0)),
        ("(float[2,6,8,8] x) => (float y) { y = Conv<group=2>(x, w) }", (4, 3, 3, 3), (1, 1, 0)),
        ("(float[2,6] x) => (float y) { y = MatMul(x, w) }", (6, 4), (1, 0, 1)),
        ("(float[6,2] x) => (float y) { y = MatMul(w, x) }", (4, 6), (0, 1, 0)),
        ("(float[2,6] x) => (float y) { y = MatMul(x, w) }", (5, 6, 4), (1, 1, 2)),
        ("(float[6,2] x) => (float y) { y = MatMul(w, x) }", (5, 4, 6), (0, 2, 1)),
        ("(float[2,6] x) => (float y) { y = Gemm(x, w) }", (6, 4), (1, 0, 1)),
        ("(float[2,6] x) => (float y) { y = Gemm<transB=1>(x, w) }", (4, 6), (1, 1, 0)),
    ],
)
def test_axes(found, text, weight, expected):
    (layer,) = found(text, {"w": normal(*weight)})
    assert isinstance(layer, Layer)
    assert (layer.weight_index, layer.group_axis, layer.channel_axis) == expected
    assert layer.activation.name == "x"
    assert layer.shape == weight


REASONS = {
    "half": ("(float16[2,6] x) => (float16 y) { y = MatMul(x, h) }", "weights of type float16"),
    "double": ("(double[2,6] x) => (double y) { y = MatMul(x, d) }", "weights of type double"),
    "one axis": ("(float[2,6,8] x) => (float y) { y = Conv(x, c1) }", "a convolution of 1 spatial axes"),
    "three axes": (
        "(float[2,6,8,8,8] x) => (float y) { y = Conv(x, c3) }",
        "a convolution of 3 spatial axes",
    ),
    "transposed": (
        "(float[2,6,8,8] x) => (float y) { y = ConvTranspose(x, t) }",
        "ConvTranspose is not converted",
    ),
    "recurrent": (
        "(float[3,2,6] x) => (float y) { y, a, b = LSTM<hidden_size=2>(x, l, r) }",
        "LSTM is not converted",
    ),
    "Einsum": (
        '(float[2,6] x) => (float y) { y = Einsum<equation="ij,jk">(x, m) }',
        "Einsum is not converted",
    ),
    "embedding": ("(int64[3] x) => (float y) { y = Gather(m, x) }", "an embedding"),
    "vector": ("(float[2,6] x) => (float y) { y = MatMul(x, v) }", "its constant side is a vector"),
    "left vector": ("(float[6,2] x) => (float y) { y = MatMul(v, x) }", "its constant side is a vector"),
    "no constant": ("(float[6,6] x) => (float y) { y = MatMul(x, x) }", "both sides are computed"),
    "computed filter": ("(float[2,2,6,6] x) => (float y) { y = Conv(x, x) }", "its weights are computed"),
    "computed matrix": ("(float[6,6] x) => (float y) { y = Gemm(x, x) }", "its weights are computed"),
    "computed bias": (
        "(float[2,6,8,8] x, float[4] b) => (float y) { y = Conv(x, f, b) }",
        "its bias is computed",
    ),
    "long reduction": (
        "(float[2,66001] x) => (float y) { y = MatMul(x, k) }",
        "a reduction over 66001 products",
    ),
    "empty": ("(float[2,6] x) => (float y) { y = MatMul(x, e) }", "its weights are empty"),
    "integers": ("(int32[2,6] x) => (int32 y) { y = MatMul(x, i) }", "weights of type int32"),
    "foreign": (
        "(float[2,6] x) => (float y) { y = com.microsoft.FusedMatMul(x, m) }",
        "com.microsoft::FusedMatMul is not converted",
    ),
    "quantized": (
        "(float[2,6] x) => (float y) { q = DequantizeLinear(i8, s)\n y = MatMul(x, q) }",
        "its weights are already quantized",
    ),
    "constant matrices": ("(float[2,4] x) => (float y) { a = Gemm(g, m) y = Add(x, a) }", "both sides are"),
    "constant images": ("(float[1,4,6,6] x) => (float y) { a = Conv(n, f) y = Add(x, a) }", "both sides are"),
}
WEIGHTS = {
    "h": normal(6, 4).astype(np.float16),
    "d": normal(6, 4).astype(np.float64),
    "c1": normal(4, 6, 3),
    "c3": normal(4, 6, 3, 3, 3),
    "t": normal(6, 4, 3, 3),
    "f": normal(4, 6, 3, 3),
    "l": normal(1, 8, 6),
    "r": normal(1, 8, 2),
    "m": normal(6, 4),
    "g": normal(2, 6),
    "n": normal(1, 6, 8, 8),
    "v": normal(6),
    "k": np.ones((66001, 2), np.float32),
    "e": np.ones((6, 0), np.float32),
    "i": np.ones((6, 4), np.int32),
    "i8": np.ones((6, 4), np.int8),
    "s": np.float32(0.1),
}


@pytest.mark.parametrize(("text", "reason"), REASONS.values(), ids=REASONS)
def test_reasons(found, text, reason):
    domains = '"com.microsoft" : 1' if "microsoft" in text else ""
    (node,) = found(text, WEIGHTS, domains=domains)
    assert isinstance(node, FloatNode)
    assert reason in node.reason


def test_longest_reduction_is_exact(make_model, check_integers):
    """66,000 products of the largest size stay inside an int32."""
    weight = np.ones((66000, 1), np.float32)
    x = np.full((2, 66000), 3, np.float32)
    x[1] = -3
    model = make_model("(float[N,66000] x) => (float y) { y = MatMul(x, w) }", {"w": weight})
    for group_size in (64, 66000):
        result = convert(model, calibration={"x": x}, group_size=group_size, first_last_int8=False)
        check_integers(result.model, {"x": x})


def test_float_layers_stand_beside_converted_ones(make_model, run, check_integers):
    text = """(float[3,16] x, int64[3] i) => (float y, float l, float t, float g) {
        e = Gather(table, i)
        a = Add(x, e)
        b = MatMul(a, w)
        g = com.microsoft.Gelu(b)
        y = MatMul(g, v)
        s = Unsqueeze(g, first)
        l, h, c = LSTM<hidden_size=2>(s, lw, lr)
        z = Reshape(g, square)
        t = ConvTranspose(z, tw)
    }"""
    weights = {"table": normal(10, 16), "w": normal(16, 16), "v": normal(16, 5), "first": np.array([0])}
    weights |= {"lw": normal(1, 8, 16), "lr": normal(1, 8, 2), "square": np.array([3, 4, 2, 2])}
    weights |= {"tw": normal(4, 2, 2, 2)}
    feeds = {"x": normal(3, 16), "i": np.array([1, 9, 0])}
    result = convert(
        make_model(text, weights, domains='"com.microsoft" : 1'), calibration=[feeds], group_size=4
    )
    kinds = [(layer.operator, layer.is_converted) for layer in result.report.layers]
    assert kinds == [
        ("Gather", False),
        ("MatMul", True),
        ("MatMul", True),
        ("LSTM", False),
        ("ConvTranspose", False),
    ]
    check_integers(result.model, feeds, rtol=1e-6)


def test_weights_from_anywhere(make_model, run):
    """The same matrix as an initializer, a Constant node, and behind layout operators."""
    matrix = normal(16, 5)
    feeds = {"x": normal(4, 16)}
    tail = "y = MatMul(x, w) }"
    models = [
        make_model(f"(float[N,16] x) => (float y) {{ {tail}", {"w": matrix}),
        make_model(f"(float[N,16] x) => (float y) {{ w = Transpose(t)\n {tail}", {"t": matrix.T.copy()}),
        make_model(
            f"(float[N,16] x) => (float y) {{ i = Identity(f)\n w = Reshape(i, s)\n {tail}",
            {"f": matrix.reshape(-1), "s": np.array([16, 5])},
        ),
        make_model(f"(float[N,16] x) => (float y) {{ {tail}"),
    ]
    models[-1].graph.node.insert(
        0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(matrix, "value"))
    )
    options = {"calibration": feeds, "group_size": 4, "first_last_int8": False}
    results = [run(convert(model, **options).model, feeds)[0] for model in models]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_weight_shared_along_both_axes(make_model, check_integers):
    text = """(float[N,16] x) => (float y, float z) {
        a = MatMul(x, w)
        b = Gemm<transB=1, alpha=0.5>(a, w, k)
        y = MatMul(b, w)
        z = Gemm(b, w, k)
    }"""
    feeds = {"x": normal(4, 16)}
    model = make_model(text, {"w": normal(16, 16), "k": normal(16)})
    for group_size in (4, 5):
        result = convert(model, calibration=feeds, group_size=group_size)
        assert all(layer.is_converted for layer in result.report.layers)
        check_integers(result.model, feeds)


BRANCHES = """(float[N,16] x, bool p) => (float y) {
    k = MatMul(x, q)
    y = If(p) <
        then_branch = one () => (float a) { a = MatMul(k, w) },
        else_branch = two () => (float b) { b = Gemm<transB=1>(k, t, s) }
    >
}"""
LOOP = """(float[N,16] x, int64 n) => (float y) {
    c = Constant<value = bool {1}>()
    y = Loop(n, c, x) <body = step (int64 i, bool d, float[N,16] s) => (bool e, float r) {
        e = Identity(d)
        r = MatMul(s, w)
    }>
}"""


@pytest.mark.parametrize("activations", list(Activations))
@pytest.mark.parametrize("flag", [True, False])
def test_layers_of_branches(make_model, check_integers, activations, flag):
    weights = {"q": normal(16, 16), "w": normal(16, 5), "t": normal(5, 16), "s": normal(5)}
    feeds = {"x": normal(4, 16), "p": np.array(flag)}
    result = convert(
        make_model(BRANCHES, weights),
        calibration=[feeds],
        group_size=4,
        activations=activations,
        smooth=False,
    )
    assert [layer.is_converted for layer in result.report.layers] == [True] * 3
    inside = "" if activations is Activations.NONE else "in a subgraph: activations stay float"
    assert [layer.reason for layer in result.report.layers] == ["", inside, inside]
    check_integers(result.model, feeds)


@pytest.mark.parametrize("inside", [True, False])
def test_layers_of_loops(make_model, check_integers, inside):
    weight = normal(16, 16) / 4
    model = make_model(LOOP, {} if inside else {"w": weight})
    if inside:
        (body,) = (attribute.g for attribute in model.graph.node[-1].attribute)
        body.initializer.append(numpy_helper.from_array(weight, "w"))
    feeds = {"x": normal(4, 16), "n": np.array(3)}
    result = convert(model, calibration=[feeds], group_size=4)
    assert [layer.is_converted for layer in result.report.layers] == [True]
    check_integers(result.model, feeds)


@pytest.mark.parametrize(("strides", "float_"), [("[3,1]", False), ("[4,1]", True), ("[1,5]", True)])
def test_windows_that_auto_pad_lets_begin_inside_the_image(make_model, run, strides, float_):
    """What onnxruntime makes of negative padding is left to it."""
    rng = np.random.default_rng(0)
    text = f"""(float[N,8,9,10] x) => (float y) {{
        c = Conv<auto_pad="SAME_UPPER", strides={strides}>(x, w)
        y = Conv(c, v)
    }}"""
    weights = {"w": rng.standard_normal((8, 8, 2, 1)) / 4, "v": rng.standard_normal((8, 8, 1, 1)) / 3}
    model = make_model(text, {name: array.astype(np.float32) for name, array in weights.items()})
    x = rng.standard_normal((8, 8, 9, 10)).astype(np.float32)
    found, report = convert(
        model,
        weights="int8",
        recipe="fgq",
        calibration={"x": x},
        x86_without_vnni=True,
        first_last_int8=False,
    )
    assert (report.layers[0].scheme == "float") == float_
    (exact,), (theirs,) = run(model, {"x": x}), run(found, {"x": x})
    (ours,) = Session(found.SerializeToString()).run(None, {"x": x})
    largest = np.abs(exact).max()
    np.testing.assert_allclose(theirs, exact, 0, 0.05 * largest)
    np.testing.assert_allclose(ours, theirs, 0, 1e-5 * largest)
