"""Who reads a value, and what is constant."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.graph.queries import constant, is_operator, is_read, sole_reader, sole_use

TEXT = """(float[4] x, float[4] given) => (float y, float out) {
    once = Relu(x)
    twice = Neg(once)
    y = Add(twice, twice)
    out = Abs(x)
    also = Sub(c, out)
    known = Mul(given, c)
}"""


@pytest.fixture(scope="module")
def values(make_model):
    model = make_model(TEXT, {"c": np.arange(4, dtype=np.float32), "given": np.ones(4, np.float32)})
    graph = ir.from_proto(model).graph
    found = {value.name: value for node in graph for value in (*node.inputs, *node.outputs)}
    return found


def test_the_one_reader_of_a_value(values):
    node, index = sole_use(values["out"]) or (None, None)
    assert (node, index) == (None, None)  # an output of the graph is read by the caller too
    assert sole_use(values["x"]) is None
    assert sole_use(values["twice"]) is None  # one node, in two places
    assert sole_use(values["also"]) is None
    node, index = sole_use(values["once"])
    assert (node.op_type, index) == ("Neg", 0)
    assert sole_reader(values["once"]) is node
    assert sole_reader(values["once"], "Neg", "Relu") is node
    assert sole_reader(values["once"], "Relu") is None


def test_operators_of_another_domain_are_no_standard_ones(values):
    node = values["once"].producer()
    assert is_operator(node, "Relu", "Neg")
    assert not is_operator(node, "Neg")
    assert not is_operator(None, "Relu")
    assert not is_operator(ir.node("Relu", [values["x"]], domain="com.microsoft"), "Relu")


def test_what_is_read(values):
    assert is_read([values["also"], values["out"]])
    assert is_read([values["once"]])
    assert not is_read([values["also"], values["known"]])
    assert not is_read([])


def test_an_input_with_a_default_is_not_constant(values):
    np.testing.assert_array_equal(constant(values["c"]), np.arange(4))
    assert constant(values["given"]) is None
    assert constant(values["once"]) is None
    assert constant(None) is None
