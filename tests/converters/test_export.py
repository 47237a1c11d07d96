import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from fgq import convert
from fgq.config import Activations, ExportForm, Form
from fgq.converters.export import export
from fgq.errors import ModelError

TEXT = """(float[N,3,8,8] x) => (float y, float d) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Clip(a, zero, six)
    c = Conv<pads=[1,1,1,1]>(r, v)
    d = Add(c, r)
    p = GlobalAveragePool(d)
    q = Flatten(p)
    y = Gemm<transB=1>(q, u, k)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": normal(8, 3, 3, 3),
    "b": normal(8),
    "v": normal(8, 8, 3, 3),
    "u": normal(5, 8),
    "k": normal(5),
}
WEIGHTS |= {"zero": np.float32(0), "six": np.float32(6)}
FEEDS = {"x": normal(4, 3, 8, 8)}


@pytest.fixture(scope="module")
def float_model(make_model):
    return make_model(TEXT, WEIGHTS)


def exported(model, form):
    found = ir.from_proto(model)
    export(found, form)
    result = ir.to_proto(found)
    onnx.checker.check_model(result, full_check=True)
    return result


@pytest.mark.parametrize("activations", list(Activations))
@pytest.mark.parametrize("form", [Form.PACKED, Form.INT8])
@pytest.mark.parametrize("target", [ExportForm.INT8, ExportForm.INLINED])
def test_integers_stay(float_model, run, check_integers, activations, form, target):
    model = convert(float_model, calibration=FEEDS, group_size=4, activations=activations, form=form).model
    result = exported(model, target)
    assert not result.functions
    assert {entry.domain for entry in result.opset_import} == {""}
    for found, expected in zip(run(result, FEEDS), run(model, FEEDS), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("activations", list(Activations))
@pytest.mark.parametrize("form", list(Form))
def test_forms_are_equal(float_model, run, activations, form):
    """Whatever form is asked for, onnxruntime's results are those of the packed one."""
    options = {"calibration": FEEDS, "group_size": 4, "activations": activations}
    packed = run(convert(float_model, **options).model, FEEDS)
    for found, expected in zip(
        run(convert(float_model, **options, form=form).model, FEEDS), packed, strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("activations", ["int8", "int4", "none"])
@pytest.mark.parametrize("form", [Form.PACKED, Form.INT8])
def test_float(float_model, run, activations, form):
    """Float weights and biases are what the integers stand for."""
    model = convert(float_model, calibration=FEEDS, group_size=4, activations=activations, form=form).model
    result = exported(model, ExportForm.FLOAT)
    assert {node.op_type for node in result.graph.node} == {
        "Conv",
        "Clip",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }
    # All of it in onnxruntime's own dequantization: the converted model without its activations' quantizers.
    unquantized = onnx.ModelProto()
    unquantized.CopyFrom(exported(model, ExportForm.INT8))
    behind = {node.output[0]: node for node in unquantized.graph.node if node.op_type == "QuantizeLinear"}
    behind |= {node.output[0]: node for node in unquantized.graph.node if node.op_type == "Clip"}
    for node in unquantized.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in behind:
            source = node.input[0]
            while source in behind and (behind[source].op_type != "Clip" or source.endswith("_clipped")):
                source = behind[source].input[0]
            node.CopyFrom(onnx.helper.make_node("Identity", [source], [node.output[0]]))
    for found, expected in zip(run(result, FEEDS), run(unquantized, FEEDS), strict=True):
        # Float sums of the same numbers in another order.
        np.testing.assert_allclose(found, expected, 0, 1e-5 * np.abs(expected).max())


def test_quantizer_before_an_output(make_model, run):
    text = "(float[N,16] x) => (float y, float d) { a = MatMul(x, w)\n y = MatMul(a, v)\n d = Identity(a) }"
    feeds = {"x": normal(4, 16)}
    model = convert(make_model(text, {"w": normal(16, 16), "v": normal(16, 4)}), calibration=feeds).model
    for form in ExportForm:
        result = exported(model, form)
        assert [output.name for output in result.graph.output] == ["y", "d"]
        run(result, feeds)


def test_refuses_a_float_model(float_model):
    with pytest.raises(ModelError, match="found no packed and no int8 weights"):
        export(ir.from_proto(float_model), ExportForm.INT8)


STEPS = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)
INTEGERS = np.random.default_rng(0).integers(-127, 128, (6, 4)).astype(np.int8)
FOREIGN = {
    "one scale": ((), {"ws": np.float32(0.01), "wz": np.int8(3)}),
    "one scale of one axis": ((), {"ws": np.float32([0.01]), "wz": np.int8([3])}),
    "columns": ((1,), {"ws": np.float32([1, 2, 3, 4]), "wz": np.int8([0, 1, 2, 3])}),
    "rows, from the end": ((-2,), {"ws": np.arange(1, 7, dtype=np.float32), "wz": np.int8([0] * 6)}),
    "blocks": ((0, 4), {"ws": normal(2, 4) ** 2, "wz": np.int8([[1] * 4, [2] * 4])}),
}


@pytest.mark.parametrize(("along", "scales"), FOREIGN.values(), ids=FOREIGN)
def test_models_of_others_as_float(make_model, run, along, scales):
    """Scales as onnxruntime's quantizer and others write them, and a float weight behind a quantizer."""
    named = zip(("axis", "block_size"), along, strict=False)
    attributes = ", ".join(f"{name}={value}" for name, value in named)
    text = f"""(float[N,6] x) => (float y) {{
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        w = DequantizeLinear{f"<{attributes}>" if along else ""}(wq, ws, wz)
        b = DequantizeLinear(bq, bs, bz)
        a = Gemm(d, w, b)
        vq = QuantizeLinear(v, s, z)
        vd = DequantizeLinear(vq, s, z)
        y = MatMul(a, vd)
    }}"""
    weights = {"wq": INTEGERS, "s": np.float32(1e-4), "z": np.uint8(128), "v": np.float32(1e-4) * STEPS}
    bias = {"bq": np.int32([1 << 30, -5, 7, 0]), "bs": np.float32([1e-9]), "bz": np.int32([0])}
    model = make_model(text, weights | bias | scales, opset=21, ir_version=10)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3]))
    found = exported(model, ExportForm.FLOAT)
    assert {node.op_type for node in found.graph.node} == {"Gemm", "MatMul"}
    x = np.random.default_rng(0).integers(-100, 100, (5, 6)).astype(np.float32) * np.float32(1e-4)
    # every value is one that its quantizer has, so that the rounding of float products alone is left
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(run(found, {"x": x})[0], expected, 0, 1e-5 * np.abs(expected).max())


def test_scales_that_do_not_fit(make_model):
    text = "(float[N,6] x) => (float y) { w = DequantizeLinear<axis=7>(wq, ws) y = MatMul(x, w) }"
    model = make_model(text, {"wq": INTEGERS, "ws": np.float32([1, 2])})
    with pytest.raises(ModelError, match="found scales that do not fit integers of shape"):
        exported(model, ExportForm.FLOAT)
