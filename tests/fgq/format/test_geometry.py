"""Sizes that cannot be meant are refused before onnxruntime, which dies of some, sees them."""

from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq import Session
from fgq.errors import FgqError, ModelError, SizeError
from fgq.format.onnx_file import from_proto

IMAGE = np.zeros((1, 2, 6, 6), np.float32)
node = helper.make_node


def model(nodes, constants=None, x=IMAGE, opset=17, declared=None, functions=(), inputs=()):
    shape = list(x.shape) if declared is None else declared
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), shape), *inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    imports = [
        helper.make_opsetid(domain, version) for domain, version in (("", opset), ("com.microsoft", 1))
    ]
    imports += [helper.make_opsetid("local", 1)] * bool(functions)
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def constant(array):
    return numpy_helper.from_array(np.asarray(array), "value")


def quantized(op_type, scale, zero, **attributes):
    """An operator between quantizers, as onnxruntime joins them."""
    nodes = [
        node("QuantizeLinear", ["x", "one", "none"], ["a"]),
        node("DequantizeLinear", ["a", "one", "none"], ["b"]),
        node(op_type, ["b", "b"] if op_type in ("Concat", "Add") else ["b"], ["c"], **attributes),
        node("QuantizeLinear", ["c", "scale", "zero"], ["d"]),
        node("DequantizeLinear", ["d", "scale", "zero"], ["y"]),
    ]
    return model(nodes, {"one": np.float32(1), "none": np.uint8(0), "scale": scale, "zero": zero})


def conv(weights=(4, 2, 3, 3), **attributes):
    return model([node("Conv", ["x", "w"], ["y"], **attributes)], {"w": np.zeros(weights, np.float32)})


def attention(declared=None, **heads):
    return model(
        [node("Attention", ["x", "x", "x"], ["y"], **heads)],
        x=np.zeros((1, 4, 8), np.float32), opset=23, declared=declared,
    )  # fmt: skip


def computed_scale(*nodes, **constants):
    nodes += (
        node("QuantizeLinear", ["x", "s"], ["q"]),
        node("DequantizeLinear", ["q", "s"], ["d"]),
        node("Concat", ["d", "d"], ["y"], axis=1),
    )
    return model(nodes, constants)


