"""Poolings without a row of results, of which onnxruntime dies where it blocks channels."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq import Session, convert
from fgq.errors import FgqError, ModelError
from fgq.graph import ort
from fgq.graph.blocked_poolings import may_lack_rows

node = helper.make_node
CONV = node("Conv", ["x", "w"], ["a"])


def pool(source="a", op_type="MaxPool", **attributes):
    return node(op_type, [source], ["y"], **attributes)


def model(nodes, shape=("N", 16, "H", "W"), result="y"):
    w = np.full((16, 16, 1, 1), 0.1, np.float32)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.float32(0.1), "s")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


NETWORKS = [
    ([CONV, pool(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], False),
    ([CONV, node("Relu", ["a"], ["b"]), pool("b", kernel_shape=[2, 2], strides=[2, 2])], False),
    ([CONV, pool(kernel_shape=[5, 5], pads=[2, 2, 2, 2])], False),
    ([CONV, pool(kernel_shape=[2, 2])], True),
    ([CONV, pool(kernel_shape=[5, 5], strides=[2, 2], ceil_mode=1)], True),
    ([CONV, pool(op_type="AveragePool", kernel_shape=[4, 1], dilations=[2, 1])], True),
    ([CONV, pool(kernel_shape=[7, 7], auto_pad="SAME_UPPER")], False),
    ([CONV, pool(kernel_shape=[3, 3], pads=[1, 1, 1, 1], auto_pad="VALID")], True),
    ([pool("x", kernel_shape=[2, 2], strides=[2, 2])], True),
    ([pool("x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], False),
    ([node("Slice", ["x", "s", "s"], ["b"]), pool("b", kernel_shape=[1, 1], auto_pad="SAME_LOWER")], True),
]


@pytest.mark.parametrize(("nodes", "lacks"), NETWORKS)
def test_of_images_of_any_size(nodes, lacks):
    assert may_lack_rows(model(nodes)) == lacks


@pytest.mark.parametrize(("height", "lacks"), [(7, False), (6, True)])
def test_of_images_of_one_size(height, lacks):
    nodes = [CONV, node("Relu", ["a"], ["b"]), pool("b", "AveragePool", kernel_shape=[7, 7])]
    assert may_lack_rows(model(nodes, (1, 16, height, 7))) == lacks


def test_a_size_that_onnx_takes_for_larger_is_not_believed():
    first = node("MaxPool", ["a"], ["b"], kernel_shape=[1, 1], strides=[3, 3], ceil_mode=1)
    assert may_lack_rows(model([CONV, first, pool("b", kernel_shape=[3, 1])], (1, 16, 8, 8)))


def test_of_functions_and_branches():
    inner = node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2])
    function = helper.make_function("local", "Pool", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)])
    called = model([CONV, node("Pool", ["a"], ["y"], domain="local")], (1, 16, 8, 8))
    called.functions.append(function)
    assert may_lack_rows(called)
    outputs = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    branch = helper.make_graph([inner], "branch", [], outputs)
    assert may_lack_rows(model([CONV, node("If", ["s"], ["y"], then_branch=branch, else_branch=branch)]))


@pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool"])
def test_onnxruntime_outlives_them(op_type):
    made = model([CONV, pool(op_type=op_type, kernel_shape=[5, 5], strides=[2, 2], ceil_mode=1)])
    program = (
        "import sys, numpy as np; from fgq.graph import ort; "
        "session = ort.open_session(sys.stdin.buffer.read(), 'model'); "
        "print(session.run(None, {'x': np.ones((1, 16, 3, 3), np.float32)})[0].shape)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], input=made.SerializeToString(), capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, b"(1, 16, 0, 0)\n")


def test_a_session_and_a_conversion_outlive_them():
    nodes = [CONV, node("MaxPool", ["a"], ["b"], kernel_shape=[5, 5]), node("Conv", ["b", "w"], ["y"])]
    made, small = model(nodes), {"x": np.ones((2, 16, 1, 1), np.float32)}
    session = Session(made.SerializeToString(), allow_float=True)
    large = {"x": np.ones((2, 16, 6, 6), np.float32)}
    expected = ort.open_session(made.SerializeToString(), "model").run(None, large)
    np.testing.assert_array_equal(session.run(None, large), expected)
    with pytest.raises(FgqError):
        session.run(None, small)
    with pytest.raises(FgqError):
        convert(made, calibration=small)


@pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool", "LpPool"])
@pytest.mark.parametrize("read", [lambda made: Session(made.SerializeToString(), allow_float=True), convert])
def test_a_window_that_leaves_nothing_is_refused(op_type, read):
    made = model([CONV, pool(op_type=op_type, kernel_shape=[2, 6], strides=[1, 2])], (1, 16, 4, 4))
    with pytest.raises(ModelError, match=r"found a window over 6 pixels of 4 with 0 and 0 of padding"):
        read(made)


def test_a_window_beyond_the_image_that_leaves_a_pixel_is_none_of_these():
    made = model([CONV, pool(kernel_shape=[5, 5], strides=[2, 2])], (1, 16, 4, 4))
    (y,) = Session(made.SerializeToString(), allow_float=True).run(None, {"x": np.ones((1, 16, 4, 4), "f")})
    np.testing.assert_allclose(y, np.full((1, 16, 1, 1), 1.6), rtol=1e-6)
