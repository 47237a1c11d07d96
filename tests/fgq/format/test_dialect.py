"""What may be said in more than one way is said in one, and means the same in onnxruntime."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq import Session
from fgq.errors import ModelError
from fgq.format.dialect import plain
from fgq.format.onnx_file import from_proto

RNG = np.random.default_rng(0)
X = {"x": RNG.standard_normal((3, 6)).astype(np.float32)}


def sparse(places, shape=(6, 4), name="w", values=None):
    places = np.asarray(places, np.int64)
    values = RNG.standard_normal(len(places)).astype(np.float32) if values is None else values
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values, name), numpy_helper.from_array(places, f"{name}i"), shape
    )


def product(make_model, sparse_weight):
    model = make_model("(float[N,6] x) => (float y) { y = MatMul(x, w) }")
    model.graph.sparse_initializer.append(sparse_weight)
    return model


def check(run, model, feeds=X):
    """Compare the plain model, and a session of the other one, with onnxruntime on the other one."""
    before = model.SerializeToString()
    expected = run(model, feeds)
    for found in (run(plain(model, "m"), feeds), Session(before, allow_float=True).run(None, feeds)):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert model.SerializeToString() == before


def test_a_plain_model_is_itself(make_model):
    model = make_model("(float[N,6] x) => (float y) { y = Relu(x) }")
    assert plain(model, "m") is model


@pytest.mark.parametrize("places", [[0, 5, 23], [[0, 0], [1, 1], [5, 3]], np.zeros((0,)), np.zeros((0, 2))])
def test_sparse_initializers(make_model, run, places):
    check(run, product(make_model, sparse(places)))


def test_sparse_constants(make_model, run):
    model = make_model("(float[N,6] x) => (float y) { y = MatMul(x, w) }")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse([1, 7, 23])))
    check(run, model)


def test_a_subgraph_is_plain_too(make_model, run):
    text = """(float[N,6] x) => (float y) {
        c = Constant<value = bool {1}>()
        y = If (c) <then_branch = yes () => (float a) { a = MatMul(x, w) },
                    else_branch = no () => (float b) { b = MatMul(x, w) }>
    }"""
    model = make_model(text, {"w": RNG.standard_normal((6, 4)).astype(np.float32)})
    branch = model.graph.node[1].attribute[0].g
    branch.node.insert(0, helper.make_node("Constant", [], ["s"], sparse_value=sparse([1, 7, 23])))
    branch.node[1].input[1] = "s"
    check(run, model)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (sparse([0, 24]), "do not fit its shape"),
        (sparse([-1, 2]), "do not fit its shape"),
        (sparse([[0, 0], [6, 0]]), "do not fit its shape"),
        (sparse([0, 1, 2], values=np.ones(2, np.float32)), "do not fit its shape"),
        (sparse([0], shape=(1 << 40, 1 << 20)), "wanted at most"),
    ],
    ids=["beyond", "negative", "beyond an axis", "counts", "large"],
)
def test_sparse_tensors_that_contradict_themselves(make_model, weight, message):
    with pytest.raises(ModelError, match=f"model: sparse tensor 'w': found .*{message}"):
        from_proto(product(make_model, weight))


def test_sparse_tensors_outside_the_file(make_model):
    weight = sparse([0])
    weight.values.data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="found external data"):
        from_proto(product(make_model, weight))


def test_the_other_name_of_the_standard_domain(make_model, run):
    model = make_model("(float[N,6] x) => (float y) { a = Relu(x) y = Neg(a) }")
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    check(run, model)
    found = from_proto(model)
    assert found.opset_imports == {"": 17}
    assert {node.domain for node in found.graph} == {""}


def test_sizes_of_minus_one(make_model, run):
    model = make_model("(float[N,6] x) => (float y) { y = Relu(x) }")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [-1, 6]))
    check(run, model)
    session = Session(model.SerializeToString(), allow_float=True)
    assert [value.shape for value in session.get_inputs()] == [[None, 6]]


def test_functions_are_plain_too(make_model):
    body = [helper.make_node("Relu", ["a"], ["b"], domain="ai.onnx")]
    model = make_model("(float[N,6] x) => (float y) { y = local.F(x) }", domains='"local" : 1')
    model.functions.append(
        helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("ai.onnx", 17)])
    )
    (function,) = plain(model, "m").functions
    assert (function.opset_import[0].domain, function.node[0].domain) == ("", "")
