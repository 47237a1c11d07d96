"""Observation against onnx's reference evaluator: the same tensors, the same counts."""

import gc

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import fgq.data.calibration
from fgq.data.calibration import observe
from fgq.data.inputs import input_specs
from fgq.data.samples import as_samples
from fgq.errors import ConfigError, DataError, ModelError
from fgq.quantization.mmse import StreamingHistogram


def sixteenths(rng, *shape):
    """Small multiples of 1/16: their sums of products are exact, so every order of summation agrees."""
    return rng.integers(-16, 17, shape).astype(np.float32) / 16


def weight(name, seed, *shape):
    values = sixteenths(np.random.default_rng(seed), *shape)
    return f"float[{', '.join(map(str, shape))}] {name} = {{{', '.join(map(str, values.ravel()))}}}"


MLP = f"""<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 6] x) => (float[batch, 5] y)
<{weight("w1", 1, 6, 8)}, {weight("w2", 2, 8, 5)}> {{
    h = MatMul(x, w1)
    r = Relu(h)
    d = Add(r, r)
    y = MatMul(d, w2)
    s = Shape(d)
}}"""


def model_of(text=MLP):
    return ir.from_onnx_text(text)


def inputs_of(count):
    return sixteenths(np.random.default_rng(3), count, 6)


def reference(model, names, x):
    proto = ir.to_proto(model)
    return dict(zip(names, ReferenceEvaluator(proto).run(names, {"x": x}), strict=True))


def assert_equal(found, wanted):
    np.testing.assert_array_equal(found.counts, wanted.counts)
    for field in ("name", "exponent", "count", "zeros", "minimum", "maximum"):
        assert getattr(found, field) == getattr(wanted, field)


