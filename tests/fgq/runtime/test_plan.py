import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from fgq import Session, convert
from fgq.format.functions import recognise
from fgq.runtime.plan import Segment, plan
from fgq.runtime.recognise import find_steps
from fgq.runtime.steps.products import ProductStep
from fgq.runtime.steps.registry import Options


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def planned(model):
    found = ir.from_proto(model)
    found.graph.sort()
    recognise(found)
    return plan(found, find_steps(found.graph, Options()))


RESIDUAL = """(float[N,4,8,8] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, w)
    d = Add(b, c)
    e = Conv<pads=[1,1,1,1]>(d, w)
    f = Concat<axis=1>(e, d, b)
    g = Conv(f, v)
    h = GlobalAveragePool(g)
    i = Flatten(h)
    y = MatMul(i, u)
}"""
WEIGHTS = {"w": normal(4, 4, 3, 3), "v": normal(6, 12, 1, 1), "u": normal(6, 3)}
FEEDS = {"x": normal(4, 4, 8, 8)}


@pytest.fixture(scope="module")
def converted(make_model):
    return convert(make_model(RESIDUAL, WEIGHTS), calibration=FEEDS, group_size=4).model


def test_a_network_of_integers_leaves_nothing_to_onnxruntime(converted):
    steps = planned(converted)
    assert not any(isinstance(step, Segment) for step in steps)
    assert [step.kernel.split("[")[0].split("_")[0] for step in steps].count("concat") == 1
    assert sum(isinstance(step, ProductStep) for step in steps) == 5
    # the addition of b and c is done by the layer that makes c
    assert not any(step.kernel == "quantized_add" for step in steps)


def test_integers_alone_pass_between_the_steps(make_model):
    """A skip connection reaches an operator of onnxruntime as uint8, and is dequantized there."""
    text = RESIDUAL.replace("d = Add(b, c)", "s = Selu(b)  d = Sub(s, c)")
    model = convert(make_model(text, WEIGHTS), calibration=FEEDS, group_size=4).model
    (segment,) = (step for step in planned(model) if isinstance(step, Segment))
    assert {value.dtype for value in segment.inputs} == {ir.DataType.UINT8}


def test_every_value_is_computed_before_it_is_read(converted, make_model):
    text = RESIDUAL.replace("d = Add(b, c)", "s = Selu(b)  d = Sub(s, c)")
    other = convert(make_model(text, WEIGHTS), calibration=FEEDS, group_size=4).model
    for model in (converted, other):
        known = {"x"}
        for step in planned(model):
            if isinstance(step, Segment):
                assert {value.name for value in step.inputs} <= known
                assert not {value.name for value in step.outputs} & known
                known |= {value.name for value in step.outputs}
            else:
                assert {value.name for value in step.sources} <= known
                known.add(step.result.name)
        assert "y" in known


def test_additions_of_skip_connections_round_as_onnxruntimes_own(converted, check_integers):
    x = np.random.default_rng(0).standard_normal((64, 4, 8, 8)).astype(np.float32)
    for size in (0.5, 1, 2):  # many sums, of which some fall near a tie
        check_integers(converted, {"x": np.float32(size) * x})


def test_nodes_that_no_output_needs_are_left_out(make_model):
    text = """(float[N,16] x, float[N,16] z) => (float y) {
        a = MatMul(x, w)
        y = MatMul(a, v)
        b = MatMul(z, w)
        c = Relu(b)
    }"""
    model = make_model(text, {"w": normal(16, 16), "v": normal(16, 3)})
    feeds = {"x": normal(4, 16), "z": normal(4, 16)}
    result = convert(model, calibration=feeds, group_size=4).model
    assert sum(isinstance(step, ProductStep) for step in planned(result)) == 2
    assert len(Session(result.SerializeToString()).run(None, feeds)) == 1


def test_nodes_in_any_order(converted, run):
    """ONNX asks for sorted nodes; a file whose nodes are not is sorted when it is loaded."""
    turned = type(converted)()
    turned.CopyFrom(converted)
    nodes = list(converted.graph.node)[::-1]
    turned.graph.ClearField("node")
    turned.graph.node.extend(nodes)
    (expected,) = run(converted, FEEDS)
    (found,) = Session(turned.SerializeToString()).run(None, FEEDS)
    np.testing.assert_array_equal(found, expected)


def test_layers_read_by_a_branch(make_model, check_integers):
    text = """(float[N,16] x, bool p) => (float y) {
        a = MatMul(x, w)
        b = MatMul(a, w)
        y = If(p) <
            then_branch = one () => (float t) { t = Add(b, a) },
            else_branch = two () => (float e) { f = Neg(b)  e = Mul(f, k) }
        >
    }"""
    for flag in (True, False):
        feeds = {"x": normal(4, 16), "p": np.array(flag)}
        model = make_model(text, {"w": normal(16, 16), "k": normal(16)})
        # onnxruntime computes a product that a branch reads in float: 16 products in each sum.
        check_integers(convert(model, calibration=[feeds], group_size=4).model, feeds, rtol=1e-6)


def test_quantized_input_of_the_model(make_model, run):
    """A model whose input and output are integers already: foreign files may be so."""
    text = """(uint8[N,8] x) => (uint8 y) {
        a = DequantizeLinear(x, s, zu)
        w = DequantizeLinear<axis=1>(w8, r, zw)
        b = MatMul(a, w)
        y = QuantizeLinear(b, s, zu)
    }"""
    rng = np.random.default_rng(0)
    weights = {"s": np.float32(0.1), "zu": np.uint8(7), "w8": rng.integers(-127, 128, (8, 5)).astype(np.int8)}
    weights |= {"r": rng.uniform(0.001, 0.01, 5).astype(np.float32), "zw": np.zeros(5, np.int8)}
    model = make_model(text, weights)
    session = Session(model.SerializeToString())
    assert [step.kernel for step in session.steps()] != ["onnxruntime"]
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
    x = rng.integers(0, 256, (40, 8)).astype(np.uint8)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], run(model, {"x": x})[0])


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "(float[N,3] x) => (float y, float[N,3] x) { y = Relu(x) }",
        "(float[N,3] x) => (float[N,3] x) { y = Relu(x) }",
        "(float[N,3] x, float[N,3] z) => (float[N,3] z, float y) { y = Add(x, z) }",
    ],
)
def test_outputs_that_are_inputs_of_a_model_without_integers(make_model, text, fallback):
    session = Session(make_model(text).SerializeToString(), allow_float=True, fallback=fallback)
    for rows in (2, 5, 2):
        feeds = {entry.name: normal(rows, 3) + rows for entry in session.get_inputs()}
        computed = np.maximum(feeds["x"], 0) if "z" not in feeds else feeds["x"] + feeds["z"]
        for _ in range(3):
            names = [output.name for output in session.get_outputs()]
            for name, found in zip(names, session.run(None, feeds), strict=True):
                np.testing.assert_array_equal(found, feeds.get(name, computed))
