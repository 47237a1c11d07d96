"""Activations quantized at run time: the session against onnxruntime on the same file."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantType, quantize_dynamic

from fgq import ConversionConfig, Session, convert
from fgq.config import ExportForm, Form
from fgq.converters.export import export
from fgq.converters.survey import inspect
from fgq.errors import ConfigError
from fgq.format.dynamic_functions import find_dynamic_products
from fgq.quantization.scheme import ActivationScheme, Ranges

TENSOR, TOKEN = DYNAMIC = ["int8-dynamic", "int8-dynamic-token"]

# Two products share what they read; one has a bias and a residual, one is the model's output.
TEXT = """(float[B,S,12] x) => (float y, float z) {
    a = MatMul(x, u)
    b = Add(a, c)
    r = Relu(b)
    d = MatMul(r, v)
    y = Add(d, r)
    z = MatMul(x, w)
}"""


def values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


WEIGHTS = {"u": values(12, 10), "c": values(10), "v": values(10, 10), "w": values(12, 7)}


def converted(make_model, activations, text=TEXT, arrays=WEIGHTS, opset=17, **options):
    options = {"group_size": 4, "first_last_int8": False} | options
    return convert(make_model(text, arrays, opset=opset), activations=activations, **options)


def assert_same(found, expected):
    """Equal integers; the engines may round the ends, a product and two sums, as fused operations or not."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        atol = 2.0**-21 * float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


CASES = {
    "one row": values(1, 1, 12),
    "several": values(3, 5, 12),
    "many": values(2, 150, 12),
    "no samples": values(0, 5, 12),
    "no rows": values(2, 0, 12),
    "zeros": np.zeros((2, 3, 12), np.float32),
    "constant rows": np.repeat(values(2, 3, 1), 12, axis=2),
    "rows of different size": values(2, 3, 12) * np.float32([[[1e-3], [1], [1e3]]]),
    "positive": np.abs(values(2, 3, 12)) + 1,
}


@pytest.mark.parametrize("activations", DYNAMIC)
@pytest.mark.parametrize("opset", [13, 18])
def test_inputs_of_any_length(make_model, run, activations, opset):
    model = converted(make_model, activations, opset=opset).model
    session = Session(model.SerializeToString(), threads=1)
    for _ in range(2):  # step by step, then as planned
        for x in CASES.values():
            found = session.run(None, {"x": x})
            if x.size == 0 and activations == TOKEN:  # the shapes of onnxruntime's reductions are wrong there
                assert [array.shape for array in found] == [(*x.shape[:2], 10), (*x.shape[:2], 7)]
                continue
            assert_same(found, run(model, {"x": x}))


@pytest.mark.parametrize("activations", DYNAMIC)
@pytest.mark.parametrize(
    "options", [{"kernels": "multiplication-free"}, {"memory": "compact"}, {"threads": 3}]
)
def test_options_of_a_session(make_model, run, activations, options):
    model = converted(make_model, activations).model
    assert_same(Session(model.SerializeToString(), **options).run(None, {"x": CASES["many"]}),
                run(model, {"x": CASES["many"]}))  # fmt: skip


@pytest.mark.parametrize("activations", DYNAMIC)
def test_steps(make_model, activations):
    """One quantization for both readers of x, one for r; the additions go with their products."""
    session = Session(converted(make_model, activations).model.SerializeToString())
    kernels = [step.kernel for step in session.steps()]
    assert sum(kernel in ("quantize_dynamic", "quantize_rows") for kernel in kernels) == 2
    assert [step.nodes for step in session.steps() if step.kernel == "onnxruntime"] == [1]  # the ReLU
    assert len(kernels) == 6


@pytest.mark.parametrize("activations", DYNAMIC)
def test_vectors(make_model, run, activations):
    """A vector times a matrix."""
    model = converted(make_model, activations, "(float[12] x) => (float y) {y = MatMul(x, u)}", WEIGHTS).model
    feeds = {"x": values(12)}
    assert_same(Session(model.SerializeToString()).run(None, feeds), run(model, feeds))


