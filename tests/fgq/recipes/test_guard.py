"""No layer is farther from the float network than by the recipe ``fgq``, whatever the calibration data."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgq import Session, convert
from fgq.converters.float_layers import find_layers
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.recipes.guard import Distance, distance
from fgq.recipes.observation import observe_layer
from fgq.recipes.pieces import Prefix

MLP = """(float[N,16] x) => (float y) {
    a = Gemm(x, w0, b0)
    b = Relu(a)
    c = Gemm(b, w1, b1)
    d = Relu(c)
    y = Gemm(d, w2, b2)
}"""
CNN = """(float[N,3,6,6] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1],group=2>(b, w1)
    d = Relu(c)
    e = Conv<pads=[1,1,1,1]>(d, w2, b2)
    f = Add(e, b)
    g = GlobalAveragePool(f)
    h = Flatten(g)
    y = Gemm<transB=1>(h, w3, b3)
}"""
ENCODER = """(float[N,T,8] x) => (float y) {
    a = MatMul(x, w0)
    b = Add(a, b0)
    c = Relu(b)
    d = MatMul(c, w1)
    e = Add(d, b1)
    f = Add(e, x)
    y = MatMul(f, w2)
}"""
SHAPES = {
    MLP: {"w0": (16, 32), "b0": (32,), "w1": (32, 32), "b1": (32,), "w2": (32, 5), "b2": (5,)},
    CNN: {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 4, 3, 3), "w2": (8, 8, 3, 3), "b2": (8,)}
    | {"w3": (5, 8), "b3": (5,)},
    ENCODER: {"w0": (8, 16), "b0": (16,), "w1": (16, 8), "b1": (8,), "w2": (8, 4)},
}
SAMPLE = {MLP: (16,), CNN: (3, 6, 6), ENCODER: (4, 8)}
NAMES = {MLP: "mlp", CNN: "cnn", ENCODER: "encoder"}


def network(make_model, text, seed=0):
    rng = np.random.default_rng(seed)
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in SHAPES[text].items()
    }
    return make_model(text, weights)


def samples(text, count, seed=0):
    rng = np.random.default_rng([seed, count])
    return rng.standard_normal((count, *SAMPLE[text])).astype(np.float32)


def loss(model, converted, x):
    """The relative squared error of the output."""
    (exact,) = Session(model.SerializeToString(), allow_float=True).run(None, {"x": x})
    (found,) = Session(converted.SerializeToString()).run(None, {"x": x})
    return float(np.sum((found - exact) ** 2) / np.sum(exact**2))


def check(report):
    """Every layer that data have touched has been measured, and none is farther than by ``fgq``."""
    measured = [layer for layer in report.layers if layer.output_error is not None]
    for layer in measured:
        assert layer.output_error <= layer.nearest_output_error
    return measured


def test_two_samples_do_not_ruin_a_gemm_kept_at_8_bits(make_model):
    model, x = network(make_model, MLP), samples(MLP, 2)
    plain = convert(model, calibration={"x": x}, recipe="fgq")
    result = convert(model, calibration={"x": x})
    assert [layer.scheme for layer in result.report.layers][-1] == "int8"
    assert check(result.report)[-1].output_error < 0.05
    for data in (x, samples(MLP, 64, seed=1)):
        assert loss(model, result.model, data) < 1.25 * loss(model, plain.model, data)


KINDS = ["ordinary", "constant", "zero", "one channel", "half padded", "offset", "low rank", "one glitch"]


def strange(text, kind, count):
    x = samples(text, count, seed=5)
    match kind:
        case "constant":
            x[:] = x[:1]
        case "zero":
            x[:] = 0
        case "one channel":
            x.reshape(count, -1)[:, 1:] = 0
        case "half padded":
            x[:, ..., x.shape[-1] // 2 :] = 0
        case "offset":
            x = x * np.float32(1e-3) + 50
        case "low rank":
            x = (x.mean(tuple(range(1, x.ndim)), keepdims=True) * samples(text, 1, seed=6)).astype(np.float32)
        case "one glitch":
            x.reshape(-1)[x.size // 3] = 1e4
    return x


OPTIONS = [
    {},
    {"activations": "none", "first_last_int8": False},
    {"weights": "int4", "group_size": 4},
    {"weights": "tied", "activations": "int4"},
    {"recipe": "omse", "granularity": "layer"},
    {"activations": "int8-dynamic", "group_size": 4},
]


COUNTS = [1, 2, 3, 5]


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        pytest.param(
            text,
            kind,
            count,
            marks=[] if (k + n) % 8 == place else pytest.mark.slow,
            id=f"{NAMES[text]}-{kind}-{count}",
        )
        for place, text in enumerate(NAMES)
        for k, kind in enumerate(KINDS)
        for n, count in enumerate(COUNTS)
    ],
)
def test_no_layer_is_worse_for_small_or_strange_data(make_model, text, kind, count):
    options = OPTIONS[(KINDS.index(kind) + count) % len(OPTIONS)]
    model, x = network(make_model, text), strange(text, kind, count)
    result = convert(model, calibration={"x": x}, **options)
    measured = check(result.report)
    positions = count * (4 if text == ENCODER else 1)
    assert len(measured) == len(result.report.layers) or (text != ENCODER and positions == 1)
    assert all(
        np.isfinite(array).all() for array in Session(result.model.SerializeToString()).run(None, {"x": x})
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 12),
    sizes=st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e3, 1e9]), min_size=16, max_size=16),
    offset=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    rows=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_inputs_and_weights_of_any_size_are_calibrated(make_model, count, sizes, offset, rows, seed):
    model = network(make_model, MLP, seed)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            weight = np.frombuffer(tensor.raw_data, np.float32).reshape(32, 32).copy()
            weight[:, ::3] *= rows
            tensor.raw_data = weight.tobytes()
    x = (samples(MLP, count, seed) * np.array(sizes) + offset).astype(np.float32)
    check(convert(model, calibration={"x": x}, activations="none", group_size=8).report)


def test_the_distance_is_that_of_the_outputs(make_model):
    text = "(float[N,4] x) => (float y) { a = Gemm<transB=1>(x, w, b)\n y = Add(a, x) }"
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((4, 4)).astype(np.float32), "b": np.ones(4, np.float32)}
    model = ir.from_proto(make_model(text, weights))
    (layer,) = find_layers(model)
    exact, given_ = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    quantized = Prefix(model, [{"x": x} for x in given_], {})
    wanted = Prefix(model, [{"x": x} for x in exact], {})
    observed = observe_layer(layer, model, layer.node, quantized, wanted, ())
    assert observed.residual == ("x", "x")
    tensor = quantize_weight(
        layer.weight_array, WeightScheme(codes=Codes.INT4, group_size=4), group_axis=1, channel_axis=0
    )
    shift = rng.standard_normal(4)
    found = distance(model, layer, quantized, wanted, observed, tensor, shift)
    y = exact @ weights["w"].T + 1
    missing = y - (given_ @ tensor.dequantize().T + 1) - shift
    np.testing.assert_allclose(found.own, (missing**2).sum((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(found.summed, ((missing + exact - given_) ** 2).sum((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(found.power, (y**2).sum((0, 1)), rtol=1e-4)


def test_batches_whose_sizes_the_quantized_network_changes_count_as_the_float_one_has_them(make_model):
    """What stands behind a threshold has other rows, or none, where its input is quantized."""
    text = """(float[N,16] x) => (float y) {
        a = Gemm(x, w0, b0)
        s = ReduceSum(a, axis)
        p = Greater(s, zero)
        f = Reshape(p, flat)
        c = Compress<axis=0>(a, f)
        d = Gemm(c, w1, b1)
        y = Gemm(d, w2, b2)
    }"""
    extra = {"axis": np.array([1]), "flat": np.array([-1]), "zero": np.zeros(1, np.float32)}
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES[MLP].items()}
    model = make_model(text, weights | extra)
    feeds = [{"x": rng.standard_normal((5, 16)).astype(np.float32)} for _ in range(12)]
    report = convert(model, calibration=feeds, activations="none", first_last_int8=False).report
    assert len(check(report)) == 3


def test_outputs_that_are_farther_by_themselves_or_in_the_sum():
    first = Distance(np.array([1.0, 3.0, 1.0]), np.array([1.0, 1.0, 3.0]), np.ones(3))
    second = Distance(np.array([2.0, 2.0, 2.0]), np.array([2.0, 2.0, 2.0]), np.ones(3))
    assert first.is_farther(second, together=False).tolist() == [False, True, True]
    assert first.is_farther(second, together=True).tolist() == [False] * 3
    assert second.is_farther(first, together=True).tolist() == [True] * 3
