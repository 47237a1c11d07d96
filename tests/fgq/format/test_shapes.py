"""Types and shapes inferred from the inputs alone, by onnx and by onnxruntime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from fgq import convert
from fgq.format.shapes import InferShapes

SEQUENCES = """(float[N,4,6,6] x) => (float y) {
    a = Conv(x, w)
    s = SplitToSequence<axis=2>(a)
    c = ConcatFromSequence<axis=2>(s)
    y = Conv(c, v)
}"""
RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((8, k, 1, 1)).astype(np.float32) for name, k in (("w", 4), ("v", 8))}
CHAIN = "(float[N,4,6,6] x) => (float y) {a = Conv(x, w) b = Relu(a) y = Conv(b, v)}"


def inferred(proto):
    model = ir.from_proto(proto)
    InferShapes()(model)
    return {value.name: value for node in model.graph.all_nodes() for value in node.outputs}


def declare(proto, name, shape, dtype=TensorProto.FLOAT):
    proto.graph.value_info.append(helper.make_tensor_value_info(name, dtype, shape))


def test_shapes_are_inferred_through_a_graph(make_model):
    model = ir.from_proto(make_model("(float[N,4,6,6] x) => (float y) {a = Conv(x, w) y = Relu(a)}", WEIGHTS))
    assert InferShapes()(model).modified
    assert [str(dim) for dim in model.graph.outputs[0].shape] == ["N", "8", "6", "6"]
    assert not InferShapes()(model).modified


@pytest.mark.parametrize("stale", [[1, 8, 6, 6], [7, 5], [1 << 40]], ids=str)
def test_what_is_declared_between_is_not_believed(make_model, stale):
    proto = make_model(CHAIN, WEIGHTS)
    declare(proto, "a", stale)
    declare(proto, "b", stale, TensorProto.INT64)
    found = inferred(proto)
    assert [str(dim) for dim in found["a"].shape] == ["N", "8", "6", "6"]
    assert (found["b"].dtype, found["b"].shape) == (ir.DataType.FLOAT, found["a"].shape)


@pytest.mark.parametrize(
    ("declared", "kept"),
    [(["batch", 8, 6, 6], True), (["n", "c", "h", "w"], True), (["N", 8], False), (["N", 9, 6, 6], False)],
    ids=str,
)
def test_an_output_keeps_what_is_declared_where_it_may_be_so(make_model, declared, kept):
    proto = make_model(CHAIN, WEIGHTS)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, declared))
    shape = [dim if isinstance(dim, int) else dim.value for dim in inferred(proto)["y"].shape]
    assert shape == (declared if kept else ["N", 8, 6, 6])


def test_shapes_through_values_computed_from_sizes(make_model):
    text = """(float[N,4,6,6] x) => (float y) {
        s = Shape(x)
        n = Gather(s, zero)
        u = Unsqueeze(n, axis)
        t = Concat<axis=0>(u, rest)
        y = Reshape(x, t)
    }"""
    found = inferred(
        make_model(text, {"zero": np.int64(0), "axis": np.int64([0]), "rest": np.int64([8, -1])})
    )
    assert [str(dim) for dim in found["y"].shape][1] == "8"


def test_sequences_and_optional_values(make_model):
    text = """(float[N,4] x) => (float y) {
        s = SequenceConstruct(x, x)
        o = Optional(s)
        t = OptionalGetElement(o)
        y = ConcatFromSequence<axis=0>(t)
    }"""
    found = inferred(make_model(text, opset=18))
    sequence = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    assert (found["s"].type, found["o"].type, found["t"].type) == (
        sequence,
        ir.OptionalType(sequence),
        sequence,
    )
    assert found["y"].type == ir.TensorType(ir.DataType.FLOAT)


CONTRIB = """(float[N,8] x) => (float y) {
    a = com.microsoft.FastGelu(x)
    b = Relu(a)
    s = SequenceConstruct(a, b)
    y = ConcatFromSequence<axis=1>(s)
}"""


def test_operators_that_onnx_does_not_know(make_model):
    found = inferred(make_model(CONTRIB, domains='"com.microsoft" : 1'))
    assert {found[name].dtype for name in "aby"} == {ir.DataType.FLOAT}
    assert found["s"].type == ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    assert [str(dim) for dim in found["b"].shape] == ["N", "8"]


def test_operators_that_nobody_knows_have_the_declared_type(make_model):
    proto = make_model("(float[N,8] x) => (float y) {a = other.F(x) y = Relu(a)}", domains='"other" : 1')
    assert inferred(proto)["a"].type is None
    declare(proto, "a", [1, 8])
    found = inferred(proto)["a"]
    assert (found.dtype, found.shape) == (ir.DataType.FLOAT, None)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 1], "VALID", "SAME_UPPER"], ids=str)
@pytest.mark.parametrize("kernel", [[2, 1], [3, 3], [2, 2]], ids=str)
def test_windows_that_begin_behind_the_image_are_none(make_model, run, operator, kernel, pads):
    """onnx's own inference counts them with ceil_mode, and onnxruntime does not: such sizes are not known."""
    padding = f'auto_pad="{pads}"' if isinstance(pads, str) else f"pads={pads}"
    pool = f"{operator}<kernel_shape={kernel}, strides=[2,3], ceil_mode=1, {padding}>"
    if isinstance(pads, list) and any(pad >= size for pad, size in zip(pads, kernel * 2, strict=True)):
        pytest.skip("no legal padding")
    if pads == "SAME_UPPER" and kernel != [3, 3]:
        pytest.skip("onnxruntime finds padding below zero")
    text = f"(float[1,1,9,6] x) => (float y, float z) {{ y = {pool}(x) a = Relu(y) z = {pool}(a) }}"
    model = make_model(text)
    expected = run(model, {"x": np.zeros((1, 1, 9, 6), np.float32)})
    found = inferred(model)
    for name, array in zip("yz", expected, strict=True):
        assert len(found[name].shape) == 4
        known = zip(found[name].shape, array.shape, strict=True)
        assert all(size == real for size, real in known if isinstance(size, int))


