"""Parts of a model that onnxruntime runs: what it would die of is refused before."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq import Session
from fgq.errors import DataError

node = helper.make_node
RNG = np.random.default_rng(0)
GATES = {"GRU": 3, "LSTM": 4}


def recurrent(op_type, *, inside=False):
    """Return a model with a recurrent operator behind a Relu, and a sum beside it; its weights are random."""
    gates = GATES[op_type]
    own = node(op_type, ["a", "w", "r"], ["h"], hidden_size=4)
    nodes = [node("Relu", ["x"], ["a"]), own, node("Neg", ["z"], ["b"])]
    weights = {"w": RNG.normal(size=(1, 4 * gates, 3)), "r": RNG.normal(size=(1, 4 * gates, 4))}
    initializers = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    if inside:
        result = helper.make_tensor_value_info("h", TensorProto.FLOAT, None)
        branch = helper.make_graph([own], "branch", [], [result])
        nodes[1] = node("If", ["flag"], ["g"], then_branch=branch, else_branch=branch)
        initializers.append(numpy_helper.from_array(np.array(True), "flag"))
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["S", "N", 3]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["M"]),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("g" if inside else "h", "b")
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 2, 3)])
def test_sequences_without_elements_are_refused(op_type, shape, inside):
    session = Session(recurrent(op_type, inside=inside).SerializeToString())
    with pytest.raises(DataError, match=r"^x: found the shape \[\d, \d, 3\], wanted elements: GRU and LSTM"):
        session.run(None, {"x": np.zeros(shape, np.float32), "z": np.ones(1, np.float32)})


@pytest.mark.parametrize("op_type", GATES)
def test_what_does_not_reach_them_may_be_empty(op_type, run):
    model = recurrent(op_type)
    feed = {"x": RNG.normal(size=(2, 1, 3)).astype(np.float32), "z": np.zeros(0, np.float32)}
    h, b = Session(model.SerializeToString()).run(None, feed)
    np.testing.assert_allclose(h, run(model, {**feed, "z": np.ones(1, np.float32)})[0], rtol=1e-6)
    assert b.shape == (0,)


@pytest.mark.parametrize(("shape", "other"), [((0,), (2, 3)), ((3,), (2, 3)), ((), (2, 3)), ((2, 3), (0,))])
def test_tensors_of_other_ranks_are_not_concatenated(shape, other):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("p", "q", "y")]
    graph = helper.make_graph([node("Concat", ["p", "q"], ["y"], axis=-1)], "graph", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = Session(model.SerializeToString())
    right = np.ones((2, 1), np.float32)
    assert session.run(None, {"p": right, "q": right})[0].shape == (2, 2)
    with pytest.raises(DataError, match=r"^p, q: found tensors of \[\d, \d\] axes to concatenate"):
        session.run(None, {"p": np.ones(shape, np.float32), "q": np.ones(other, np.float32)})


def test_float_weights_behind_a_quantizer_are_onnxruntimes(run):
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("QuantizeLinear", ["w", "ws", "wz"], ["wq"]),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"]),
        node("Conv", ["xd", "wd"], ["y"]),
    ]
    constants = {
        "w": RNG.normal(size=(4, 3, 1, 1)).astype(np.float32) / 4, "s": np.float32(0.03), "z": np.int8(0),
        "ws": np.float32(0.01), "wz": np.int8(0),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)
    (y,) = Session(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(y, run(model, {"x": x})[0], atol=1e-5)
