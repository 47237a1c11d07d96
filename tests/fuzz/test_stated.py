"""What excuses a difference from onnxruntime is there or is not."""

import numpy as np
import pytest
from stated import adds_by_address, is_misread_somewhere, quantizes_nan

from fgq import Session

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


def beginning_at(place, array):
    """Return a copy of an array that begins so many bytes behind a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + place
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = ReduceMean<keepdims=1>(x, axes)", True),
        ("y = ReduceSum<keepdims=1>(x, axes)", True),
        ("y = GroupNormalization<num_groups=3>(x, ones, ones)", True),
        ("y = InstanceNormalization(x, ones, ones)", True),
        ("y = MeanVarianceNormalization<axes=[1, 2]>(x)", True),
        ("y = ReduceMax(x, axes)", False),
        ("y = LayerNormalization<axis=2>(x, g)", False),
        ("y = Softmax<axis=2>(x)", False),
        ("y = GlobalAveragePool(x)", False),
    ],
)
def test_sums_in_an_order_that_depends_on_the_address(make_model, body, expected):
    weights = {"axes": np.array([2]), "ones": np.ones(6, np.float32), "g": np.ones(57, np.float32)}
    weights = {name: array for name, array in weights.items() if name in body}
    model = make_model(f"(float[2,6,57] x) => (float y) {{ {body} }}", weights, opset=21)
    assert adds_by_address(model) == expected
    session = Session(model.SerializeToString(), allow_float=True, threads=1)
    x = np.random.default_rng(1).standard_normal((2, 6, 57)).astype(np.float32)
    found = {place: session.run(None, {"x": beginning_at(place, x)})[0] for place in (0, 4, 8, 16, 32, 48)}
    assert all(np.array_equal(found[0], found[place]) for place in (16, 32, 48))
    if expected:
        np.testing.assert_allclose(found[4], found[0], 1e-5, 1e-5)
    else:
        assert np.array_equal(found[0], found[4])
        assert np.array_equal(found[0], found[8])
