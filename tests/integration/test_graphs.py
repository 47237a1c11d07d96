"""Legal graphs of every kind convert, and compute what the original does, in both engines."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq import Session, convert
from fgq.errors import DataError

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
    "a pooling of which onnx infers a window too many": """h = Conv(x, f)
        p = AveragePool<ceil_mode=1, kernel_shape=[2,1], strides=[2,3]>(h) d = Conv<pads=[1,1,1,1]>(p, k)
        e = Add(p, d) y = Conv(e, f)""",
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


ATTENTION = """h = MatMul(x, a) t = Transpose<perm=[{}]>(h) d = MatMul(h, t) e = Add(d, mask)
    i = Softmax<axis=-1>(e) o = MatMul(i, h) y = MatMul(o, c)"""


def test_a_mask_of_minus_infinity(make_model, check):
    text = f"(float[N,T,16] x, float[N,T,T] mask) => (float y) {{ {ATTENTION.format('0,2,1')} }}"
    mask = np.broadcast_to(np.triu(np.full((5, 5), -np.inf, np.float32), 1), (16, 5, 5)).copy()
    samples = {"x": normal(16, 5, 16), "mask": mask}
    for activations in ("int8", "int8-dynamic-token"):
        check(graph_of(make_model, text), samples, activations=activations)


def test_where_a_layer_reads_minus_infinity(make_model):
    x = normal(32, 16)
    x[0, 0] = -np.inf
    model = graph_of(make_model, "(float[N,16] x) => (float y) { h = MatMul(x, a) y = MatMul(h, c) }")
    with pytest.raises(DataError, match="infinite"):
        convert(model, calibration={"x": x}, recipe="fgq")


def test_inputs_without_a_batch_axis(make_model, run):
    """Feeds are neither cut for the self-check nor into samples: a part of them is no input of the model."""
    text = f"(float[T,16] x, float[T,T] mask) => (float y) {{ {ATTENTION.format('1,0')} }}"
    model = graph_of(make_model, text)
    feeds = [{"x": normal(7, 16), "mask": normal(7, 7)} for _ in range(4)]
    converted, report = convert(model, calibration=feeds, weights="int8", x86_without_vnni=True)
    (expected,), (found,) = run(model, feeds[0]), Session(converted.SerializeToString()).run(None, feeds[0])
    assert np.linalg.norm(found - expected) <= 0.1 * np.linalg.norm(expected)
    assert report.self_check.outputs[0].signal_to_noise_db > 20


def test_an_input_of_one_axis_that_is_no_batch(make_model):
    model = graph_of(make_model, "(float[K] x) => (float y) { y = MatMul(x, a) }")
    _, report = convert(model, calibration=[{"x": normal(16)} for _ in range(4)], recipe="fgq")
    assert report.self_check.samples == 16


def test_text_and_a_value_without_axes_as_inputs(make_model, run, tmp_path, command):
    text = """(string[N] words, float gain) => (float y) {
        ids = ai.onnx.ml.LabelEncoder<keys_strings=["a", "b"], values_int64s=[0, 1]>(words)
        d = Gather(b, ids) h = MatMul(d, a) e = Mul(h, gain) y = MatMul(e, c)
    }"""
    model = graph_of(make_model, text)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, tmp_path / "float.onnx")
    words = np.array(["a", "b"] * 8)
    np.savez(tmp_path / "x.npz", words=words, gain=np.float32(2))
    paths = [tmp_path / "float.onnx", "-o", tmp_path / "c.onnx", "--calibration-data", tmp_path / "x.npz"]
    outcome = command("convert", *paths, "--weights", "int8", "--x86-without-vnni")
    assert outcome.code == 0, outcome.err
    feeds = {"words": words.astype(object), "gain": np.array(2, np.float32)}
    (expected,), (found,) = run(model, feeds), Session(tmp_path / "c.onnx").run(None, feeds)
    assert np.linalg.norm(found - expected) <= 0.05 * np.linalg.norm(expected)


def test_an_output_of_another_rank_than_declared(make_model, run, tmp_path, command):
    """onnxruntime warns and runs it; so does a session, each time, and its profile."""
    text = """(float[N,8,6,6] x) => (float y) {
        h = Conv(x, f) s = Shape(h) w = Gather(s, last) u = Unsqueeze(w, first) t = Concat<axis=0>(u, rest)
        d = Reshape(h, t) y = Sin(d)
    }"""
    model = graph_of(make_model, text)
    sizes = {"last": np.int64(3), "first": np.int64([0]), "rest": np.int64([1, -1])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in sizes.items())
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "length"]))
    x = normal(8, 8, 6, 6)
    converted, _ = convert(model, calibration={"x": x}, recipe="fgq")
    onnx.save(converted, tmp_path / "c.onnx")
    session = Session(tmp_path / "c.onnx")
    assert {session.run(None, {"x": x})[0].shape for _ in range(3)} == {(6, 1, 384)}
    assert session.profile({"x": x}, 2)
    np.savez(tmp_path / "x.npz", x=x)
    paths = ["--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz"]
    assert command("run", tmp_path / "c.onnx", *paths, "--profile").code == 0