class TestObserve:
    def test_against_the_reference_evaluator(self):
        model, x = model_of(), inputs_of(50)
        before = ir.to_proto(model).SerializeToString()
        names = ["d", "x", "h", "y", "r"]
        found = observe(model, names, {"x": x}, batch_size=7)
        assert list(found) == names
        observable = model.clone()
        values = {value.name: value for node in observable.graph for value in node.outputs}
        observable.graph.outputs.extend(values[name] for name in "hrd")
        for name, array in (reference(observable, ["h", "r", "d", "y"], x) | {"x": x}).items():
            wanted = StreamingHistogram(name)
            wanted.update(array)
            assert_equal(found[name], wanted)
        assert ir.to_proto(model).SerializeToString() == before

    @pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
    @pytest.mark.parametrize("form", ["samples", "arrays", "feeds", "reader"])
    def test_batches_and_kinds_of_source_do_not_matter(self, form, batch_size):
        model, x = model_of(), inputs_of(50)
        feeds = [{"x": x[start : start + batch_size]} for start in range(0, 50, batch_size)]

        class Reader:
            def __init__(self):
                self.rest = list(feeds)

            def get_next(self):
                return self.rest.pop(0) if self.rest else None

        source = {
            "samples": as_samples({"x": x}, input_specs(model)),
            "arrays": {"x": x},
            "feeds": feeds,
            "reader": Reader(),
        }[form]
        wanted = observe(model, ["r", "y"], {"x": x}, batch_size=50)
        found = observe(model, ["r", "y"], source, batch_size=batch_size)
        for name in wanted:
            assert_equal(found[name], wanted[name])

    @pytest.mark.parametrize("known", [True, False])
    def test_progress(self, known):
        calls = []
        x = inputs_of(5)
        source = {"x": x} if known else [{"x": x[:2]}, {"x": x[2:4]}, {"x": x[4:]}]
        observe(model_of(), ["h"], source, batch_size=2, progress=lambda *call: calls.append(call))
        assert calls == [(done, 5 if known else None) for done in (2, 4, 5)]

    def test_observed_bytes_bound_the_batch(self, monkeypatch):
        model, x = model_of(), inputs_of(50)
        wanted = observe(model, ["h", "r"], {"x": x})
        done = []
        monkeypatch.setattr(fgq.data.calibration, "OBSERVED_BYTES", 3 * 2 * 8 * 4)  # h and r of three samples
        found = observe(model, ["h", "r"], {"x": x}, progress=lambda count, _: done.append(count))
        assert done == [*range(3, 49, 3), 50]
        for name in wanted:
            assert_equal(found[name], wanted[name])

    def test_inputs_alone_need_no_run(self):
        x = inputs_of(5)
        (found,) = observe(model_of(), ["x"], {"x": x}).values()
        assert (found.count, found.maximum) == (30, x.max())
        assert observe(model_of(), [], {"x": x}) == {}

    def test_a_fixed_batch(self):
        model = model_of(MLP.replace("batch", "2"))
        with pytest.warns(UserWarning, match="1 of 5 samples do not fill"):
            found = observe(model, ["h"], {"x": inputs_of(5)})
        assert found["h"].count == 4 * 8

    @pytest.mark.parametrize(("onnx_type", "dtype"), [("float16", np.float16), ("double", np.float64)])
    def test_other_float_types(self, onnx_type, dtype):
        text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({onnx_type}[n] x) => ({onnx_type}[n] y) {{ y = Neg(x) }}"""
        x = np.array([1.5, -2.0, 0.0], dtype)
        found = observe(model_of(text), ["x", "y"], {"x": x})
        assert [(one.minimum, one.maximum, one.zeros) for one in found.values()] == [
            (-2, 1.5, 1),
            (-1.5, 2, 1),
        ]

    def test_weights_outside_the_model_file(self, tmp_path):
        model, x = model_of(), inputs_of(10)
        wanted = observe(model, ["y"], {"x": x})
        ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
        found = observe(ir.load(tmp_path / "m.onnx"), ["y"], {"x": x})
        assert_equal(found["y"], wanted["y"])

    def test_nothing_is_left_behind(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        observe(model_of(), ["y"], {"x": inputs_of(3)})
        with pytest.raises(DataError):
            observe(model_of(), ["y"], {"x": np.full((1, 6), np.nan, np.float32)})
        gc.collect()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nothing", "tensor 'nothing': found no such tensor"),
            ("w1", "tensor 'w1': found a constant"),
            ("s", r"tensor 's': found tensor\(int64\)"),
        ],
    )
    def test_tensors_that_cannot_be_observed(self, name, message):
        with pytest.raises(ModelError, match=message):
            observe(model_of(), ["h", name], {"x": inputs_of(3)})

    def test_an_integer_input(self):
        text = """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[n] x) => (float[n] y) { y = Cast <to = 1> (x) }"""
        with pytest.raises(ModelError, match="tensor 'x': found int64"):
            observe(model_of(text), ["x"], {"x": np.arange(3)})
        assert observe(model_of(text), ["y"], {"x": np.arange(3)})["y"].maximum == 2

    def test_a_tensor_inside_a_subgraph(self):
        text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n] x, bool c) => (float[n] y) {
            y = If (c) <
                then_branch = t () => (float[n] p) { q = Neg(x) p = Abs(q) },
                else_branch = e () => (float[n] o) { o = Exp(x) }
            >
        }"""
        with pytest.raises(ModelError, match="tensor 'q': found it inside a subgraph"):
            observe(model_of(text), ["q"], [])
        feeds = [{"x": np.float32([1, 2]), "c": np.array(True)}]
        calls = []
        found = observe(model_of(text), ["y"], feeds, progress=lambda *call: calls.append(call))
        assert (found["y"].minimum, found["y"].maximum) == (1, 2)
        assert calls == [(2, None)]

    def test_an_activation_that_is_not_finite(self):
        text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n] x) => (float[n] y) { y = Log(x) }"""
        with pytest.raises(DataError, match="tensor 'y': found 1 NaN among 3 values"):
            observe(model_of(text), ["y"], {"x": np.float32([1, 2, -1])})
        with pytest.raises(DataError, match="tensor 'y': found 1 infinite"):
            observe(model_of(text), ["y"], {"x": np.float32([1, 2, 0])})

    def test_a_model_that_onnxruntime_refuses(self):
        text = """<ir_version: 8, opset_import: ["" : 17, "nobody" : 1]>
        g (float[n] x) => (float[n] y) { y = nobody.Unknown(x) }"""
        with pytest.raises(ModelError, match="onnxruntime refuses it") as caught:
            observe(model_of(text), ["y"], {"x": inputs_of(1)[0]})
        assert "\n" not in str(caught.value)

    def test_a_model_with_a_loose_end(self):
        model = model_of()
        model.graph.node(0).replace_input_with(1, ir.Value(name="nowhere"))
        with pytest.raises(ModelError, match="onnxruntime refuses it"):
            observe(model, ["h"], {"x": inputs_of(1)})

    def test_a_batch_that_onnxruntime_refuses(self):
        text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, m] x, float[n, k] z) => (float[n, l] y) { y = Add(x, z) }"""
        feed = {"x": np.ones((2, 3), np.float32), "z": np.ones((2, 4), np.float32)}
        with pytest.raises(DataError, match=r"onnxruntime cannot run .*x: float32\[1, 3\]") as caught:
            observe(model_of(text), ["y"], feed)
        assert "\n" not in str(caught.value)

    def test_batch_size(self):
        with pytest.raises(ConfigError, match="batch size: found 0"):
            observe(model_of(), ["h"], {"x": inputs_of(3)}, batch_size=0)
