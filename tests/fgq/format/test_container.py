"""``fgq::Unpack`` in onnxruntime and in onnx's reference evaluator, and what damaged arrays get."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fgq.errors import ModelError
from fgq.format.container import PACKED, is_unpack, read_weight, unpacked
from fgq.format.functions import LEAST_OPSET, UNPACK, function, recognise
from fgq.format.packing import pack_codes, table
from fgq.graph.queries import constant
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.weights import quantize_weight

OPSETS = range(LEAST_OPSET, 27)
"""Those that onnxruntime 1.31 and onnx both run."""

LAYOUTS = {
    "matmul": ((13, 5), 0, 1),
    "gemm, transB": ((5, 13), 1, 0),
    "batched": ((3, 13, 5), 1, 2),
    "conv": ((6, 13, 3, 2), 1, 0),
    "conv in groups": ((6, 2, 3, 3), 1, 0),
    "transposed conv": ((13, 6, 2, 2), 0, 1),
    "one group": ((5, 4), 1, 0),
    "one weight": ((1, 1), 1, 0),
    "two bytes, full": ((2, 5), 1, 0),
}
SHAPE = LAYOUTS["gemm, transB"][0]


def tensor_of(layout, group_size=4, **options):
    shape, group_axis, channel_axis = LAYOUTS[layout]
    weight = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    codes = options.pop("codes", Codes.TERNARY)
    scheme = WeightScheme(codes=codes, group_size=group_size)
    return quantize_weight(weight, scheme, group_axis=group_axis, channel_axis=channel_axis, **options)


def arrays_of(tensor):
    (plane,) = tensor.planes
    return {
        "codes": pack_codes(plane.codes, tensor.scheme.max_code),
        "table": table(tensor.scheme.max_code),
        "alpha": plane.alpha,
        "group": tensor.group,
        "shape": np.array(tensor.shape, np.int64),
    }


def packed_model(tensor, opset=17, **changes):
    """A model whose outputs are w8, an Unpack of the arrays, and W, its DequantizeLinear."""
    arrays = arrays_of(tensor) | changes
    scale = tensor.row_scale
    nodes = [
        helper.make_node("Unpack", list(arrays), ["w8"], name="unpack", domain="fgq", axis=tensor.group_axis),
        helper.make_node(
            "DequantizeLinear", ["w8", "scale", "zero"], ["W"], name="weight", axis=tensor.channel_axis
        ),
    ]
    arrays |= {"scale": scale, "zero": np.zeros(scale.shape, np.int8)}
    unpack = ir.serde.serialize_function(function(UNPACK, opset))
    return model_of(nodes, arrays, opset, [unpack], tensor.shape)


def model_of(nodes, arrays, opset=17, functions=(), shape=None):
    outputs = [
        helper.make_tensor_value_info("w8", onnx.TensorProto.INT8, shape),
        helper.make_tensor_value_info("W", onnx.TensorProto.FLOAT, shape),
    ]
    produced = {name for node in nodes for name in node.output} | set(arrays)
    graph = helper.make_graph(
        nodes,
        "weights",
        [],
        [output for output in outputs if output.name in produced],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("fgq", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def node_of(model, name):
    read = ir.from_proto(model)
    recognise(read)
    return next(node for node in read.graph if node.name == name)


def read(model, group_axis=1, channel_axis=0):
    return read_weight(node_of(model, "weight").outputs[0], group_axis=group_axis, channel_axis=channel_axis)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codes", PACKED)
@pytest.mark.parametrize("opset", [LEAST_OPSET, 21])
def test_every_layout_unpacks_to_w8_in_onnxruntime(layout, codes, opset, run):
    tensor = tensor_of(layout, codes=codes)
    w8, weights = run(packed_model(tensor, opset), {})
    assert w8.dtype == np.int8
    assert np.array_equal(w8, tensor.int8())
    assert np.array_equal(weights, tensor.dequantize())  # one float32 product each


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_unpacks_to_w8(opset, run):
    tensor = tensor_of("conv")
    model = packed_model(tensor, opset)
    onnx.checker.check_model(model)
    evaluations = [run(model, {})]
    if opset >= 19:  # before it, the evaluator's DequantizeLinear knows no scale per channel
        evaluations.append(ReferenceEvaluator(model).run(None, {}))
    for w8, weights in evaluations:
        assert np.array_equal(w8, tensor.int8())
        assert np.array_equal(weights, tensor.dequantize())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codes", PACKED)
def test_every_layout_unpacks_to_w8_in_the_reference_evaluator(layout, codes):
    tensor = tensor_of(layout, codes=codes)
    w8, weights = ReferenceEvaluator(packed_model(tensor, 21)).run(None, {})
    assert np.array_equal(w8, tensor.int8())
    assert np.array_equal(weights, tensor.dequantize())


@pytest.mark.parametrize("length", range(1, 12))
@pytest.mark.parametrize("group_size", [1, 3, 5, 64])
def test_ragged_sizes_unpack(length, group_size, run):
    rng = np.random.default_rng(length)
    weight = rng.standard_normal((3, length)).astype(np.float32)
    tensor = quantize_weight(weight, WeightScheme(group_size=group_size), group_axis=1, channel_axis=0)
    model = packed_model(tensor, 19)
    assert np.array_equal(run(model, {}, ["w8"])[0], tensor.int8())
    assert np.array_equal(ReferenceEvaluator(model).run(["w8"], {})[0], tensor.int8())
    assert np.array_equal(unpacked(node_of(model, "unpack")), tensor.int8())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("codes", PACKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_weight_is_read_back(layout, codes, per_channel):
    tensor = tensor_of(layout, codes=codes, per_channel=per_channel)
    found = read(packed_model(tensor), tensor.group_axis, tensor.channel_axis)
    assert np.array_equal(found.planes[0].codes, tensor.planes[0].codes)
    assert np.array_equal(found.planes[0].alpha, tensor.planes[0].alpha)
    assert np.array_equal(found.group, tensor.group)
    assert np.array_equal(found.row_scale, tensor.row_scale)
    assert found.row_scale.shape == tensor.row_scale.shape
    assert (found.group_axis, found.channel_axis) == (tensor.group_axis, tensor.channel_axis)
    assert found.scheme.codes is codes
    grouped = codes is not Codes.DUAL
    assert found.scheme.group_size == (min(4, tensor.shape[tensor.group_axis]) if grouped else None)


def int8_model(w8, scale, zero=None, **attributes):
    arrays = {"q": w8, "scale": scale} | ({} if zero is None else {"zero": zero})
    return model_of(
        [helper.make_node("DequantizeLinear", list(arrays), ["W"], name="weight", **attributes)], arrays
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_int8_weight_is_read_back(layout):
    tensor = tensor_of(layout, codes=Codes.INT8)
    for axis in (tensor.channel_axis, tensor.channel_axis - len(tensor.shape)):
        zero = np.zeros(tensor.rows, np.int8)
        model = int8_model(tensor.int8(), tensor.row_scale, zero, axis=axis)
        found = read(model, tensor.group_axis, tensor.channel_axis)
        assert np.array_equal(found.int8(), tensor.int8())
        assert np.array_equal(found.row_scale, tensor.row_scale)
        assert found.scheme == WeightScheme(codes=Codes.INT8)


W8 = np.ones(SHAPE, np.int8)
SCALE = np.ones(5, np.float32)


@pytest.mark.parametrize(
    "foreign",
    {
        "a zero point": int8_model(W8, SCALE, np.array([0, 0, 1, 0, 0], np.int8), axis=0),
        "-128": int8_model(W8 * np.int8(-128), SCALE, axis=0),
        "uint8": int8_model(W8.astype(np.uint8), SCALE, np.zeros(5, np.uint8), axis=0),
        "scales of the other axis": int8_model(W8, np.ones(13, np.float32), axis=1),
        "scales of the default axis": int8_model(W8, np.ones(13, np.float32)),
        "blocked scales": int8_model(W8, np.ones((5, 1), np.float32), axis=1, block_size=13),
        "a scale of zero": int8_model(W8, 0 * SCALE, axis=0),
        "a negative scale": int8_model(W8, -SCALE, axis=0),
        "float16 scales": int8_model(W8, SCALE.astype(np.float16), axis=0),
        "scales of another number": int8_model(W8, SCALE[:3], axis=0),
        "a vector": int8_model(W8[0], np.ones(13, np.float32), axis=0),
        "no weights": int8_model(W8[:, :0], SCALE, axis=0),
    }.items(),
    ids=lambda case: case[0],
)
def test_weights_quantized_in_another_way_are_none_of_ours(foreign):
    assert read(foreign[1]) is None


def test_a_scale_for_all_channels_is_read_from_any_axis():
    found = read(int8_model(W8, np.array(0.5, np.float32)))
    assert found.row_scale.shape == ()
    assert read_weight(None, group_axis=1, channel_axis=0) is None


def with_codes(value):
    return {"codes": np.full(13, value, np.uint8)}


TENSOR = tensor_of("gemm, transB")
GOOD = arrays_of(TENSOR)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (with_codes(243), "byte 243 at index 0, wanted 0..242"),
        (with_codes(255), "byte 255"),
        ({"codes": GOOD["codes"][:-1]}, r"uint8\[12\] for 65 codes, wanted uint8\[13\]"),
        ({"codes": np.append(GOOD["codes"], np.uint8(0))}, r"uint8\[14\] for 65 codes"),
        ({"codes": GOOD["codes"].astype(np.int32)}, r"int32\[13\] for 65 codes"),
        ({"codes": GOOD["codes"][None]}, r"uint8\[1, 13\]"),
        ({"table": -table(1)}, "unknown table, wanted that of ternary, tied, int4, dual-int4 codes"),
        ({"table": table(1)[:243]}, "unknown table"),
        ({"table": table(1)[:, ::-1]}, "unknown table"),
        ({"alpha": GOOD["alpha"][:, :-1]}, r"plane 0 alpha: found uint8\[5, 3\], wanted uint8\[5, 4\]"),
        ({"alpha": GOOD["alpha"][:, :1]}, r"plane 0 alpha: found uint8\[5, 1\]"),
        ({"alpha": GOOD["alpha"][:2]}, r"plane 0 alpha: found uint8\[2, 4\]"),
        ({"alpha": GOOD["alpha"][0]}, r"plane 0 alpha: found uint8\[4\]"),
        ({"alpha": GOOD["alpha"].astype(np.float32)}, "plane 0 alpha: found float32"),
        ({"alpha": np.full((5, 4), 128, np.uint8)}, "plane 0 alpha: found 128, wanted at most 127"),
        ({"group": GOOD["group"].astype(np.int64)}, r"group: found int64\[13\], wanted int32\[13\]"),
        ({"group": GOOD["group"][:-1]}, r"group: found int32\[12\]"),
        ({"group": GOOD["group"][:1]}, r"group: found int32\[1\]"),
        ({"group": GOOD["group"][::-1].copy()}, "group: found gaps or a decrease"),
        ({"group": GOOD["group"] + np.int32(1)}, "group: found gaps or a decrease"),
        ({"group": GOOD["group"] - np.int32(1)}, "group: found gaps or a decrease"),
        ({"group": GOOD["group"] * np.int32(2)}, "group: found gaps or a decrease"),
        ({"group": np.zeros(0, np.int32)}, r"group: found int32\[0\]"),
        ({"shape": np.array([5, 14])}, r"uint8\[13\] for 70 codes"),
        ({"shape": np.array([13, 5])}, "group: found int32.13., wanted int32.5."),
        ({"shape": np.array([65])}, "axes: found group axis 1"),
        ({"shape": np.array([5, 13, 1])}, "plane 0 alpha: found uint8.5, 4., wanted uint8.5, 4, 1."),
        ({"shape": np.array([-5, -13])}, r"found the shape \[-5, -13\], wanted int64 sizes of at least 1"),
        ({"shape": np.array([5, -1])}, "found the shape"),
        ({"shape": np.array([5.0, 13.0])}, "found the shape"),
        ({"shape": np.array([[5], [13]])}, r"found the shape int64\[2, 1\], wanted int64 sizes"),
        ({"shape": np.array(65)}, "found the shape"),
        ({"shape": np.array([2**62, 2**62])}, "wanted uint8"),
        (
            {"shape": np.array([], np.int64), "codes": GOOD["codes"][:1]},
            "found the shape",
        ),
        ({"shape": np.array([1] * 70), "codes": GOOD["codes"][:1]}, r"found the shape int64\[70\], wanted"),
        ({"shape": np.array([2**40, 2**40])}, "wanted uint8"),
        ({"table": GOOD["table"].astype(np.int32)}, "found an unknown table"),
        (
            {"shape": np.array([5, 0]), "codes": GOOD["codes"][:0], "group": GOOD["group"][:0]},
            "found the shape",
        ),
    ],
)
def test_damaged_arrays_are_refused(damage, found):
    model = packed_model(TENSOR, **damage)
    with pytest.raises(ModelError, match=f"(unpack|weight): .*{found}"):
        read(model)
    with pytest.raises(ModelError, match=f"unpack: .*{found}"):
        unpacked(node_of(model, "unpack"))


@pytest.mark.parametrize("scale", [0 * SCALE, -SCALE, np.nan * SCALE, SCALE.astype(np.float16)])
def test_damaged_row_scales_of_packed_weights_are_refused(scale):
    with pytest.raises(ModelError, match="weight: row scale: found"):
        read(packed_model(dataclasses.replace(TENSOR, row_scale=scale)))


def test_computed_arrays_are_refused():
    model = packed_model(TENSOR)
    del model.graph.initializer[[entry.name for entry in model.graph.initializer].index("shape")]
    model.graph.node.insert(0, helper.make_node("Shape", ["codes"], ["shape"]))
    with pytest.raises(ModelError, match="unpack: found inputs that are computed"):
        read(model)


def test_groups_along_another_axis_are_refused():
    with pytest.raises(ModelError, match="unpack: found groups along axis 1, wanted axis 0"):
        read(packed_model(TENSOR), group_axis=0, channel_axis=1)


@pytest.mark.parametrize("axis", [-1, 2, 7])
def test_an_axis_that_the_weight_does_not_have_is_refused(axis):
    model = packed_model(TENSOR)
    model.graph.node[0].attribute[0].i = axis
    with pytest.raises(ModelError, match=f"unpack: .*axis {axis}"):
        unpacked(node_of(model, "unpack"))


def test_the_function_is_found_by_name_and_domain():
    model = packed_model(TENSOR)
    assert is_unpack(node_of(model, "unpack"))
    assert not is_unpack(node_of(model, "weight"))
    assert not is_unpack(None)
    model.graph.node[0].domain = "other"
    assert not is_unpack(node_of(model, "unpack"))


def test_what_a_caller_may_override_is_not_constant():
    model = packed_model(TENSOR)
    model.graph.input.append(helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, [5]))
    weight = node_of(model, "weight")
    assert constant(weight.inputs[1]) is None
    assert np.array_equal(constant(weight.inputs[2]), np.zeros(5))
    assert constant(None) is None
    assert read(model) is None


def test_constant_nodes_are_constants():
    value = numpy_helper.from_array(SCALE, "value")
    model = model_of(
        [
            helper.make_node("Constant", [], ["scale"], value=value),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["W"], name="weight", axis=0),
        ],
        {"q": W8},
    )
    assert np.array_equal(read(model).row_scale, SCALE)
