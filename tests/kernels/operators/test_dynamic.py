"""Rows quantized as they come, against onnxruntime on the operators that define them."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_ir.serde import serialize_function

from fgq.format.functions import QUANTIZE_TOKENS, function
from fgq.kernels import Plane, Weight
from fgq.kernels.operators.dynamic import NUMBERS_BYTES, Rows, bind_multiply, bind_quantize
from fgq.kernels.products.driver import aligned
from fgq.kernels.products.layer import Layer

RNG = np.random.default_rng(0)


def quantized(x, *, by_row, threads=1):
    memory = aligned((*x.shape[:-1], x.shape[-1] + NUMBERS_BYTES), np.uint8)
    bind_quantize(x, memory, by_row=by_row, threads=threads)()
    return Rows.within(memory)


def in_onnxruntime(x, *, by_row):
    """Quantize by ``fgq::QuantizeTokens`` or DynamicQuantizeLinear."""
    domain, name = ("fgq", "QuantizeTokens") if by_row else ("", "DynamicQuantizeLinear")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("fgq", 1)]
    node = helper.make_node(name, ["x"], ["q", "s", "z"], domain=domain)
    types = TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8
    outputs = [helper.make_tensor_value_info(n, t, None) for n, t in zip("qsz", types, strict=True)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * x.ndim)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    functions = [serialize_function(function(QUANTIZE_TOKENS, 17))]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def values(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


EDGES = {
    "normal": values(7, 33),
    "one element": np.float32([[-3.5]]),
    "one row": values(1, 64) * 1e-3,
    "long rows": values(3, 4099),
    "many rows": values(700, 40),
    "positive": np.abs(values(5, 20)) + 1,
    "negative": -np.abs(values(5, 20)) - 1,
    "zeros": np.zeros((4, 20), np.float32),
    "a row of zeros": np.concatenate([values(2, 20), np.zeros((1, 20), np.float32), values(1, 20)]),
    "constant rows": np.repeat(np.float32([[1.5], [-2.5], [1e-20]]), 20, axis=1),
    # q lies between two integers exactly
    "ties": np.float32([[0, 255, 0.5, 1.5, 2.5, 100.5], [-127.5, 127.5, 0.5, 1.5, -0.5, 0]]),
    "large and small": values(6, 20) * np.float32([[1e-30], [1e30], [1e-38], [1e36], [1e-6], [1e6]]),
    "denormal": np.float32([[1e-44, 3e-45, 0], [-1e-40, 1e-41, 0]]),
}


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_as_in_onnxruntime(case, threads):
    x = EDGES[case]
    codes, scales, zeros = in_onnxruntime(x, by_row=True)
    rows = quantized(x, by_row=True, threads=threads)
    np.testing.assert_array_equal(rows.scales, scales[:, 0])
    np.testing.assert_array_equal(rows.zeros, zeros[:, 0])
    np.testing.assert_array_equal(rows.activations, codes)


@pytest.mark.parametrize("case", [case for case in EDGES if case not in ("large and small", "denormal")])
@pytest.mark.parametrize("threads", [1, 3])
def test_tensors_as_in_onnxruntime(case, threads):
    x = EDGES[case]
    codes, scale, zero = in_onnxruntime(x, by_row=False)
    rows = quantized(x, by_row=False, threads=threads)
    np.testing.assert_array_equal(rows.scales, np.full(len(x), scale))
    np.testing.assert_array_equal(rows.zeros, np.full(len(x), zero))
    np.testing.assert_array_equal(rows.activations, codes)


def test_the_range_of_a_row_is_its_own():
    """Whatever stands in other rows, infinities and NaN included."""
    x = values(6, 50)
    alone = quantized(x, by_row=True)
    x[2], x[4, 7] = np.inf, np.nan
    beside = quantized(x, by_row=True)
    for row in (0, 1, 3, 5):
        assert beside.scales[row] == alone.scales[row]
        np.testing.assert_array_equal(beside.activations[row], alone.activations[row])


def test_nan_takes_no_part():
    x = values(1, 50)
    x[0, 20] = 0.0
    expected = quantized(x, by_row=True)
    x[0, 20] = np.nan
    found = quantized(x, by_row=True)
    assert found.scales[0] == expected.scales[0]
    others = np.arange(50) != 20
    np.testing.assert_array_equal(found.activations[0, others], expected.activations[0, others])
    assert found.activations[0, 20] == 0


def test_an_infinity_saturates():
    rows = quantized(np.float32([[np.inf, -np.inf, 0, 5]]), by_row=True)
    assert np.isfinite(rows.scales).all()
    assert rows.activations[0, 0] == 255


def prepared(K, M, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (M, K)).astype(np.int8)
    alpha = rng.integers(0, 128, (M, -(-K // 4))).astype(np.uint8)
    group = (np.arange(K) // 4).astype(np.int32)
    w8 = codes.astype(np.int32) * alpha[:, group]
    return Layer(Weight((Plane(codes, alpha),), group)), w8


@pytest.mark.parametrize(("R", "K", "M"), [(1, 1, 1), (1, 64, 32), (5, 30, 17), (300, 48, 96)])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_products(R, K, M, by_row, threads):
    layer, w8 = prepared(K, M)
    x, shift, residual = values(R, K) + 0.5, values(M), values(R, M)
    row_scale = np.abs(values(M)) + np.float32(0.01)
    rows = quantized(x, by_row=by_row)
    acc = (rows.activations.astype(np.int64) - rows.zeros[:, None]) @ w8.T
    scaled = acc.astype(np.float32) * (rows.scales[:, None] * row_scale) + shift
    out = aligned((R, M), np.float32)
    scratch = aligned((layer.scratch_bytes(rows.activations, threads),), np.uint8)
    column_sums = w8.sum(axis=1, dtype=np.int32)
    for added in (None, residual):
        bind_multiply(layer, column_sums, row_scale, shift, rows, added, out, scratch, threads)()
        # the steps round alike, or two of them as one fused multiply-add
        expected = scaled if added is None else scaled + added
        largest = np.abs(scaled).max() + np.abs(shift).max() + np.abs(residual).max()
        np.testing.assert_allclose(out, expected, rtol=0, atol=2.0**-22 * largest)


def test_sums_that_wrap_before_the_zero_point_is_taken_off():
    """The longest reduction, with activations of 255 and a zero point of 255."""
    K = 66_000
    weight = Weight(
        (Plane(np.ones((1, K), np.int8), np.full((1, K), 127, np.uint8)),), np.arange(K, dtype=np.int32)
    )
    layer = Layer(weight)
    x = np.zeros((1, K), np.float32)
    x[0, : K // 2] = -1.0
    rows = quantized(x, by_row=True)
    assert rows.zeros[0] == 255
    out = aligned((1, 1), np.float32)
    scratch = aligned((layer.scratch_bytes(rows.activations),), np.uint8)
    one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    bind_multiply(layer, np.int32([127 * K]), one, none, rows, None, out, scratch, 1)()
    assert out[0, 0] == np.float32(-255 * 127 * (K // 2)) * rows.scales[0]
