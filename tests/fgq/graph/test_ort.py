"""Sessions of onnxruntime: exact, quiet, and refused in one line."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq.errors import ModelError
from fgq.graph.ort import open_session


def product(shared):
    """Return a model of two int8 products of extreme weights, and the float results of the first."""
    w = np.full((8, 4), 127, np.int8)
    tensors = {
        "s": np.float32(1), "z": np.uint8(0), "w": w, "v": w.T.copy(), "ws": np.ones(4, np.float32),
        "vs": np.ones(8, np.float32), "wz": np.zeros(4, np.int8), "vz": np.zeros(8, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    if shared:
        nodes.append(helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["we"], axis=1))
        nodes.append(helper.make_node("MatMul", ["xd", "we"], ["u"]))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "u")[: 1 + shared]],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_sums_do_not_saturate():
    model = product(shared=False).SerializeToString()
    x = np.full((3, 8), 255, np.float32)
    (y,) = open_session(model, "model").run(None, {"x": x})
    np.testing.assert_array_equal(y, np.full((3, 4), 8 * 255 * 127, np.float32))


def test_sums_with_weights_that_layers_share_do_not_saturate(tmp_path):
    model, x = product(shared=True), np.full((3, 8), 255, np.float32)
    onnx.save(model, tmp_path / "model.onnx")
    for source in (model.SerializeToString(), tmp_path / "model.onnx"):
        for found in open_session(source, "model").run(None, {"x": x}):
            np.testing.assert_array_equal(found, np.full((3, 4), 8 * 255 * 127, np.float32))


def test_sums_with_a_dequantized_weight_that_layers_share_do_not_saturate():
    model, x = product(shared=True), np.full((3, 8), 255, np.float32)
    first, again = (node for node in model.graph.node if node.input[0] == "w")
    second = model.graph.node[-1]
    model.graph.node.remove(again)
    first.output[0] = second.input[1] = model.graph.node[3].input[1] = "own1"
    model.graph.node.add().CopyFrom(helper.make_node("MatMul", ["xd", "own1"], ["t"]))
    model.graph.output.add(name="t")
    for found in open_session(model.SerializeToString(), "model").run(None, {"x": x}):
        np.testing.assert_array_equal(found, np.full((3, 4), 8 * 255 * 127, np.float32))


def test_integer_sums_with_weights_that_layers_share_do_not_saturate():
    w = np.full((8, 4), 127, np.int8)
    nodes = [helper.make_node("MatMulInteger", [name, "w"], [f"{name}_sums"]) for name in "ab"]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", 8]) for name in "ab"],
        [helper.make_tensor_value_info(f"{name}_sums", TensorProto.INT32, None) for name in "ab"],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.full((3, 8), 255, np.uint8)
    for found in open_session(model.SerializeToString(), "model").run(None, {"a": x, "b": x}):
        np.testing.assert_array_equal(found, np.full((3, 4), 8 * 255 * 127, np.int32))


def test_a_model_that_onnxruntime_refuses():
    with pytest.raises(ModelError, match=r"^layer: onnxruntime refuses it \(.*\)$"):
        open_session(b"no model", "layer")
    with pytest.raises(ModelError, match=r"^layer: onnxruntime refuses it \(.*\)$"):
        open_session("missing.onnx", "layer")


def test_the_class_is_held_whatever_takes_its_place(monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    assert open_session(product(shared=False).SerializeToString(), "model").get_inputs()[0].name == "x"


def test_threads_are_those_that_are_asked_for():
    session = open_session(product(shared=False).SerializeToString(), "model", threads=3)
    assert session.get_session_options().intra_op_num_threads == 3


def test_nothing_is_printed():
    code = "from fgq.graph.ort import open_session; open_session(b'x', 'model')"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == ""
    assert run.stderr.splitlines()[-1].startswith("fgq.errors.ModelError: model: onnxruntime refuses it")


def test_weights_without_zero_points_are_as_they_are():
    """With the option for exact sums onnxruntime takes them for others."""
    model = product(shared=False)
    for node in model.graph.node:
        if node.input[0] == "w":
            del node.input[2:]
    model.graph.output.append(helper.make_tensor_value_info("wd", TensorProto.FLOAT, None))
    (found,) = open_session(model.SerializeToString(), "model").run(
        ["wd"], {"x": np.ones((1, 8), np.float32)}
    )
    np.testing.assert_array_equal(found, np.full((8, 4), 127, np.float32))


def test_equal_convolutions_of_which_one_is_an_output_are_added(make_model):
    """onnxruntime 1.31 finds them equal late, fuses the sum into one, and then misses the other's result."""
    weights = {"q": np.ones((15, 12, 1, 1), np.int8), "p": np.zeros(15, np.int8), "o": np.zeros(15, np.int8)}
    model = make_model(
        """(float[N,C,A,B] x) => (float y, float z) {
            v = Reshape(x, s)
            w = DequantizeLinear<axis=0>(q, e, p)
            u = DequantizeLinear<axis=0>(q, e, o)
            y = Conv(v, w, k)
            a = Conv(v, u, k)
            b = Add(a, y)
            z = Relu(b)
        }""",
        weights | {"e": np.ones(15, np.float32), "k": np.ones(15, np.float32), "s": np.int64([0, 0, 0, -1])},
    )
    for name, channels in (("v", 12), ("a", 15), ("b", 15)):
        shape = ["N", channels, 1, 6]
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    with pytest.raises(Exception, match="Failed to find node output"):
        onnxruntime.InferenceSession(model.SerializeToString(), enable_fallback=0)
    session = open_session(model.SerializeToString(), "model")
    y, z = session.run(None, {"x": np.ones((2, 12, 1, 6), np.float32)})
    assert np.all(y == 13)
    assert np.all(z == 26)
