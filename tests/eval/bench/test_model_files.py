import numpy as np
import onnx
import pytest

from fgq.errors import ConfigError, DataError
from fgq.eval.bench import model_files
from fgq.eval.bench.model_files import DYNAMIC, FLOAT, INT8, fix_shapes, make_forms, open_subject

CONVOLUTIONS = "(float[N,8,6,6] x) => (float y) {a = Conv(x, v) b = Relu(a) c = Conv(b, w) y = Conv(c, u)}"
PRODUCTS = "(float[N,L,16] x) => (float y) {a = MatMul(x, v) b = Relu(a) c = MatMul(b, w) y = MatMul(c, u)}"
RNG = np.random.default_rng(0)
WEIGHTS = {
    CONVOLUTIONS: {
        "v": RNG.standard_normal((8, 8, 1, 1), np.float32),
        "w": RNG.standard_normal((8, 8, 1, 1), np.float32),
        "u": RNG.standard_normal((8, 8, 1, 1), np.float32),
    },
    PRODUCTS: {
        "v": RNG.standard_normal((16, 16), np.float32),
        "w": RNG.standard_normal((16, 16), np.float32),
        "u": RNG.standard_normal((16, 16), np.float32),
    },
}
SHAPES = {CONVOLUTIONS: (5, 8, 6, 6), PRODUCTS: (5, 3, 16)}


def quiet(stage, done, total):
    pass


@pytest.fixture
def subject(make_model, tmp_path):
    """Open a model with five samples; the text of its graph names it."""

    def make(text):
        path, data = tmp_path / "model.onnx", tmp_path / "data.npz"
        onnx.save(make_model(text, WEIGHTS[text]), path)
        np.savez(data, x=np.random.default_rng(1).standard_normal(SHAPES[text], np.float32))
        return open_subject(str(path), str(data), tmp_path)

    return make


@pytest.mark.parametrize(
    ("text", "forms"), [(CONVOLUTIONS, {FLOAT, INT8}), (PRODUCTS, {FLOAT, INT8, DYNAMIC})]
)
def test_all_forms_compute_nearly_the_same(subject, run, tmp_path, text, forms):
    opened = subject(text)
    made = make_forms(opened, (1, 8), tmp_path, quiet)
    assert (set(made.others), set(made.converted), made.missing) == (forms, {1, 8}, {})
    feed = opened.feed(2)
    expected = run(opened.path, feed)[0]
    # 8 bits a weight (N=1 has an alpha for each) and an activation leave some 40 dB: 1 % of the norm
    for path in (*made.others.values(), made.converted[1]):
        error = np.linalg.norm(run(path, feed)[0] - expected) / np.linalg.norm(expected)
        assert error < 0.03, path.name


def test_a_converted_model_is_written_as_int8_and_float(subject, run, tmp_path):
    opened = subject(CONVOLUTIONS)
    converted = make_forms(opened, (4,), tmp_path, quiet).converted[4]
    assert not opened.is_converted
    again = open_subject(str(converted), str(tmp_path / "data.npz"), tmp_path)
    assert again.is_converted
    made = make_forms(again, (64,), tmp_path, quiet)
    assert made.converted == {None: converted}
    assert set(made.others) == {FLOAT, INT8}
    feed = again.feed(None)
    np.testing.assert_array_equal(run(made.others[INT8], feed)[0], run(converted, feed)[0])


def test_what_onnxruntime_cannot_quantize_is_told(subject, tmp_path, monkeypatch):
    def fail(subject, path):
        raise ValueError("no such thing\nmore")

    monkeypatch.setattr(model_files, "_quantize_static", fail)
    made = make_forms(subject(CONVOLUTIONS), (8,), tmp_path, quiet)
    assert made.missing == {INT8: "no such thing"}
    assert set(made.others) == {FLOAT}


def test_shapes_are_fixed_and_results_stay(subject, run, tmp_path):
    opened, fixed = subject(PRODUCTS), tmp_path / "fixed.onnx"
    feed = opened.feed(4)
    fix_shapes(opened.path, feed, fixed)
    shape = onnx.load(fixed).graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim] == [4, 3, 16]
    np.testing.assert_array_equal(run(fixed, feed)[0], run(opened.path, feed)[0])


def test_an_axis_of_the_same_name_is_fixed_everywhere(make_model, tmp_path):
    path, fixed = tmp_path / "model.onnx", tmp_path / "fixed.onnx"
    model = make_model("(float[N,M] x) => (float y) {y = Relu(x)}")
    model.graph.output[0].type.CopyFrom(
        onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["N", "elsewhere"])
    )
    onnx.save(model, path)
    fix_shapes(path, {"x": np.zeros((2, 7), np.float32)}, fixed)
    shape = onnx.load(fixed).graph.output[0].type.tensor_type.shape
    assert [axis.dim_value or axis.dim_param for axis in shape.dim] == [2, "elsewhere"]


def test_feeds_are_the_first_samples(subject):
    opened = subject(CONVOLUTIONS)
    assert opened.feed(None)["x"].shape == (1, 8, 6, 6)
    np.testing.assert_array_equal(opened.feed(3)["x"][:1], opened.feed(1)["x"])
    with pytest.raises(DataError, match=r"model\.onnx: found 5 samples, wanted a batch of 6"):
        opened.feed(6)


def test_a_fixed_batch_is_kept(make_model, tmp_path):
    path, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    onnx.save(make_model("(float[2,3] x) => (float y) {y = Relu(x)}"), path)
    np.savez(data, x=np.zeros((4, 3), np.float32))
    opened = open_subject(str(path), str(data), tmp_path)
    assert len(opened.feed(None)["x"]) == len(opened.feed(2)["x"]) == 2
    with pytest.raises(ConfigError, match="batch: found 1, wanted 2, to which the inputs of"):
        opened.feed(1)


def test_the_bundled_network_brings_its_data(tmp_path):
    opened = open_subject("cnn", None, tmp_path)
    assert opened.feed(32)["image"].shape == (32, 1, 32, 32)
    with pytest.raises(DataError, match="found no such file or folder"):
        open_subject("cnn", "nothing", tmp_path)


def test_what_is_unknown_is_refused(make_model, tmp_path):
    with pytest.raises(
        ConfigError, match="nothing: found no such file, wanted an ONNX model or one of resnet50"
    ):
        open_subject("nothing", None, tmp_path)
    path = tmp_path / "model.onnx"
    onnx.save(make_model("(float[2,3] x) => (float y) {y = Relu(x)}"), path)
    with pytest.raises(DataError, match=r"model\.onnx: found no data .* give --calibration DATA"):
        open_subject(str(path), None, tmp_path)
