"""The registry, and "Adding an operator" of docs/runtime.md followed for Sign, which no step of fgq takes."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq import Session
from fgq.graph.queries import is_operator
from fgq.runtime.quantizers import overflows, read_quantized, read_result
from fgq.runtime.recognise import find_steps
from fgq.runtime.steps import registry
from fgq.runtime.steps.registry import Options, Turn, finder, operator
from fgq.runtime.steps.step import Orders, Step

TEXT = """(float[N,3,H,8] x) => (uint8 y) {
    a = QuantizeLinear(x, s, z)
    b = DequantizeLinear(a, s, z)
    c = MaxPool<kernel_shape=[2,2]>(b)
    d = QuantizeLinear(c, s, z)
    e = DequantizeLinear(d, s, z)
    f = Sign(e)
    g = Relu(f)
    h = QuantizeLinear(g, t, v)
    i = DequantizeLinear(h, t, v)
    j = GlobalAveragePool(i)
    y = QuantizeLinear(j, t, v)
}"""
CONSTANTS = {"s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(0.007), "v": np.uint8(3)}


class SignStep(Step):
    """A Sign of quantized values, by a table of its 256 results."""

    dtype = np.uint8
    kernel = "sign"

    def __init__(self, node, given, result, made):
        self._node, self.sources, self.result = node, (given.source,), result
        signs = np.sign(np.arange(256) - given.quantizer.zero_point)
        steps = np.rint(signs / np.float32(made.quantizer.scale)) + made.quantizer.zero_point
        self._table = np.clip(steps, made.lowest, made.highest).astype(np.uint8)

    @property
    def name(self):
        return str(self._node.name)

    def orders(self, given):
        return Orders(tuple(given), given[0])

    def shape(self, arrays):
        return arrays[0].shape

    def bind(self, arrays, out, scratch, threads):
        return lambda: np.copyto(out, self._table[arrays[0]])


def read_sign(node):
    if not is_operator(node, "Sign") or overflows(node):
        return None
    given, (result, made) = read_quantized(node.inputs[0]), read_result(node.outputs[0])
    return None if given is None or made is None else SignStep(node, given, result, made)


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone behind it."""
    monkeypatch.setattr(registry, "_FINDERS", list(registry._FINDERS))


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(TEXT, CONSTANTS)


def test_an_operator_is_added_from_outside(own_registry, model, check_steps):
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((batch, 3, h, 8), np.float32)} for batch, h in ((1, 2), (3, 9))]
    assert "onnxruntime" in [step.kernel for step in Session(model.SerializeToString()).steps()]
    assert operator(read_sign) is read_sign
    # images stay as convolutions have them, since the step takes any order of axes
    check_steps(model, *feeds, kernels=["quantize", "max_pool", "sign", "global_average_pool", "reorder"])


@pytest.mark.parametrize(("turn", "stands"), [(Turn.PRODUCTS, "sign"), (Turn.EDGES, "max_pool")])
def test_the_first_step_for_a_value_stands(own_registry, model, turn, stands):
    graph = ir.from_proto(model).graph
    (pool,) = (node for node in graph if node.op_type == "MaxPool")

    @finder(turn)
    def find(scope):
        given, (result, made) = read_quantized(pool.inputs[0]), read_result(pool.outputs[0])
        yield SignStep(pool, given, result, made)

    steps = find_steps(graph, Options())
    assert {value.name: step.kernel for value, step in steps.items()}["d"] == stands


def test_finders_see_the_steps_of_those_before_them(own_registry, model):
    known = {}

    def look(scope, turn):
        known[turn] = {value.name for value in scope.steps}
        return ()

    for turn in Turn:
        finder(turn)(lambda scope, turn=turn: look(scope, turn))
    find_steps(ir.from_proto(model).graph, Options())
    assert list(known.values()) == [set(), set(), {"d"}, {"a", "d"}]
