"""The error of each layer against tensors that onnxruntime gives for both models."""

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from fgq import convert
from fgq.converters.passes import SumToAdd
from fgq.errors import DataError, ModelError
from fgq.eval.compare import compare
from fgq.format.container import SCALED_KEY

TEXT = """(float[N,3,8,8] x) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    n = BatchNormalization(a, g, g, g, g)
    r = Relu(n)
    c = Conv<pads=[1,1,1,1]>(r, v)
    p = GlobalAveragePool(c)
    q = Flatten(p)
    y = Gemm(q, u)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(8, 4), "g": np.ones(8, np.float32)}
X = normal(40, 3, 8, 8)


@pytest.fixture(scope="module")
def models(make_model):
    model = make_model(TEXT, WEIGHTS)
    for node in model.graph.node:
        node.name = f"layer_{node.output[0]}"
    return model, convert(model, calibration={"x": X}, group_size=4).model


@pytest.fixture
def paths(models, tmp_path):
    paths = tmp_path / "float.onnx", tmp_path / "converted.onnx"
    for model, path in zip(models, paths, strict=True):
        onnx.save(model, path)
    return paths


def with_outputs(model, names):
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    return exposed


def test_equals_tensors_from_onnxruntime(models, paths, run):
    seen = []
    errors = compare(*paths, {"x": X}, seen.append)
    assert seen == [16, 32, 40]
    # The batch normalization is folded, so that the convolution computes what was normalized.
    assert [(error.name, error.layer, error.operator) for error in errors] == [
        ("n", "layer_a", "Conv"),
        ("c", "layer_c", "Conv"),
        ("y", "output", "Gemm"),
    ]
    exact, found = (run(with_outputs(model, ["n", "c", "y"]), {"x": X}) for model in models)
    for error, f, c in zip(errors, exact, found, strict=True):
        f, c = f.astype(np.float64).ravel(), c.astype(np.float64).ravel()
        # Exact to the order of double precision sums; onnxruntime's own sums do not depend on the batch.
        assert error.cosine == pytest.approx(f @ c / math.sqrt((f @ f) * (c @ c)), rel=1e-6)
        noise = ((f - c) ** 2).sum()
        assert error.signal_to_noise_db == pytest.approx(10 * math.log10((f**2).sum() / noise), abs=1e-3)
    assert errors[0].signal_to_noise_db > 30 > errors[1].signal_to_noise_db


def test_results_that_were_scaled_are_compared_with_scaled_ones(make_model, tmp_path):
    gains = np.where(np.arange(8) % 4 == 0, 100.0, 1.0).astype(np.float32)
    model = make_model(TEXT, WEIGHTS | {"w": WEIGHTS["w"] * gains[:, None, None, None]})
    paths = tmp_path / "float.onnx", tmp_path / "converted.onnx"
    onnx.save(model, paths[0])
    errors = {}
    for smooth in (False, True):
        options = {"recipe": "fgq", "group_size": 4, "activations": "int4", "weights": "int8"}
        converted = convert(model, calibration={"x": X}, smooth=smooth, **options).model
        assert (SCALED_KEY in [entry.key for entry in converted.metadata_props]) == smooth
        onnx.save(converted, paths[1])
        errors[smooth] = {error.name: error.signal_to_noise_db for error in compare(*paths, {"x": X})}
    # Nothing before n has fewer bits or other values in one of them; beside unscaled values it were below 10.
    assert errors[True]["n"] == pytest.approx(errors[False]["n"], abs=3)
    assert errors[True]["n"] > 20


def test_a_model_with_itself(paths):
    for error in compare(paths[0], paths[0], {"x": X}):
        assert error.signal_to_noise_db == math.inf
        assert error.cosine == pytest.approx(1.0, abs=1e-12)
        assert json.loads(json.dumps(error.to_dict(), allow_nan=False))["signal_to_noise_db"] is None


@pytest.mark.parametrize(
    ("first", "second", "decibels", "cosine"),
    [
        ("Relu", "Relu", math.inf, 1.0),  # both all zeros
        ("Relu", "Identity", -math.inf, 0.0),  # zeros against something
        ("Identity", "Relu", 0.0, 0.0),
        ("Identity", "Neg", -20 * math.log10(2), -1.0),
        ("Log", "Identity", math.nan, math.nan),
    ],
)
def test_zeros_and_nan(make_model, tmp_path, first, second, decibels, cosine):
    for name, operator in (("a", first), ("b", second)):
        onnx.save(make_model(f"(float[N,3] x) => (float y) {{ y = {operator}(x) }}"), tmp_path / name)
    (error,) = compare(tmp_path / "a", tmp_path / "b", {"x": np.full((2, 3), -1, np.float32)})
    assert error.signal_to_noise_db == pytest.approx(decibels, nan_ok=True)
    assert error.cosine == pytest.approx(cosine, nan_ok=True)
    json.dumps(error.to_dict(), allow_nan=False)


def test_a_fixed_batch(models, paths, tmp_path):
    fixed = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for model, path in zip(models, fixed, strict=True):
        of_four = onnx.ModelProto()
        of_four.CopyFrom(model)
        del of_four.graph.value_info[:]
        of_four.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        onnx.save(of_four, path)
    for one, other in zip(compare(*fixed, {"x": X}), compare(*paths, {"x": X}), strict=True):
        assert one.name == other.name
        assert one.cosine == pytest.approx(other.cosine, rel=1e-5)


def test_samples_are_counted_once(paths):
    """Sums run over all batches: the error of all is not that of the last ones."""
    whole = compare(*paths, {"x": X})
    again = compare(*paths, [{"x": X[:7]}, {"x": X[7:]}])
    last = compare(*paths, {"x": X[32:]})
    for a, b, c in zip(whole, again, last, strict=True):
        assert a.signal_to_noise_db == pytest.approx(b.signal_to_noise_db, abs=1e-6)
        assert a.signal_to_noise_db != c.signal_to_noise_db


def test_nothing_in_common(make_model, paths, tmp_path):
    onnx.save(make_model("(float[N,3,8,8] x) => (float z) { z = Relu(x) }"), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="found no layer and no output that both models have by name"):
        compare(paths[0], tmp_path / "other.onnx", {"x": X})


def test_data_must_fit(paths):
    with pytest.raises(DataError, match=r"found x: float32\[40, 3, 8\]"):
        compare(*paths, {"x": X[..., 0]})


def test_strings_and_sequences_are_passed_over(make_model, tmp_path):
    model = make_model(
        '(float[N,3] x) => (float y, string s) { y = Relu(x)\ns = Constant<value_strings=["a"]>() }'
    )
    onnx.save(model, tmp_path / "a.onnx")
    (error,) = compare(tmp_path / "a.onnx", tmp_path / "a.onnx", {"x": normal(4, 3)})
    assert error.name == "y"


def test_outputs_are_judged_by_the_model_that_came_in(make_model, tmp_path, monkeypatch):
    """Also where the float model is prepared first, so that scales can be moved in it."""
    rng = np.random.default_rng(0)
    text = """(float[N,5,8] x) => (float y) {
        h = LayerNormalization(x, s, t) r = MatMul(h, v) k = Relu(r) m = MatMul(k, w) y = Add(m, c)
    }"""
    shapes = {"s": (8,), "t": (8,), "v": (8, 8), "w": (8, 8), "c": (8,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["s"][::3] *= 50
    onnx.save(make_model(text, weights), tmp_path / "float.onnx")
    x = rng.standard_normal((16, 5, 8)).astype(np.float32)
    model, _ = convert(
        tmp_path / "float.onnx",
        calibration={"x": x},
        activations="int4",
        smooth=True,
        recipe="fgq",
        group_size=4,
    )
    onnx.save(model, tmp_path / "converted.onnx")
    assert SCALED_KEY in {entry.key for entry in model.metadata_props}

    def output():
        found = compare(tmp_path / "float.onnx", tmp_path / "converted.onnx", [{"x": x}])
        return next(error for error in found if error.name == "y")

    right = output()
    call = SumToAdd.call

    def spoil(self, model):
        model.graph.initializers["c"].const_value = ir.Tensor(-weights["c"], name="c")
        return call(self, model)

    monkeypatch.setattr(SumToAdd, "call", spoil)
    assert output() == right