@pytest.mark.parametrize("activations", DYNAMIC)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(make_model, run, activations, transposed):
    weights = {"u": values(*((10, 12) if transposed else (12, 10))), "c": values(10)}
    text = f"(float[N,12] x) => (float y) {{y = Gemm<transB={transposed}>(x, u, c)}}"
    result = converted(make_model, activations, text, weights)
    assert result.report.layers[0].activations == activations
    model, feeds = result.model, {"x": values(6, 12)}
    assert_same(Session(model.SerializeToString()).run(None, feeds), run(model, feeds))
    exact = make_model(text, weights)
    wide = converted(make_model, activations, text, weights, weights="int8").model
    (expected,), (found,) = run(exact, feeds), run(wide, feeds)
    # with 8-bit weights too, nothing but two roundings to 1/255 of the range lies between them
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_a_row_of_its_own(make_model):
    """Per token, a row does not know what else is in the batch; per tensor, it does."""
    x = values(1, 4, 12)
    x[0, 3] *= 1000
    for activations, equal in ((TOKEN, True), (TENSOR, False)):
        session = Session(converted(make_model, activations).model.SerializeToString())
        together, alone = (session.run(["z"], {"x": part})[0][0, :3] for part in (x, x[:, :3]))
        assert np.array_equal(together, alone) == equal


def test_nan_stays_in_its_row(make_model):
    session = Session(converted(make_model, TOKEN).model.SerializeToString())
    x = values(1, 4, 12)
    (expected,) = session.run(["z"], {"x": x})
    x[0, 2, 5] = np.nan
    (found,) = session.run(["z"], {"x": x})
    np.testing.assert_array_equal(found[0, [0, 1, 3]], expected[0, [0, 1, 3]])
    assert np.isfinite(found).all()


def test_what_onnxruntime_fuses(make_model, optimized):
    """The weights are folded; a product that shares its activations is fused without their quantization."""
    found = optimized(converted(make_model, TENSOR).model)
    assert found == {
        "DynamicQuantizeLinear": 1,
        "MatMulIntegerToFloat": 2,
        "Relu": 1,
        "DynamicQuantizeMatMul": 1,
        "Add": 1,
    }


def test_the_reference_evaluator_agrees(make_model, run):
    """onnx's own interpreter on a file whose functions are calls: opset 19 on, as for static activations."""
    model = converted(make_model, TOKEN, opset=19).model
    feeds = {"x": CASES["several"]}
    assert_same(ReferenceEvaluator(model).run(None, feeds), run(model, feeds))


@pytest.mark.parametrize("activations", DYNAMIC)
@pytest.mark.parametrize("form", [ExportForm.INT8, ExportForm.INLINED, ExportForm.FLOAT])
def test_export(make_model, run, activations, form):
    model = converted(make_model, activations).model
    other = ir.from_proto(model)
    export(other, form)
    proto = ir.to_proto(other)
    assert not proto.functions
    feeds = {"x": CASES["several"]}
    if form is not ExportForm.FLOAT:
        assert_same(run(proto, feeds), run(model, feeds))
        return
    assert {node.op_type for node in proto.graph.node} == {"MatMul", "Add", "Relu"}
    for found, expected in zip(run(proto, feeds), run(model, feeds), strict=True):
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("activations", DYNAMIC)
def test_inspect(make_model, tmp_path, activations):
    onnx.save(converted(make_model, activations).model, tmp_path / "m.onnx")
    layers = inspect(tmp_path / "m.onnx", ConversionConfig()).layers
    found = [(layer.operator, layer.scheme, layer.activations) for layer in layers]
    assert found == [("MatMul", "ternary N=4", activations)] * 3