def in_function():
    imports = [helper.make_opsetid("", 17)]
    nodes = [node("QuantizeLinear", ["a", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["b"])]
    function = helper.make_function("local", "Through", ["a", "s"], ["b"], nodes, imports)
    call = node("Through", ["x", "scale"], ["y"], domain="local")
    return model([call], {"scale": np.zeros(0, np.float32)}, functions=[function])


def left_out(*given, within="Max"):
    """A call whose function gives an operator of any number of operands none for one of them."""
    imports = [helper.make_opsetid("", 17)]
    nodes = [node(within, ["a", "b"], ["c"])]
    function = helper.make_function("local", "Most", ["a", "b"], ["c"], nodes, imports)
    return model([node("Most", given, ["y"], domain="local")], functions=[function])


EMPTY, NONE = np.zeros(0, np.float32), np.zeros(0, np.uint8)
SCALE, ZERO = np.float32(0.1), np.uint8(0)
INTEGERS = {"w": np.zeros((4, 2, 3, 3), np.uint8), "s": SCALE, "z": ZERO}

REFUSED = {
    "no scale": (quantized("Concat", EMPTY, ZERO, axis=1), "scale or zero point of shape [0]"),
    "no zero point": (quantized("Softmax", SCALE, NONE), "scale or zero point of shape [0]"),
    "neither": (quantized("Relu", EMPTY, NONE), "scale or zero point of shape [0]"),
    "scales of no rows": (quantized("Relu", EMPTY.reshape(1, 0), ZERO), "of shape [1, 0]"),
    "other zero points": (
        quantized("Relu", np.ones(3, np.float32), NONE + np.zeros((2, 0), np.uint8).sum(0)),
        "zero point of shape [0]",
    ),
    "two zero points of three scales": (
        quantized("Relu", np.ones(2, np.float32), np.zeros(3, np.uint8)),
        "scales of shape [2] and zero points of shape [3]",
    ),
    "scales of an axis that is none": (
        model(
            [node("DequantizeLinear", ["w", "s"], ["v"], axis=4), node("Add", ["x", "v"], ["y"])],
            {"w": np.zeros((2, 6, 6), np.int8), "s": np.ones(2, np.float32)},
        ),
        "scales along axis 4 of a tensor of 3 axes",
    ),
    "five scales of eight biases": (
        model(
            [node("DequantizeLinear", ["w", "s"], ["v"], axis=0), node("Add", ["x", "v"], ["y"])],
            {"w": np.zeros(8, np.int32), "s": np.ones(5, np.float32)},
        ),
        "found 5 scales along axis 0, which has 8",
    ),
    "an empty scale of an integer product": (
        model(
            [node("MatMulInteger", ["x", "w", "z"], ["p"]), node("Cast", ["p"], ["y"], to=1)],
            {"w": np.zeros((4, 2), np.uint8), "z": NONE},
            x=np.zeros((3, 4), np.uint8),
        ),
        "scale or zero point of shape [0]",
    ),
    "an empty scale of onnxruntime's own operator": (
        model(
            [
                node("QLinearConcat", ["s", "z", "x", "s", "z"], ["c"], domain="com.microsoft", axis=1),
                node("Cast", ["c"], ["y"], to=1),
            ],
            {"s": EMPTY, "z": NONE},
            x=np.zeros((2, 2), np.uint8),
        ),
        "found the shape [0] of input 0",
    ),
    "an empty scale that is computed": (
        computed_scale(node("ConstantOfShape", ["n"], ["s"]), n=np.array([0])),
        "of shape [0]",
    ),
    "the last operand of several left out": (
        model([node("Sum", ["x", ""], ["y"])]),
        "found no input 1, wanted all 2",
    ),
    "one operand of an Einsum left out": (
        model([node("Einsum", ["x", "", "x"], ["y"], equation="abcd,e,abcd->ab")]),
        "found no input 1, wanted all 3",
    ),
    "an operand that a call leaves out": (left_out("x", ""), "found no input 1"),
    "an operand that a short call leaves out": (left_out("x", within="Mean"), "found no input 1"),
    "an empty scale that is given to a function": (in_function(), "of shape [0]"),
    "a quantizer that is no constant around Where": (
        model(
            [
                node("QuantizeLinear", ["x", "s", "z"], ["a"]),
                node("DequantizeLinear", ["a", "s", "z"], ["b"]),
                node("Where", ["c", "b", "b"], ["y"]),
            ],
            {"s": SCALE, "c": np.array(True)},
            inputs=[helper.make_tensor_value_info("z", TensorProto.UINT8, [])],
        ),
        "wanted one of a constant scale",
    ),
    "padding below 0": (conv(pads=[-1, 0, 0, 0]), "pads: found [-1, 0, 0, 0]"),
    "a stride of 0": (conv(strides=[0, 1]), "strides: found [0, 1], wanted numbers from 1"),
    "a stride beyond all": (conv(strides=[2**40, 1]), "strides: found [1099511627776, 1]"),
    "a dilation below 0": (conv(dilations=[1, -1]), "dilations: found [1, -1]"),
    "no groups": (conv(group=0), "group: found [0]"),
    "a kernel of other weights": (conv(kernel_shape=[5, 3]), "kernel_shape: found [5, 3], wanted [3, 3]"),
    "strides of one axis": (conv(strides=[1]), "strides of 1 axes, wanted 2"),
    "pads of one axis": (conv(pads=[1, 1], strides=[1, 1]), "different numbers of axes: strides, pads"),
    "weights without an image": (conv((4, 2)), "weights of 2 axes, wanted 3 or more"),
    "an unknown padding": (conv(auto_pad="SAME"), "auto_pad: found 'SAME', wanted NOTSET"),
    "an empty window": (
        model([node("MaxPool", ["x"], ["y"], kernel_shape=[0, 2])]),
        "kernel_shape: found [0, 2]",
    ),
    "a window beyond all": (
        model([node("LpPool", ["x"], ["y"], kernel_shape=[2**31, 2**31])]),
        "kernel_shape: found",
    ),
    "no heads": (attention(q_num_heads=0, kv_num_heads=2), "q_num_heads: found 0, wanted 1 or more"),
    "heads beyond all": (attention(q_num_heads=2, kv_num_heads=2**62), "kv_num_heads: found"),
    "no word of heads": (attention(), "found no q_num_heads and queries of 3 axes"),
    "two limits of a Clip": (
        model([node("Clip", ["x", "lo"], ["y"])], {"lo": np.zeros(2, np.float32)}),
        "found the shape [2] of input 1, wanted a single number",
    ),
    "an axis that is no number": (
        model([node("CumSum", ["x", "a"], ["y"])], {"a": np.zeros(0, np.int64)}),
        "found the shape [0] of input 1",
    ),
    "a negative axis of batches": (
        model([node("GatherND", ["x", "i"], ["y"], batch_dims=-1)], {"i": np.zeros((1, 1), np.int64)}),
        "batch_dims: found -1",
    ),
    "tensors of other ranks": (
        model([node("Concat", ["x", "w"], ["y"], axis=1)], {"w": np.zeros(0, np.float32)}),
        "found tensors of [1, 4] axes",
    ),
    "scales of other axes": (
        model([node("Resize", ["x", "", "s"], ["y"])], {"s": np.ones(3, np.float32)}),
        "scales: found the shape [3], wanted 4 numbers",
    ),
    "an empty window of a transform": (
        model(
            [node("STFT", ["x", "n", "w"], ["y"])],
            {"n": np.array(2), "w": EMPTY},
            x=np.zeros((1, 8, 1), np.float32),
        ),
        "found an empty window",
    ),
    "parts of nothing": (
        model(
            [node("SplitToSequence", ["x", "n"], ["s"]), node("ConcatFromSequence", ["s"], ["y"], axis=0)],
            {"n": np.array(0)},
        ),
        "found parts of sizes [0]",
    ),
    "an axis beyond all": (
        model([node("LayerNormalization", ["x", "s"], ["y"], axis=2**31)], {"s": np.ones(6, np.float32)}),
        "axis: found [2147483648], wanted axes of at most 64",
    ),
    "another number of parts": (
        model([node("Split", ["x"], ["y", "z", "v"], axis=2, num_outputs=2)], opset=18),
        "num_outputs: found 2, wanted 3",
    ),
    "an image of no pixels": (
        model([node("ConvTranspose", ["x", "w"], ["y"])], {"w": IMAGE[:, :, :3, :3]}, declared=[1, 2, 0, 6]),
        "found an image of shape [1, 2, 0, 6]",
    ),
    "a sequence of nothing": (
        model(
            [node("GRU", ["n", "w", "w"], ["", "r"], hidden_size=2), node("Add", ["r", "x"], ["y"])],
            {"n": np.zeros((2, 0, 2), np.float32), "w": np.zeros((1, 6, 2), np.float32)},
        ),
        "found an input of shape [2, 0, 2]",
    ),
    "a transform of a number": (
        model([node("DFT", ["n"], ["y"])], {"n": np.float32(1)}),
        "found 0 axes of input 0, wanted 2 or more",
    ),
    "a constant of 100 GB": (
        model(
            [node("ConstantOfShape", ["n"], ["c"]), node("Add", ["x", "c"], ["y"])],
            {"n": np.array([25_000, 1_000_000])},
        ),
        "found the shape [25000, 1000000], wanted at most",
    ),
    "a number, very often": (
        model(
            [node("Expand", ["v", "n"], ["c"]), node("Add", ["x", "c"], ["y"])],
            {"v": np.zeros(1, np.float32), "n": np.array([2**33])},
        ),
        "found the shape [8589934592]",
    ),
    "a few numbers, very often": (
        model(
            [node("Tile", ["v", "n"], ["c"]), node("Add", ["x", "c"], ["y"])],
            {"v": np.zeros(4, np.float32), "n": np.array([2**31])},
        ),
        "repeats of the shape [4]",
    ),
    "very many numbers": (
        model(
            [
                node("Range", ["zero", "end", "one"], ["r"]),
                node("Cast", ["r"], ["c"], to=1),
                node("Add", ["x", "c"], ["y"]),
            ],
            {"zero": np.array(0), "end": np.array(2**40), "one": np.array(1)},
        ),
        "found 0 to 1099511627776 in steps of 1",
    ),
    "very much padding": (
        model(
            [node("Pad", ["v", "n"], ["c"]), node("Add", ["x", "c"], ["y"])],
            {"v": np.zeros(1, np.float32), "n": np.array([0, 2**40])},
        ),
        "found the pads [0, 1099511627776]",
    ),
    "a shape of 70 axes": (
        model([node("Reshape", ["x", "n"], ["y"])], {"n": np.ones(70, np.int64)}),
        "found the shape [70] of input 1, wanted at most 64 sizes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sizes_that_cannot_be(case):
    found, reason = REFUSED[case]
    with pytest.raises(ModelError) as caught:
        from_proto(found)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("model: node ")


def doubled(times):
    """Return a model that concatenates a constant with itself again and again."""
    names = ["c", *(f"d{count}" for count in range(times))]
    nodes = [node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)]
    return model(
        [*nodes, node("Add", ["x", names[-1]], ["y"])],
        {"c": np.ones((1, 1), np.float32)},
        declared=["N", 2, "H", 6],
    )


def test_constants_that_unfold_step_by_step():
    with pytest.raises(SizeError, match=r"found the shape \[536870912, 1\] of what is made of constants"):
        Session(doubled(30).SerializeToString())
    session = Session(doubled(1).SerializeToString())
    (y,) = session.run(None, {"x": IMAGE[..., :2, :]})
    np.testing.assert_array_equal(y, np.ones((1, 2, 2, 6)))


def test_a_short_time_transform_of_open_sizes():
    inputs = [
        helper.make_tensor_value_info("q", TensorProto.FLOAT, [1, 8, 1]),
        helper.make_tensor_value_info("window", TensorProto.FLOAT, ["L"]),
    ]
    made = model([node("STFT", ["q", "step", "window"], ["y"])], {"step": np.array(2)}, inputs=inputs)
    with pytest.raises(ModelError, match=r"found a signal of open rank or a window of open size"):
        Session(made.SerializeToString())


def test_a_transform_of_an_open_number_of_axes():
    inputs = [helper.make_tensor_value_info("q", TensorProto.FLOAT, None)]
    made = model([node("DFT", ["q"], ["y"])], inputs=inputs)
    with pytest.raises(
        ModelError, match=r"found an operand whose number of axes is open, wanted it declared"
    ):
        Session(made.SerializeToString())
    del made.graph.input[1:]
    made.graph.node[0].input[0] = "x"
    x = np.arange(72, dtype=np.float32).reshape(1, 2, 36, 1)
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 36, 1]))
    (y,) = Session(made.SerializeToString()).run(None, {"x": x})
    expected = np.fft.fft(x[..., 0], axis=1)
    np.testing.assert_allclose(y[..., 0] + 1j * y[..., 1], expected, atol=1e-3)


