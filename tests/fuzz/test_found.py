"""What the fuzzers have found, made small: each once ended wrongly."""

import numpy as np
import onnx
import pytest

from fgq import Session, convert
from fgq.errors import FgqError


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def agree(run):
    """Convert a model, and compare both engines on its samples and on more of them, twice."""

    def check(model, samples, rtol=3e-5, **options):
        options = {
            "recipe": "fgq",
            "first_last_int8": False,
            "group_size": 4,
            "x86_without_vnni": True,
        } | options
        dynamic = options.get("activations", "int8").startswith("int8-dynamic")
        converted, _ = convert(model, calibration=None if dynamic else iter([samples]), **options)
        session = Session(converted.SerializeToString(), threads=1)
        wanted = run(converted, samples)
        for _ in range(2):
            for ours, theirs in zip(session.run(None, samples), wanted, strict=True):
                assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
                np.testing.assert_allclose(ours, theirs, 0, rtol * float(np.abs(theirs).max(initial=0)))
        return session

    return check


def test_softmax_of_a_sum_with_a_constant_of_full_size(make_model, agree):
    text = """(float[4,6] x) => (float y) {
        a = MatMul(x, u)
        b = Mul(a, s)
        c = Add(b, m)
        d = Softmax<axis=1>(c)
        y = MatMul(d, v)
    }"""
    weights = {"u": normal(6, 5), "s": np.float32(0.5), "m": normal(4, 5), "v": normal(5, 7)}
    agree(make_model(text, weights), {"x": normal(4, 6)})


@pytest.mark.parametrize("opset", [9, 12, 13, 24])
def test_softmax_along_an_axis_of_one(make_model, agree, opset):
    text = """(float[N,5,7,1] x) => (float y) {
        a = Conv<strides=[3,1]>(x, u)
        b = Relu(a)
        c = Softmax<axis=3>(b)
        y = Conv(c, v)
    }"""
    weights = {"u": normal(6, 5, 3, 1), "v": normal(4, 6, 1, 1)}
    agree(make_model(text, weights, opset=opset), {"x": normal(2, 5, 7, 1)})


@pytest.mark.parametrize("activations", ["int8-dynamic", "int8-dynamic-token"])
def test_a_bias_of_more_axes_than_the_product(make_model, agree, activations):
    text = """(float[N,6] x) => (float y) {
        a = MatMul(x, u)
        b = Add(a, k)
        c = Flatten<axis=1>(b)
        y = MatMul(c, v)
    }"""
    weights = {"u": normal(6, 5), "k": normal(1, 1, 5), "v": normal(10, 3)}
    agree(make_model(text, weights), {"x": normal(2, 6)}, activations=activations)


def test_an_output_that_is_an_input_and_said_to_be_of_any_size(make_model, agree):
    text = "(float[3,4] x) => (float y, float[a,b] x) { y = MatMul(x, u) }"
    session = agree(make_model(text, {"u": normal(4, 5)}), {"x": normal(3, 4)})
    assert session.get_inputs()[0].shape == [3, 4]


def test_an_opset_beyond_all_numbers_is_refused(make_model):
    model, _ = convert(make_model("(float[N,4] x) => (float y) { y = MatMul(x, u) }", {"u": normal(4, 5)}),
                       activations="int8-dynamic")  # fmt: skip
    for version in (2**40, -1):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        changed.opset_import[0].version = version
        with pytest.raises(FgqError):
            Session(changed.SerializeToString())


@pytest.mark.parametrize(
    "kind", [onnx.AttributeProto.FLOAT, onnx.AttributeProto.INTS, onnx.AttributeProto.STRING]
)
def test_attributes_of_another_type_are_refused(make_model, kind):
    model, _ = convert(make_model("(float[N,4] x) => (float y) { y = MatMul(x, u) }", {"u": normal(4, 5)}),
                       activations="int8-dynamic", first_last_int8=False)  # fmt: skip
    calls = [node for node in model.graph.node if node.op_type == "Unpack"]
    assert calls
    calls[0].attribute[0].type = kind
    with pytest.raises(FgqError, match="attribute"):
        Session(model.SerializeToString())


def test_an_attribute_of_a_function_outside_of_functions_is_refused(make_model):
    # onnxruntime takes the value, and a reader of references has none
    model = make_model(
        "(float[N,4] x) => (float y) { a = ReduceMean<axes=[1]>(x)\n y = MatMul(a, u) }", {"u": normal(1, 5)}
    )
    model.graph.node[0].attribute[0].ref_attr_name = "axis"
    with pytest.raises(FgqError, match="attribute 'axes': found one of a function's"):
        Session(model.SerializeToString(), allow_float=True)


@pytest.mark.parametrize("scale", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_step_that_is_not_positive_is_refused(make_model, scale):
    # fused with what is before it, onnxruntime gives other integers than without
    text = """(float[N,4] x) => (uint8 y) {
        a = Relu(x)
        y = QuantizeLinear(a, s, z)
    }"""
    model = make_model(text, {"s": np.float32(scale), "z": np.uint8(0)})
    with pytest.raises(FgqError, match=r"found the scale .*, wanted positive numbers"):
        Session(model.SerializeToString(), allow_float=True)


@pytest.mark.parametrize("form", ["strides=[1,3]", "strides=[1,3], pads=[0,1,0,0]"])
def test_one_window_larger_than_the_image(make_model, agree, form):
    # onnxruntime divides towards zero, and so has one window where ONNX's floor has none
    text = f"""(float[N,5,2,2] x) => (float y) {{
        a = Conv(x, u)
        b = MaxPool<kernel_shape=[1,4], {form}>(a)
        y = Conv(b, v)
    }}"""
    model = make_model(text, {"u": normal(6, 5, 1, 1), "v": normal(4, 6, 1, 1)})
    session = agree(model, {"x": normal(2, 5, 2, 2)})
    assert "max_pool" in [step.kernel for step in session.steps()]


def test_factors_for_more_columns_than_a_product_has_are_refused(make_model):
    # onnxruntime joins the four operators and reads a weight's scales beyond their end
    text = """(float[N,3] x) => (float y) {
        q, s, z = DynamicQuantizeLinear(x)
        a = MatMulInteger(q, w, z)
        b = Cast<to=1>(a)
        f = Mul(s, k)
        y = Mul(b, f)
    }"""
    weights = {"w": np.ones((3, 1), np.int8), "k": normal(7)}
    with pytest.raises(FgqError, match="found 7 factors for the 1 columns"):
        Session(make_model(text, weights).SerializeToString(), allow_float=True)
