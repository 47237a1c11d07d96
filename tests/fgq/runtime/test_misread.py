"""Files of which onnxruntime's integer operators compute something else: a session computes what they say."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq import Session
from fgq.graph import ort
from fgq.runtime.misread import is_misread

GEMM = """(uint8[N,8] x) => (uint8 y) {
    a = DequantizeLinear(x, s, zx)
    w = DequantizeLinear<axis=1>(w8, r, zw)
    c = DequantizeLinear<axis=0>(b32, rb, zb)
    b = Gemm(a, w, c)
    y = QuantizeLinear(b, sy, zy)
}"""
CONV = """(uint8[N,8,3,3] x) => (uint8 y) {
    a = DequantizeLinear(x, s, zx)
    w = DequantizeLinear<axis=0>(w8, r, zw)
    c = DequantizeLinear<axis=0>(b32, rb, zb)
    b = Conv(a, w, c)
    y = QuantizeLinear(b, sy, zy)
}"""
ADD = """(uint8[N,8] x) => (uint8 y) {
    a = DequantizeLinear(x, s, zx)
    b = Add(a, a)
    y = QuantizeLinear(b, sy, zy)
}"""
POOL = """(uint8[N,8,3,3] x) => (uint8 y) {
    a = DequantizeLinear(x, s, zx)
    b = GlobalAveragePool(a)
    y = QuantizeLinear(b, sy, zy)
}"""
RNG = np.random.default_rng(5)
ROWS = RNG.uniform(0.005, 0.01, 5).astype(np.float32)
WEIGHTS = {
    "s": np.float32(0.1),
    "zx": np.uint8(7),
    "sy": np.float32(0.3),
    "zy": np.uint8(100),
    "w8": RNG.integers(-63, 64, (8, 5)).astype(np.int8),
    "r": ROWS,
    "zw": np.zeros(5, np.int8),
    "b32": RNG.integers(-20000, 20000, 5).astype(np.int32),
    "rb": np.float32(0.1) * ROWS,
    "zb": np.zeros(5, np.int32),
}
IMAGES = WEIGHTS | {"w8": np.ascontiguousarray(WEIGHTS["w8"].T).reshape(5, 8, 1, 1)}

OTHER_UNITS = {
    "scales": {"rb": 20 * WEIGHTS["rb"], "zb": WEIGHTS["zb"]},
    "one scale": {"rb": np.float32(0.01), "zb": np.int32(0)},
    "zero points": {"rb": WEIGHTS["rb"], "zb": np.full(5, 9000, np.int32)},
}


def draw(rank):
    x = RNG.integers(0, 256, (60, 8, 3, 3)[:2] if rank == 2 else (60, 8, 3, 3)).astype(np.uint8)
    x[:20] = WEIGHTS["zx"]  # sums of zero
    return x


def misread(model):
    return [node.op_type for node in ir.from_proto(model).graph if is_misread(node)]


def compute(model, x):
    """Return what a session makes of a model, and onnxruntime without optimizations."""
    data, feeds = model.SerializeToString(), {"x": x}
    (said,) = ort.open_session(data, "m", optimized=False).run(None, feeds)
    (ours,) = Session(data, allow_float=True).run(None, feeds)
    return ours.astype(int), said.astype(int)


@pytest.mark.parametrize("changed", OTHER_UNITS.values(), ids=OTHER_UNITS)
def test_biases_of_a_gemm_in_other_units(make_model, run, changed):
    text = GEMM if changed["zb"].ndim else GEMM.replace("<axis=0>(b32", "(b32")
    model, x = make_model(text, WEIGHTS | changed), draw(2)
    assert misread(model) == ["Gemm"]
    ours, said = compute(model, x)
    assert np.abs(ours - said).max() <= 1
    (fused,) = run(model, {"x": x})
    assert np.abs(fused.astype(int) - said).max() > 1


@pytest.mark.parametrize("changed", OTHER_UNITS.values(), ids=OTHER_UNITS)
def test_biases_of_a_convolution_in_other_units(make_model, changed):
    text = CONV if changed["zb"].ndim else CONV.replace("<axis=0>(b32", "(b32")
    ours, said = compute(make_model(text, IMAGES | changed), draw(4))
    assert np.abs(ours - said).max() <= 1


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_biases_behind_a_factor(make_model, factor):
    ours, said = compute(make_model(GEMM.replace("Gemm(", f"Gemm<{factor}=2.0>("), WEIGHTS), draw(2))
    assert np.abs(ours - said).max() <= 1


def test_biases_in_units_of_the_sums_are_read_rightly(make_model, run):
    model, x = make_model(GEMM, WEIGHTS), draw(2)
    assert misread(model) == []
    (fused,) = run(model, {"x": x})
    assert np.abs(fused.astype(int) - compute(model, x)[1]).max() <= 1


@pytest.mark.parametrize(
    ("text", "changed", "rank"),
    [
        (GEMM, {"s": np.float32(1e30), "r": np.full(5, 1e25, np.float32)}, 2),
        (GEMM, {"s": np.float32(1e20), "r": np.full(5, 1e19, np.float32)}, 2),
        (GEMM, {"sy": np.float32(1e-42)}, 2),
        (ADD, {"s": np.float32(1), "sy": np.float32(1e-42)}, 2),
        (POOL, {"s": np.float32(1), "sy": np.float32(1e-42)}, 4),
    ],
    ids=["values", "sums", "steps", "Add", "pooling"],
)
def test_products_of_scales_that_float32_cannot_hold(make_model, text, changed, rank):
    model = make_model(text.replace("Gemm(a, w, c)", "Gemm(a, w)"), WEIGHTS | changed)
    (op_type,) = misread(model)
    assert op_type in text
    ours, said = compute(model, draw(rank)[:20])
    np.testing.assert_array_equal(said, WEIGHTS["zy"])
    np.testing.assert_array_equal(ours, said)
