"""Functions of one activation, as steps of a session, against onnxruntime."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.runtime.steps.lookup import POINTWISE, read_lookup

FUNCTION = """({type}[{shape}] x) => ({type} y) {{
    a = DequantizeLinear(x, sx, zx)
    {body}
    y = QuantizeLinear(r, sy, zy)
}}"""
EVERY = {"x": np.arange(256, dtype=np.uint8).reshape(4, 64)}
CONSTANTS = {
    "third": np.float32(1 / 3),
    "two": np.float32([2]),
    "one": np.float32([[1]]),
    "low": np.float32(-0.5),
    "high": np.float32(1.5),
    "row": np.linspace(0, 1, 64, dtype=np.float32),
    "q3": np.uint8(3),
    "q15": np.uint8(15),
}

BODIES = {
    "Add": "r = Add(a, third)",
    "Clip": "r = Clip(a, low, high)",
    "Div": "r = Div(two, a)",
    "Max": "r = Max(a, low, third)",
    "Min": "r = Min(a, third)",
    "Mul": "r = Mul(third, a)",
    "Pow": "r = Pow(a, two)",
    "Sub": "r = Sub(two, a)",
}
"""Of operators that take more than one operand; the others are written alike."""

CHAINS = {
    "hardswish": "b = Add(a, two)\n c = Clip(b, low, high)\n d = Mul(a, c)\n r = Mul(d, third)",
    "swish": "b = Sigmoid(a)\n r = Mul(a, b)",
    "a constant inside": "b = Constant<value = float {0.25}>()\n r = Sub(a, b)",
    "twice": "b = Mul(a, a)\n c = Add(b, a)\n r = Max(c, a)",
    "polynomial": "b = Mul(a, a)\n c = Add(b, b)\n r = Add(a, c)",
    "erf-GELU": "b = Div(a, one)\n c = Erf(b)\n d = Add(c, one)\n e = Mul(a, d)\n r = Mul(e, third)",
    "tanh-GELU": "b = Pow(a, two)\n c = Mul(b, third)\n d = Add(a, c)\n e = Tanh(d)\n f = Add(e, one)\n"
    "g = Mul(a, third)\n r = Mul(g, f)",
}


def model_of(make_model, body, shape="N,M", dtype=np.uint8, x=(0.02, 100), y=(0.03, 60), opset=20):
    text = FUNCTION.format(type=dtype.__name__, shape=shape, body=body)
    shift = 128 if dtype == np.int8 else 0
    quantizers = {}
    for name, (scale, zero) in {"x": x, "y": y}.items():
        quantizers |= {f"s{name}": np.float32(scale), f"z{name}": dtype(zero - shift)}
    return make_model(text, CONSTANTS | quantizers, opset=opset, ir_version=9)


@pytest.mark.parametrize("op_type", sorted(POINTWISE))
def test_every_operator(make_model, check_steps, op_type):
    # quotients, roots and logarithms of what is not positive are no numbers, or none that can be quantized
    x = (0.02, 0) if op_type in ("Log", "Sqrt") else (0.02, 100)
    body = BODIES.get(op_type, f"r = {op_type}(a)")
    if op_type in ("Div", "Reciprocal"):
        body = body.replace("(two, a)", "(a, third)").replace("Reciprocal(a)", "Reciprocal(b)")
        body = f"b = Max(a, third)\n {body}"
    check_steps(model_of(make_model, body, x=x), EVERY, kernels=["lookup"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("shape", ["N,M", "4,64"])
@pytest.mark.parametrize("body", CHAINS.values(), ids=CHAINS)
def test_operators_in_a_row(make_model, check_steps, body, shape, dtype):
    """Of open and of fixed sizes, which the table does not have."""
    moved = ["reorder"] if dtype == np.int8 else []
    feeds = {"x": EVERY["x"].view(dtype)}
    check_steps(model_of(make_model, body, shape, dtype), feeds, kernels=[*moved, "lookup", *moved])


def test_a_constant_of_more_axes_gives_them_to_the_result(make_model, check_steps):
    model = model_of(make_model, "r = Add(a, one)", "N")
    check_steps(model, {"x": np.arange(256, dtype=np.uint8)}, kernels=["onnxruntime"])


def test_what_onnxruntime_cannot_tabulate(make_model):
    model = model_of(make_model, "r = Mul(a, q3)")  # a float by an integer
    assert not any(read_lookup(node, 20) for node in ir.from_proto(model).graph)


def test_two_dequantizers_of_one_source(make_model, check_steps):
    """With a zero point of its own each, as a converter may write them for each reader."""
    body = "b = DequantizeLinear(x, sx, zx)\n c = Tanh(b)\n r = Mul(a, c)"
    check_steps(model_of(make_model, body), EVERY, kernels=["lookup"])


def test_a_clip_to_four_bits_behind_it(make_model, check_steps):
    model = model_of(make_model, "r = Tanh(a)", y=(0.1, 3))
    model.graph.node[-1].output[0] = "q"
    model.graph.node.add(op_type="Clip", input=["q", "q3", "q15"], output=["y"])
    session = check_steps(model, EVERY, kernels=["lookup"])
    (y,) = session.run(None, EVERY)
    assert (y.min(), y.max()) == (3, 13)


@pytest.mark.parametrize("shape", [(1,), (2, 3, 5, 7), (0, 4), (70_001,)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_shapes(make_model, check_steps, shape, threads):
    model = model_of(make_model, "r = Sigmoid(a)", ",".join("NCHW"[: len(shape)]))
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    check_steps(model, {"x": x}, kernels=["lookup"], threads=threads)


def test_activations_keep_their_order_of_axes(make_model, check_steps):
    text = """(uint8[N,3,4] x) => (uint8 y) {
        a0 = DequantizeLinear(x, s, z)
        b = Transpose<perm=[0,2,1]>(a0)
        b8 = QuantizeLinear(b, s, z)
        a1 = DequantizeLinear(b8, s, z)
        c = Tanh(a1)
        y = QuantizeLinear(c, s, z)
    }"""
    model = make_model(text, {"s": np.float32(0.01), "z": np.uint8(128)})
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8)
    check_steps(model, {"x": x}, kernels=["transpose", "lookup", "reorder"])


@pytest.mark.parametrize(
    "body",
    [
        "r = Add(a, row)",  # a constant for each column
        "r = Softmax(a)",  # of more than one element each
        "b = Cast<to=1>(x)\n r = Add(a, b)",  # the integers themselves
        "b = DequantizeLinear(w, sx, zx)\n r = Add(a, b)",  # of two sources
        " ".join([f"a{i} = Tanh({f'a{i - 1}' if i else 'a'})\n" for i in range(40)]) + "r = Neg(a39)",
    ],
    ids=["row", "Softmax", "Cast", "two sources", "too many"],
)
def test_what_is_no_function_of_one_activation(make_model, body):
    model = model_of(make_model, body)
    if "(w," in body:
        model.graph.input.add().CopyFrom(model.graph.input[0])
        model.graph.input[1].name = "w"
    assert not any(read_lookup(node, 20) for node in ir.from_proto(model).graph)


def test_it_is_named_after_its_last_operator(make_model):
    model = model_of(make_model, CHAINS["swish"])
    for node, name in zip(model.graph.node, ("dq", "gate", "product", "q"), strict=True):
        node.name = name
    (step,) = (found for node in ir.from_proto(model).graph if (found := read_lookup(node, 20)))
    assert step.name == "product"