def test_sizes_that_only_inference_finds():
    """The rank of the queries is that of a product: three, for which the number of heads is missing."""
    nodes = [node("MatMul", ["x", "w"], ["q"]), node("Attention", ["q", "q", "q"], ["y"])]
    found = model(nodes, {"w": np.ones((8, 8), np.float32)}, x=np.zeros((1, 4, 8), np.float32), opset=23)
    from_proto(found)
    with pytest.raises(FgqError, match="found no q_num_heads and queries of 3 axes"):
        Session(found.SerializeToString(), allow_float=True)


RIGHT = {
    "one scale in a list": quantized("Relu", np.ones(1, np.float32), np.zeros((), np.uint8)),
    "a scale for each channel": model(
        [
            node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=-3),
            node("Conv", ["x", "v"], ["y"], kernel_shape=[3, 3], pads=[1, 0, 1, 0]),
        ],
        {
            "w": np.zeros((4, 2, 3, 3), np.int8),
            "s": np.ones(2, np.float32),
            "z": np.zeros(2, np.int8),
        },
    ),
    "scales of blocks": model(
        [
            node("DequantizeLinear", ["w", "s"], ["v"], axis=0, block_size=2),
            node("MatMul", ["x", "v"], ["y"]),
        ],
        {"w": np.zeros((6, 3), np.int8), "s": np.ones((3, 3), np.float32)},
        opset=21,
    ),
    "a scale that is computed": computed_scale(node("Mul", ["a", "a"], ["s"]), a=np.float32(0.5)),
    "a kernel whose size is known when it runs": model(
        [
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Cast", ["m"], ["i"], to=TensorProto.INT64),
            node("Expand", ["i", "four"], ["ones"]),
            node("Tile", ["w", "ones"], ["v"]),
            node("Conv", ["x", "v"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        ],
        {"w": np.ones((3, 2, 3, 3), np.float32), "four": np.array([4])},
    ),
    "heads": attention(q_num_heads=2, kv_num_heads=2),
    "a window of one axis": model(
        [node("AveragePool", ["x"], ["y"], kernel_shape=[2], strides=[2])], x=np.zeros((1, 2, 6), np.float32)
    ),
    "sizes left out": model([node("Resize", ["x", "", "", "n"], ["y"])], {"n": np.array([1, 2, 12, 12])}),
    "operands that a call gives": left_out("x", "x"),
    "half a constant": model(
        [node("Concat", ["x", "w"], ["y"], axis=-1)], {"w": np.zeros((1, 2, 6, 1), np.float32)}
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_sizes_that_may_be(case, run):
    found = RIGHT[case]
    (shape,) = [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in found.graph.input]
    session = Session(found.SerializeToString(), allow_float=True)
    x = np.linspace(-1, 1, np.prod(shape), dtype=np.float32).reshape(shape)
    assert np.allclose(session.run(None, {"x": x})[0], run(found, {"x": x})[0])
