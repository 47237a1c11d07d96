"""Sums and products of two quantized tensors, as steps of a session, against onnxruntime."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.runtime.steps.arithmetic import BinaryStep, read_binary

BINARY = """({type}[{one}] a, {type}[{other}] b) => ({type} y) {{
    p = DequantizeLinear(a, sa, za)
    q = DequantizeLinear(b, sb, zb)
    r = {op_type}(p, q)
    {after}
}}"""
QUANTIZE = "y = QuantizeLinear(r, sy, zy)"
STEPS = {"Add": "quantized_add", "Mul": "quantized_multiply"}
DRAWN = (0.021, 3), (0.0173, 128), (0.05, 99)

PAIRS = {
    "a": np.repeat(np.arange(256, dtype=np.uint8), 256).reshape(256, 256),
    "b": np.tile(np.arange(256, dtype=np.uint8), (256, 1)),
}
"""All pairs of two activations."""


def quantizers(*pairs, dtype=np.uint8):
    weights = {}
    for name, (scale, zero) in zip("aby", pairs, strict=True):
        weights |= {f"s{name}": np.float32(scale), f"z{name}": dtype(zero)}
    return weights


def model_of(make_model, op_type, one="N,M", other="N,M", after=QUANTIZE, given=DRAWN, dtype=np.uint8):
    text = BINARY.format(type=dtype.__name__, op_type=op_type, one=one, other=other, after=after)
    ends = {"low": np.float32(-0.7), "high": np.float32(1.3), "q3": np.uint8(3), "q15": np.uint8(15)}
    return make_model(text, quantizers(*given, dtype=dtype) | ends)


def draw(*shapes):
    rng = np.random.default_rng(len(shapes))
    return {name: rng.integers(0, 256, shape, np.uint8) for name, shape in zip("ab", shapes, strict=True)}


@pytest.mark.parametrize("op_type", STEPS)
@pytest.mark.parametrize(
    "given",
    [
        DRAWN,
        ((0.5, 0), (0.5, 7), (1, 9)),  # half of all sums are ties
        ((0.25, 200), (0.75, 7), (1, 128)),
        ((1, 128), (1, 128), (1e-4, 100)),  # everything saturates but zero; beyond 2**31 onnxruntime wraps
        ((1e-4, 0), (1e-4, 0), (10, 17)),  # everything is zero
    ],
    ids=["drawn", "halves", "quarters", "saturating", "vanishing"],
)
def test_all_pairs_of_activations(make_model, check_steps, op_type, given):
    model = model_of(make_model, op_type, given=given)
    check_steps(model, PAIRS, kernels=[STEPS[op_type]])


@pytest.mark.parametrize("op_type", STEPS)
@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 1), (1, 1)),
        ((5, 7), (1, 7)),
        ((5, 1), (5, 7)),
        ((5, 1), (1, 7)),
        ((2, 3, 4, 70), (2, 1, 1, 70)),
        ((2, 1, 1, 70), (2, 3, 4, 70)),
        ((2, 3, 4, 5), (1, 3, 1, 1)),
        ((2, 3, 4, 5), (1, 1, 1, 5)),
        ((1, 3, 1, 5), (2, 1, 4, 1)),
        ((9,), (1,)),
        ((0, 7), (1, 7)),
    ],
    ids=str,
)
def test_shapes_that_repeat(make_model, check_steps, op_type, shapes):
    one, other = (",".join(map(str, shape)) for shape in shapes)
    check_steps(model_of(make_model, op_type, one, other), draw(*shapes), kernels=[STEPS[op_type]])


def test_shapes_that_are_known_when_it_runs(make_model, check_steps):
    feeds = [draw(one, other) for one, other in (((4, 6), (4, 6)), ((4, 6), (1, 6)), ((1, 6), (4, 1)))]
    check_steps(model_of(make_model, "Add", "N,K", "M,L"), *feeds, kernels=["quantized_add"])


@pytest.mark.parametrize("op_type", STEPS)
@pytest.mark.parametrize(
    "after",
    [
        "c = Relu(r)\n y = QuantizeLinear(c, sy, zy)",
        "c = Clip(r, low, high)\n y = QuantizeLinear(c, sy, zy)",
        "c = QuantizeLinear(r, sy, zy)\n y = Clip(c, q3, q15)",
    ],
)
def test_bounds_behind_it(make_model, check_steps, op_type, after):
    check_steps(model_of(make_model, op_type, after=after), PAIRS, kernels=[STEPS[op_type]])


def test_one_tensor_twice(make_model, check_steps):
    text = """(uint8[N,M] a) => (uint8 y) {
        p = DequantizeLinear(a, sa, za)
        r = Mul(p, p)
        y = QuantizeLinear(r, sy, zy)
    }"""
    feeds = {"a": np.arange(256, dtype=np.uint8).reshape(4, 64)}
    check_steps(make_model(text, quantizers(*DRAWN)), feeds, kernels=["quantized_multiply"])


@pytest.mark.parametrize("turned", ["a", "b"])
def test_operands_in_two_orders_of_axes(make_model, check_steps, turned):
    """A transposed operand stays as it lies; the other one is brought into its order, and the sum back."""
    text = """(uint8[N,3,5] a, uint8[N,3,5] b) => (uint8 y) {
        p0 = DequantizeLinear(a, sa, za)
        q0 = DequantizeLinear(b, sa, za)
        t = Transpose<perm=[0,2,1]>(TURNED0)
        t8 = QuantizeLinear(t, sa, za)
        TURNED1 = DequantizeLinear(t8, sa, za)
        u = Reshape(OTHER0, shape)
        u8 = QuantizeLinear(u, sa, za)
        OTHER1 = DequantizeLinear(u8, sa, za)
        r = Add(p1, q1)
        y = QuantizeLinear(r, sy, zy)
    }"""
    names = {"a": ("p", "q"), "b": ("q", "p")}[turned]
    text = text.replace("TURNED", names[0]).replace("OTHER", names[1])
    model = make_model(text, quantizers(*DRAWN) | {"shape": np.array([0, 5, 3])})
    feeds = [draw((batch, 3, 5), (batch, 3, 5)) for batch in (1, 4)]
    moves = ["transpose", "reshape"] if turned == "a" else ["reshape", "transpose"]
    check_steps(model, *feeds, kernels=[*moves, "reorder", "quantized_add", "reorder"])


@pytest.mark.parametrize("op_type", STEPS)
def test_any_number_of_threads(make_model, check_steps, op_type):
    feeds = draw((3, 70, 70, 5), (3, 1, 1, 5))
    for threads in (1, 3):
        model = model_of(make_model, op_type, "N,H,W,C", "N,1,1,C")
        check_steps(model, feeds, kernels=[STEPS[op_type]], threads=threads)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": np.int8, "given": ((0.02, 3), (0.01, -5), (0.05, 9))},  # it rounds otherwise there
        {"op_type": "Sub"},
        {"other": "M"},  # of another rank
        {"after": "y = Identity(r)"},
        {"after": "c = Tanh(r)\n y = QuantizeLinear(c, sy, zy)"},
    ],
    ids=["int8", "Sub", "rank", "float", "Tanh"],
)
def test_what_is_left_to_onnxruntime(make_model, change):
    if "after" in change and "Identity" in change["after"]:
        model = model_of(make_model, "Add", **change)
        model.graph.output[0].type.tensor_type.elem_type = 1
    else:
        model = model_of(make_model, **({"op_type": "Add"} | change))
    assert not any(read_binary(node) for node in ir.from_proto(model).graph)


def test_a_step_says_what_it_is(make_model):
    model = model_of(make_model, "Mul", "N,4", "N,4")
    model.graph.node[2].name = "gate"
    (step,) = (found for node in ir.from_proto(model).graph if (found := read_binary(node)))
    assert isinstance(step, BinaryStep)
    assert (step.name, step.op_type, step.kernel, step.same_shape) == (
        "gate", "Mul", "quantized_multiply", True,
    )  # fmt: skip
