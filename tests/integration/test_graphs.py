"""Legal graphs of every kind convert, and compute what the original does, in both engines."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq import Session, convert

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def weight(*shape):
    return normal(*shape) / np.float32(np.sqrt(np.prod(shape[1:])))


WEIGHTS = {
    "a": weight(16, 16),
    "b": weight(16, 16),
    "c": weight(16, 8),
    "f": weight(8, 8, 1, 1),
    "head": weight(8, 4),
    "k": weight(8, 8, 3, 3),
    "place": weight(1, 4),
    "lift": weight(4, 16),
    "bias": weight(16),
    "second": np.int64(1),
    "half": np.float32(0.5),
    "unit": np.ones(1, np.float32),
    "root": np.float32([[np.sqrt(2)]]),
    "ones": np.ones(16, np.float32),
    "halves": np.int64([8, 8]),
    "twice": np.float32([1, 1, 2, 2]),
}

GELU = "d = Div(h, root) e = Erf(d) l = Add(e, unit) i = Mul(h, l) j = Mul(i, half)"

ROWS = {
    "GELU of operators": f"h = Gemm(x, a) {GELU} y = Gemm(j, c)",
    "a polynomial": "h = Gemm(x, a) d = Mul(h, h) e = Add(d, d) g = Add(h, e) y = Gemm(g, c)",
    "half precision across a layer": """h = MatMul(x, a) t = Cast<to=10>(h) d = MatMul(h, b)
        u = Cast<to=1>(t) e = Add(d, u) y = MatMul(e, c)""",
    "bfloat16 across a layer": """h = MatMul(x, a) t = Cast<to=16>(h) d = MatMul(h, b)
        u = Cast<to=1>(t) e = Add(d, u) y = MatMul(e, c)""",
    "double precision across a layer": """h = MatMul(x, a) t = Cast<to=11>(h) d = MatMul(h, b)
        u = Cast<to=1>(t) e = Add(d, u) y = MatMul(e, c)""",
    "a sequence across a layer": """h = MatMul(x, a) s = SequenceConstruct(h, x) d = MatMul(h, b)
        t = SequenceAt(s, second) e = Add(d, t) y = MatMul(e, c)""",
    "a sequence of layers' results": """h = MatMul(x, a) s = SplitToSequence<axis=1>(h, halves)
        d = MatMul(h, b) t = ConcatFromSequence<axis=1>(s) e = Add(d, t) y = MatMul(e, c)""",
    "an optional value across a layer": """h = MatMul(x, a) o = Optional(h) d = MatMul(h, b)
        t = OptionalGetElement(o) e = Add(d, t) y = MatMul(e, c)""",
    "an operator of com.microsoft": """h = MatMul(x, a) g = com.microsoft.BiasGelu(h, bias)
        d = MatMul(g, b) n = com.microsoft.SkipLayerNormalization(d, g, ones, bias) y = MatMul(n, c)""",
    "a product of constants": "h = MatMul(x, a) t = Gemm(place, lift) d = Add(h, t) y = MatMul(d, c)",
    "a product of computed constants": """h = MatMul(x, a) t = Sin(place) u = MatMul(t, lift)
        d = Add(h, u) y = MatMul(d, c)""",
    "a weight computed from constants": """n = ReduceL2(a) u = Div(a, n) w = Mul(u, n)
        h = MatMul(x, w) d = Relu(h) y = MatMul(d, c)""",
}


@pytest.fixture
def check(run):
    """Convert a model with 7-bit weights and compare both engines with the original."""

    def compare(model, samples, *, activations, **options):
        feeds = {name: array[:4] for name, array in samples.items()}
        converted, _ = convert(
            model,
            calibration=samples,
            activations=activations,
            weights="int8",
            recipe=options.pop("recipe", "fgq"),
            x86_without_vnni=True,
            **options,
        )
        (expected, *_) = run(model, feeds)
        contents = converted.SerializeToString()
        session = Session(contents)
        engines = [run(converted, feeds)[0], *(session.run(None, feeds)[0] for _ in range(3))]
        for found in engines:
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            error = np.linalg.norm((found - expected).astype(np.float64))
            assert error <= 0.15 * np.linalg.norm(expected.astype(np.float64))
            np.testing.assert_allclose(found, engines[0], 0, 0.03 * np.abs(expected).max())
        return session

    return compare


def graph_of(make_model, text):
    model = make_model(text, opset=18, domains='"com.microsoft" : 1')
    used = {name for node in model.graph.node for name in node.input}
    arrays = {name: array for name, array in WEIGHTS.items() if name in used}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


@pytest.mark.parametrize("activations", ["int8", "int8-dynamic", "none"])
@pytest.mark.parametrize("body", ROWS.values(), ids=ROWS)
def test_rows(make_model, check, body, activations):
    model = graph_of(make_model, f"(float[N,16] x) => (float y) {{ {body} }}")
    check(model, {"x": normal(32, 16)}, activations=activations)


@pytest.mark.parametrize("kind", ["sequence", "optional value", "bfloat16"])
def test_calibrated_across_a_layer(make_model, check, kind):
    """What lies between the pieces that are run one after another is no array that NumPy has."""
    (body,) = (body for name, body in ROWS.items() if name.endswith(f"{kind} across a layer"))
    model = graph_of(make_model, f"(float[N,16] x) => (float y) {{ {body} }}")
    x = normal(64, 16)
    check(model, {"x": x}, activations="none", recipe="calibrated")


def test_a_sequence_as_an_output(make_model, check, run):
    body = "h = MatMul(x, a) s = SequenceConstruct(h, x) y = MatMul(h, c)"
    model = graph_of(make_model, f"(float[N,16] x) => (float y, seq(float[N,16]) s) {{ {body} }}")
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model.graph.output[1].CopyFrom(sequence)
    feeds = {"x": normal(4, 16)}
    session = check(model, {"x": normal(32, 16)}, activations="int8-dynamic")
    found, expected = session.run(["s"], feeds)[0], run(model, feeds, ["s"])[0]
    assert len(found) == len(expected) == 2
    np.testing.assert_array_equal(found[1], feeds["x"])


IMAGES = {
    "GELU of operators": f"h = Conv(x, f) {GELU} y = Conv(j, f)",
    "Resize": 'h = Conv(x, f) d = Resize<mode="nearest">(h, , twice) y = Conv(d, f)',
    "a residual": "h = Conv(x, f) r = Relu(h) d = Conv<pads=[1,1,1,1]>(r, k) e = Add(d, r) y = Conv(e, f)",
    "a mean over pixels": """h = Conv(x, f) d = Conv(h, f) pixels = Constant<value_ints=[2,3]>()
        e = ReduceMean<keepdims=0>(d, pixels) y = Gemm(e, head)""",
}


@pytest.mark.parametrize("form", ["packed", "inlined"])
@pytest.mark.parametrize("body", IMAGES.values(), ids=IMAGES)
def test_images_of_another_batch_than_is_declared_between(make_model, check, body, form):
    """Somebody made the batch of a finished model dynamic, and left everything else."""
    fixed = graph_of(make_model, f"(float[1,8,6,6] x) => (float y) {{ {body} }}")
    model = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    assert model.graph.value_info
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    x = normal(16, 8, 6, 6)
    check(model, {"x": x}, activations="int8", form=form)


@pytest.mark.parametrize("activations", ["int8", "none"])
def test_no_images_behind_a_mean_over_pixels(make_model, check, activations):
    text = f"(float[N,8,6,6] x) => (float y) {{ {IMAGES['a mean over pixels']} }}"
    model = graph_of(make_model, text)
    session = check(model, {"x": normal(16, 8, 6, 6)}, activations=activations)
    assert session.run(None, {"x": np.zeros((0, 8, 6, 6), np.float32)})[0].shape == (0, 4)
