"""What comes from outside and does not match: sizes that broadcast, operators of older opsets, odd files."""

import numpy as np
import pytest

from fgq import Session
from fgq.errors import DataError

RNG = np.random.default_rng(0)


def real(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def codes(*shape):
    return RNG.integers(-60, 61, shape).astype(np.int8)


NUMBERS = {
    "s": np.float32(0.03), "z": np.uint8(100), "t": np.float32(0.05), "lo": np.float32(-0.5),
    "hi": np.float32(0.7), "zero": np.zeros((), np.uint8), "fifteen": np.uint8(15),
}  # fmt: skip
QUANTIZE = "{0}q = QuantizeLinear({0}, s, z)  {0}d = DequantizeLinear({0}q, s, z)  "
MATMUL = QUANTIZE.format("x") + "v = DequantizeLinear<axis = 1>(w, ws, wz)  m = MatMul(xd, v)  "
CONV = "v = DequantizeLinear<axis = 0>(w, ws, wz)  c = Conv({0}, v)  "


@pytest.fixture(params=[False, True], ids=["mismatch first", "mismatch later"])
def agree(request, make_model, run):
    """Compare a session with onnxruntime, feed by feed, twice each: at first traced, then planned."""

    def compare(text, weights, *feeds, opset=17, atol=1e-5, **options):
        model = make_model(text, NUMBERS | weights, opset=opset)
        session = Session(model.SerializeToString(), threads=1, **options)
        for feed in feeds[:: -1 if request.param else 1]:
            wanted = run(model, feed)
            for _ in range(2):
                for ours, theirs in zip(session.run(None, feed), wanted, strict=True):
                    assert ours.dtype == theirs.dtype
                    np.testing.assert_allclose(ours, theirs, 0, atol)
        return session

    return compare


def product(K, M):
    return {"w": codes(K, M), "ws": np.full(M, 0.1, np.float32), "wz": np.zeros(M, np.int8)}


@pytest.mark.parametrize(
    ("axes", "shapes"),
    [
        ("N", [((4, 8), (4, 5)), ((4, 8), (1, 5)), ((3, 8), (3, 5))]),
        (
            "N,S",
            [((2, 3, 8), (2, 3, 5)), ((1, 6, 8), (6, 1, 5)), ((2, 3, 8), (1, 3, 5)), ((2, 3, 8), (2, 1, 5))],
        ),
    ],
)
@pytest.mark.parametrize("last", ["y = Add(m, r)", "y = Add(r, m)", "b = Add(m, k)  y = Add(b, r)"])
def test_a_residual_of_other_sizes(agree, axes, shapes, last):
    text = f"(float[{axes},8] x, float[{axes},5] r) => (float y) {{ {MATMUL} {last} }}"
    feeds = [{"x": real(*x), "r": real(*r)} for x, r in shapes]
    session = agree(text, product(8, 5) | {"k": real(5)}, *feeds)
    # the addition is part of the product's step, whatever the sizes
    assert not any(step.kernel == "onnxruntime" for step in session.steps())


def test_a_residual_that_does_not_broadcast(make_model):
    text = f"(float[N,8] x, float[N,5] r) => (float y) {{ {MATMUL} y = Add(m, r) }}"
    session = Session(make_model(text, NUMBERS | product(8, 5)).SerializeToString())
    with pytest.raises(DataError, match=r"found operands \[4, 5\] and \[3, 5\], wanted shapes"):
        session.run(None, {"x": real(4, 8), "r": real(3, 5)})


@pytest.mark.parametrize("op_type", ["Add", "Mul"])
@pytest.mark.parametrize("operands", ["cd, rd", "rd, cd"])
def test_quantized_operands_of_other_sizes(agree, op_type, operands):
    body = (
        QUANTIZE.format("x") + QUANTIZE.format("r") + CONV.format("xd")
        + "cq = QuantizeLinear(c, t, z)  cd = DequantizeLinear(cq, t, z)  "
        + f"a = {op_type}({operands})  aq = QuantizeLinear(a, t, z)  y = DequantizeLinear(aq, t, z)"
    )  # fmt: skip
    text = f"(float[N,4,H,W] x, float[N,4,H,W] r) => (float y) {{ {body} }}"
    weights = {"w": codes(4, 4, 1, 1), "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8)}
    sizes = [(2, 4, 3, 5), (1, 4, 3, 5), (2, 4, 1, 1), (2, 4, 3, 1)]
    agree(text, weights, *({"x": real(2, 4, 3, 5), "r": real(*size)} for size in sizes))


@pytest.mark.parametrize("mask", [(3, 5, 5), (1, 5, 5), (3, 1, 5), (3, 5, 1), (3, 1, 1)])
def test_masks_of_other_sizes(agree, mask):
    body = MATMUL + "f = Transpose<perm = [0, 2, 1]>(m)  a = MatMul(m, f)  b = Mul(a, t)  c = Add(b, k)  "
    text = f"(float[N,S,8] x, float[N,S,S] k) => (float y) {{ {body} y = Softmax(c) }}"
    agree(
        text, product(8, 5), {"x": real(3, 5, 8), "k": real(*mask)}, {"x": real(3, 5, 8), "k": real(3, 5, 5)}
    )


@pytest.mark.parametrize(
    "bias", [(1,), (), (1, 1), (3, 1), (3, 5), (1, 5), (5,)], ids=lambda shape: str(list(shape))
)
def test_a_quantized_bias_of_other_sizes(agree, bias):
    body = QUANTIZE.format("x") + "v = DequantizeLinear(w, ws, wz)  b = DequantizeLinear(bq, bs, bz)  "
    text = f"(float[3,8] x) => (float y) {{ {body} y = Gemm(xd, v, b) }}"
    weights = {
        "w": codes(8, 5), "ws": np.float32(0.1), "wz": np.int8(0), "bs": np.float32(0.03) * np.float32(0.1),
        "bz": np.int32(0), "bq": RNG.integers(-9999, 9999, bias).astype(np.int32),
    }  # fmt: skip
    agree(text, weights, {"x": real(3, 8)})


def test_a_bias_of_one_element_behind_one_scale(agree):
    body = QUANTIZE.format("x") + "v = DequantizeLinear(w, ws, wz)  m = MatMul(xd, v)  y = Add(m, b)"
    weights = {"w": codes(8, 5), "ws": np.float32(0.1), "wz": np.int8(0), "b": real(1)}
    agree(f"(float[N,8] x) => (float y) {{ {body} }}", weights, {"x": real(3, 8)})


@pytest.mark.parametrize(
    "between",
    [
        "a = Relu(p)  aq = QuantizeLinear(a, s, z)  b = DequantizeLinear(aq, s, z)",
        "a = Clip(p, lo, hi)  aq = QuantizeLinear(a, s, z)  b = DequantizeLinear(aq, s, z)",
        "aq = QuantizeLinear(p, s, z)  ac = Clip(aq, zero, fifteen)  b = DequantizeLinear(ac, s, z)",
    ],
)
def test_bounds_behind_the_largest(agree, between):
    body = QUANTIZE.format("x") + "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(xd)  " + between
    weights = {"w": codes(3, 4, 1, 1), "ws": np.full(3, 0.01, np.float32), "wz": np.zeros(3, np.int8)}
    end = "  cq = QuantizeLinear(c, t, z)  y = DequantizeLinear(cq, t, z)"
    text = f"(float[N,4,6,6] x) => (float y) {{ {body} {CONV.format('b')} {end} }}"
    session = agree(text, weights, {"x": real(2, 4, 6, 6) - np.float32(1.5)})
    assert "max_pool" in [step.kernel for step in session.steps()]


def test_outputs_that_are_inputs(agree):
    text = f"(float[N,8] x, float[M] u) => (float y, float[N,8] x, float[M] u) {{ {MATMUL} y = Relu(m) }}"
    agree(text, product(8, 5), {"x": real(3, 8), "u": real(2)}, {"x": real(1, 8), "u": real(7)})


def test_a_result_belongs_to_the_caller(make_model):
    text = f"(float[N,8] x) => (float y, float[N,8] x) {{ {MATMUL} y = Relu(m) }}"
    session, x = Session(make_model(text, NUMBERS | product(8, 5)).SerializeToString()), real(3, 8)
    for _ in range(3):
        same = session.run(["x"], {"x": x})[0]
        np.testing.assert_array_equal(same, x)
        same[:] = 0
        assert x.any()


@pytest.mark.parametrize("opset", [10, 11, 12, 13])
def test_limits_that_are_attributes_up_to_opset_10(agree, opset):
    clip = "Clip<min = -0.5, max = 0.7>(m)" if opset == 10 else "Clip(m, lo, hi)"
    body = f"{MATMUL} a = {clip}  aq = QuantizeLinear(a, t, z)  y = DequantizeLinear(aq, t, z)"
    weights = {"w": codes(8, 5), "ws": np.float32(0.02), "wz": np.int8(0)}
    body = body.replace("<axis = 1>", "")
    agree(f"(float[N,8] x) => (float y) {{ {body} }}", weights, {"x": real(3, 8)}, opset=opset)


@pytest.mark.parametrize("opset", [11, 12, 13])
@pytest.mark.parametrize("axis", ["", "<axis = 1>", "<axis = 2>", "<axis = -1>"])
def test_softmax_by_opset(agree, opset, axis):
    body = MATMUL.replace("<axis = 1>", "") + f"y = Softmax{axis}(m)"
    weights = {"w": codes(8, 5), "ws": np.float32(0.02), "wz": np.int8(0)}
    agree(f"(float[N,3,8] x) => (float y) {{ {body} }}", weights, {"x": real(2, 3, 8)}, opset=opset)


@pytest.mark.parametrize("op_type", ["Squeeze", "Unsqueeze"])
def test_axes_that_are_attributes_up_to_opset_12(agree, op_type):
    body = f"{QUANTIZE.format('x')} a = {op_type}<axes = [1]>(xd)  aq = QuantizeLinear(a, s, z)  "
    body += "b = DequantizeLinear(aq, s, z)  v = DequantizeLinear(w, ws, wz)  y = MatMul(b, v)"
    weights = {"w": codes(8, 5), "ws": np.float32(0.02), "wz": np.int8(0)}
    agree(f"(float[N,1,8] x) => (float y) {{ {body} }}", weights, {"x": real(2, 1, 8)}, opset=12)


def test_a_product_of_other_activations_is_refused(make_model):
    """Two rows of six are as many numbers as three of four, and no rows of a weight of four."""
    text = f"(float[a,b] x) => (float y) {{ {MATMUL} y = Relu(m) }}"
    for weights in (product(4, 5), product(4, 5) | {"w": codes(1, 4, 5)}):
        changed = text.replace("<axis = 1>", "<axis = 2>") if weights["w"].ndim == 3 else text
        session = Session(make_model(changed, NUMBERS | weights).SerializeToString(), kernels="dot")
        with pytest.raises(DataError):
            session.run(None, {"x": real(2, 6)})


@pytest.mark.parametrize("sizes", [(3, 0), (0, 3), (3, 2)])
def test_parts_of_other_sizes_are_not_joined(make_model, sizes):
    # onnxruntime takes a part of nothing beside others, and gives memory that nobody has written
    text = f"""(float[N,4] x, float[M,4] u) => (float y) {{
        {QUANTIZE.format("x")} {QUANTIZE.format("u")}
        j = Concat<axis=1>(xd, ud)
        jq = QuantizeLinear(j, s, z)
        y = DequantizeLinear(jq, s, z)
    }}"""
    model = make_model(text, NUMBERS)
    model.graph.node[4].name = "join"
    session = Session(model.SerializeToString(), allow_float=True)
    with pytest.raises(
        DataError, match=r"^join: found parts of .*, wanted equal sizes along all axes but one"
    ):
        session.run(None, {"x": real(sizes[0], 4), "u": real(sizes[1], 4)})