def test_a_long_vector_of_integers_costs_no_memory(make_model):
    """Of which onnx would hold every element to find shapes."""
    proto = make_model("(int64[N] x) => (float y) {a = Add(x, x) b = local.F(a) y = Cast<to=1>(b)}")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40
    body = [helper.make_node("Mul", ["a", "a"], ["b"])]
    proto.functions.append(
        helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    assert list(inferred(proto)["y"].shape) == [1 << 40]


def test_nor_does_one_whose_length_is_computed(make_model):
    text = (
        "(float[N] x) => (float y) {a = Reshape(x, s) b = ConstantOfShape(s) c = Add(a, b) y = Cast<to=1>(c)}"
    )
    found = inferred(make_model(text, {"s": np.int64([1 << 40])}))
    assert found["b"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("maker", ["Reshape(a, s)", "ConstantOfShape<value=int64[1]{3}>(s)"])
def test_nor_does_one_that_a_function_makes(make_model, maker):
    """A file of 16 kB made onnx hold 2^31 elements of a vector that stood in the body of Unpack alone."""
    proto = make_model("(int64[4] x) => (float[N] y) {b = local.F(x) y = Cast<to=1>(b)}")
    proto.functions.append(
        onnx.parser.parse_function(
            '<domain: "local", opset_import: ["" : 17]> F (a) => (b) '
            f"{{s = Constant<value_ints=[{1 << 40}]>() c = {maker} b = Mul(c, c)}}"
        )
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    assert list(inferred(proto)["b"].shape) == [1 << 40]


def test_a_model_with_a_sequence_converts(make_model, run):
    feeds = {"x": RNG.standard_normal((8, 4, 6, 6)).astype(np.float32)}
    model = make_model(SEQUENCES, WEIGHTS)
    converted, report = convert(model, calibration=feeds, group_size=4, x86_without_vnni=True)
    # The last convolution has a float result, which onnxruntime computes in float32.
    assert report.self_check.outputs[0].engines_difference < 1e-6
    onnx.checker.check_model(converted, full_check=True)