def test_files_of_onnxruntimes_own_quantizer(make_model, run, tmp_path):
    onnx.save(make_model(TEXT, WEIGHTS), tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "m.onnx", per_channel=True, weight_type=QuantType.QInt8
    )
    session = Session(tmp_path / "m.onnx")
    assert sum(step.kernel == "quantize_dynamic" for step in session.steps()) == 2
    feeds = {"x": CASES["several"]}
    assert_same(session.run(None, feeds), run(tmp_path / "m.onnx", feeds))


BROKEN = {
    "integers that others make": "q, s, o = DynamicQuantizeLinear(x)\n p = MatMulInteger(q, w8, t)",
    "no zero point": "q, s, o = DynamicQuantizeLinear(x)\n p = MatMulInteger(q, w8)",
    "weights with a zero point": "q, s, o = DynamicQuantizeLinear(x)\n p = MatMulInteger(q, w8, o, one)",
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_something_else_stays_with_onnxruntime(make_model, run, case):
    end = "f = Cast<to=1>(p)\n k = Mul(s, r)\n y = Mul(f, k)"
    text = f"(float[N,12] x) => (float y) {{ {BROKEN[case]}\n {end} }}"
    weights = {
        "w8": np.random.default_rng(0).integers(-127, 128, (12, 5)).astype(np.int8),
        "r": np.abs(values(5)),
        "t": np.uint8(3),
        "one": np.int8(1),
    }
    model = make_model(text, weights)
    assert not find_dynamic_products(ir.from_proto(model).graph)
    feeds = {"x": values(4, 12)}
    assert_same(Session(model.SerializeToString()).run(None, feeds), run(model, feeds))


OBSTACLES = {
    "a convolution": ("(float[N,4,5,5] x) => (float y) {y = Conv(x, k)}", {"k": values(6, 4, 3, 3)}),
    "its constant is on the left": ("(float[4,N] x) => (float y) {y = MatMul(k, x)}", {"k": values(6, 4)}),
    "its constant is a batch": ("(float[2,N,4] x) => (float y) {y = MatMul(x, k)}", {"k": values(2, 4, 6)}),
    "it transposes": ("(float[4,N] x) => (float y) {y = Gemm<transA=1>(x, k)}", {"k": values(4, 6)}),
}


@pytest.mark.parametrize("activations", DYNAMIC)
@pytest.mark.parametrize("reason", OBSTACLES)
def test_layers_that_keep_real_activations(make_model, activations, reason):
    """Their weights are converted all the same, and the report says why."""
    (layer,) = converted(make_model, activations, *OBSTACLES[reason]).report.layers
    assert layer.scheme == "ternary N=4"
    assert layer.activations == "float"
    assert layer.reason.startswith(reason)
    assert layer.reason.endswith("activations stay float")


@pytest.mark.parametrize("activations", DYNAMIC)
@pytest.mark.parametrize("form", list(Form))
def test_calibrated(make_model, run, activations, form):
    """Data are not needed, and help: the error on other data of the kind is less."""
    mix = values(12, 12, seed=1) * np.float32(0.2) + 1
    feeds = [{"x": values(2, 9, 12, seed=seed) @ mix} for seed in range(12)]
    test = {"x": values(8, 20, 12, seed=99) @ mix}
    exact = run(make_model(TEXT, WEIGHTS), test, ["z"])[0]
    plain, better = (
        converted(make_model, activations, calibration=data, form=form) for data in (None, feeds)
    )
    assert plain.report.options["recipe"] == "fgq"
    assert better.report.options["recipe"] == "calibrated"
    first, second = (np.linalg.norm(run(each.model, test, ["z"])[0] - exact) for each in (plain, better))
    assert second < 0.8 * first


def test_four_bits_are_refused():
    with pytest.raises(ConfigError, match="found 4 with ranges found at run time, wanted 8"):
        ActivationScheme(bits=4, ranges=Ranges.TOKEN)
    with pytest.raises(ConfigError, match="wanted one of int8, int4, int8-dynamic, int8-dynamic-token, none"):
        ConversionConfig(activations="int4-dynamic")
