"""What a conversion is judged by, and whose fault it is when a pass is wrong."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fgq
from fgq.converters import original as judging
from fgq.converters.original import Original, check_prepared, differences, rounding
from fgq.converters.passes import SumToAdd, prepare
from fgq.converters.reader import read_float_model
from fgq.errors import ModelError

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 8)).astype(np.float32)
B = RNG.standard_normal(8).astype(np.float32)
X = RNG.standard_normal((40, 8)).astype(np.float32)
TEXT = "(float[N,8] x) => (float y) { h = MatMul(x, w) r = Relu(h) y = Gemm<beta=2.0>(r, w, b) }"


@pytest.fixture
def model(make_model):
    return make_model(TEXT, {"w": W, "b": B})


@pytest.fixture
def spoil(monkeypatch):
    """Let one of the passes do something else first."""

    def install(spoiling):
        call = SumToAdd.call

        def spoiled(self, model):
            spoiling(model)
            return call(self, model)

        monkeypatch.setattr(SumToAdd, "call", spoiled)

    return install


def negate(model):
    model.graph.initializers["b"].const_value = ir.Tensor(-B, name="b")


def test_passes_that_are_right_are_not_mentioned(model):
    report = fgq.convert(model, group_size=1, weights="int8", activations="none", calibration={"x": X}).report
    assert not any("prepared float graph" in line for line in report.warnings)
    assert report.self_check.outputs[0].signal_to_noise_db > 30


def test_a_pass_that_is_wrong_is_seen_and_named(model, spoil):
    spoil(negate)
    report = fgq.convert(
        model, weights="int8", activations="none", calibration={"x": X}, held_out={"x": X}
    ).report
    line = next(line for line in report.warnings if line.startswith("output y: the prepared float graph"))
    assert line.endswith("the pass SumToAdd of fgq is at fault, not the model")
    # figures are those of the file against the model that came in, not against the spoiled graph
    h = np.maximum(X.astype(np.float64) @ W, 0) @ W
    exact, wrong = h + 2 * B, h - 2 * B
    expected = 10 * np.log10(np.square(exact[:2]).sum() / np.square(exact - wrong)[:2].sum())
    assert report.self_check.outputs[0].signal_to_noise_db == pytest.approx(expected, abs=1)
    loss = 100 * np.square(exact - wrong).sum() / np.square(exact).sum()
    assert report.held_out.measure == "top-1 agreement" or report.held_out.loss.value == pytest.approx(
        loss, 0.1
    )
    assert report.held_out.loss.value > 10


def test_a_pass_that_breaks_the_graph_is_not_called_the_models_fault(model, spoil):
    def misname(model):
        next(node for node in model.graph if node.op_type == "MatMul").op_type = "MatMulOf"

    spoil(misname)
    with pytest.raises(ModelError, match=r"^prepared graph: .* the pass SumToAdd of fgq is at fault"):
        fgq.convert(model, activations="none")


def test_a_pass_that_fails_is_not_called_the_models_fault(model, spoil):
    def fail(model):
        raise KeyError("lost")

    spoil(fail)
    with pytest.raises(ModelError, match=r"^prepared graph: fgq is at fault, not the model.*SumToAdd"):
        fgq.convert(model, activations="none")


def test_a_model_that_does_not_run_is_called_so(make_model):
    model = make_model("(float[N,8] x) => (float y) { h = Unknown(x) y = MatMul(h, w) }", {"w": W})
    with pytest.raises(ModelError, match=r"^model: onnxruntime refuses it"):
        fgq.convert(model, activations="none")


def test_a_model_that_runs_only_as_it_is_read(model, monkeypatch):
    """Such as one of an opset that is newer than onnxruntime."""

    def refuse(self):
        raise ModelError("model: onnxruntime refuses it (too new)")

    monkeypatch.setattr(judging.Original, "_given", refuse)
    opened = Original(model).open()
    assert opened.note == "model: onnxruntime refuses it (too new); it was judged by what fgq reads in it"
    np.testing.assert_allclose(
        opened.session.run(None, {"x": X})[0], np.maximum(X @ W, 0) @ W + 2 * B, 1e-4, 1e-4
    )
    report = fgq.convert(model, activations="none").report
    assert opened.note in report.warnings


def test_the_model_is_judged_as_it_was_given(model, tmp_path):
    """As a file with its weights in another, a proto, and a model in memory, which is not changed."""
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="weights")
    held = onnx.load(path, load_external_data=False)
    in_memory = ir.load(path)
    for source in (path, str(path), in_memory, onnx.load(path)):
        opened = Original(source).open()
        assert opened.note == ""
        np.testing.assert_allclose(
            opened.session.run(None, {"x": X})[0], np.maximum(X @ W, 0) @ W + 2 * B, 1e-4, 1e-4
        )
    assert isinstance(in_memory.graph.initializers["w"].const_value, ir.ExternalTensor)
    with pytest.raises(ModelError):
        Original(held).open()


def test_random_values_are_no_fault(make_model):
    """Those of onnxruntime depend on where a node stands, and passes change that."""
    text = """(float[N,8] x) => (float y) {
        v = Transpose(w)
        n = RandomNormalLike(x)
        h = Add(x, n)
        y = MatMul(h, v)
    }"""
    model = make_model(text, {"w": W})
    report = fgq.convert(model, activations="none").report
    assert any("gives other values each time" in line for line in report.warnings)
    assert not any("at fault" in line for line in report.warnings)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("(float[N,8] x) => (float y) { y = MatMul(x, w) }", 2.0**-24),
        (
            "(float[N,8] x) => (float y) { h = Cast<to=10>(x) f = Cast<to=1>(h) y = MatMul(f, w) }",
            2.0**-11,
        ),
        (
            "(float[N,8] x) => (float y) { q, s, z = DynamicQuantizeLinear(x) f = DequantizeLinear(q, s, z) "
            "y = MatMul(f, w) }",
            2.0**-8,
        ),
    ],
)
def test_rounding_is_that_of_the_least_precise_operation(make_model, text, unit):
    model = read_float_model(make_model(text, {"w": W}))
    prepare(model)
    assert rounding(model) == np.sqrt(unit)


def test_differences():
    exact = {
        "float": np.float32([3, 4]),
        "nan": np.float32([np.nan, np.inf, 1]),
        "zero": np.zeros(3, np.float32),
        "whole": np.array([1, 2]),
        "sequence": [np.float32([1]), np.float32([2])],
    }
    assert list(differences(exact, exact, 0)) == []
    near = exact | {"float": np.float32([3, 4.005]), "nan": np.float32([np.nan, np.inf, 1.001])}
    assert list(differences(exact, near, 2e-3)) == []
    assert [name for name, _ in differences(exact, near, 5e-4)] == ["float", "nan"]
    far = {
        "float": np.float32([[3, 4]]),
        "nan": np.float32([0, np.inf, 1]),
        "zero": np.float32([0, 0, 1]),
        "whole": np.array([1, 3]),
        "sequence": [np.float32([1]), np.float32([3])],
    }
    assert dict(differences(exact, far, 2.0**-12)) == {
        "float": "in its shape or type (float32[2] became float32[1, 2])",
        "nan": "in where it is infinite or NaN",
        "zero": "by 1.0e+00 of its norm",
        "whole": "in 1 of 2 values",
        "sequence": "by 5.0e-01 of its norm",
    }
    assert list(differences(exact, {}, 1)) == [(name, "in that it is missing") for name in exact]


def test_what_does_not_run_on_random_data_is_loaded_at_least(model):
    found = read_float_model(model)
    prepare(found)
    assert list(check_prepared(Original(model), found, {}, None)) == []
    found.graph[0].op_type = "MatMulOf"
    with pytest.raises(ModelError, match=r"^prepared graph: onnxruntime refuses it"):
        list(check_prepared(Original(model), found, {}, None))


def test_weights_alone_are_quantized_where_activations_are_to_stay_float(make_model):
    """By default onnxruntime makes them 8-bit, in a MatMul with dequantized weights."""
    codes = RNG.integers(-1, 2, (256, 256)).astype(np.float32)
    model = make_model("(float[N,256] x) => (float y) { y = MatMul(x, w) }", {"w": codes / 16})
    x = RNG.standard_normal((4, 256)).astype(np.float32)
    x[:, 0] = 30
    exact = x.astype(np.float64) @ codes / 16
    converted, report = fgq.convert(
        model, activations="none", first_last_int8=False, calibration={"x": x}, recipe="fgq"
    )
    ours = fgq.Session(converted.SerializeToString()).run(None, {"x": x})[0]
    assert np.abs(ours - exact).max() < 1e-5 * np.abs(exact).max()
    assert report.self_check.outputs[0].signal_to_noise_db > 100
    if report.self_check.by_default > 1e-3:  # where this processor and onnxruntime have that operator
        assert any("session.qdq_matmulnbits_accuracy_level" in line for line in report.warnings)
