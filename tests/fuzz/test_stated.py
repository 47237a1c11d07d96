"""What excuses a difference from onnxruntime is there or is not."""

import numpy as np
import pytest
from stated import is_misread_somewhere, quantizes_nan

DYNAMIC = """(float[N,4] x) => (uint8 y, float s, uint8 z) {
    a = {operator}(x)
    y, s, z = DynamicQuantizeLinear(a)
}"""
STATIC = """(float[N,4] x) => (uint8 y) {
    a = {operator}(x)
    y = QuantizeLinear(a, scale, zero)
}"""
WEIGHTS = {"scale": np.float32(0.1), "zero": np.uint8(100)}


@pytest.mark.parametrize("text", [DYNAMIC, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("operator", ["Log", "Tanh"])
def test_nan_before_a_quantizer(make_model, text, operator):
    model = make_model(text.replace("{operator}", operator), WEIGHTS)
    assert not quantizes_nan(model, {"x": np.full((2, 4), 2.0, np.float32)})
    negative = np.full((2, 4), 2.0, np.float32)
    negative[1, 2] = -1
    assert quantizes_nan(model, {"x": negative}) == (operator == "Log")


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_bias_in_other_units_within_a_branch(make_model, factor):
    text = """(bool b, uint8[N,4] x) => (float y) {
        y = If (b) <
            then_branch = then () => (float t) {
                a = DequantizeLinear(x, scale, zero)
                w = DequantizeLinear(w8, r, w0)
                c = DequantizeLinear(c32, rc)
                t = Gemm(a, w, c)
            },
            else_branch = else () => (float e) { e = Cast<to=1>(x) }
        >
    }"""
    weights = WEIGHTS | {
        "w8": np.ones((4, 4), np.int8),
        "r": np.float32(0.5),
        "w0": np.int8(0),
        "c32": np.ones(4, np.int32),
        "rc": np.float32(0.05 * factor),
    }
    assert is_misread_somewhere(make_model(text, weights)) == (factor != 1)
