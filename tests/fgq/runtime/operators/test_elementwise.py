import numpy as np
import pytest
import scipy.special
import torch

from fgq.runtime import operators
from fgq.runtime.operators.elementwise import _erf

RNG = np.random.default_rng(0)
SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 104.0, -104.0, 1e30, -1e30]
FLOATS = np.concatenate([RNG.standard_normal(400) * 4, SPECIAL]).astype(np.float32)
INTEGERS = [np.int8, np.uint8, np.int32, np.int64]


def run(op_type, *inputs, opset=21, **attributes):
    return operators.find("", op_type)(inputs, attributes, opset)[0]


def whole(dtype, *shape):
    ends = np.iinfo(dtype)
    return RNG.integers(ends.min, ends.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_and_broadcast_as_in_onnxruntime(same, op_type, dtype):
    a, b = whole(dtype, 2, 3, 50), whole(dtype, 50)
    if op_type == "Div":
        b[b == 0] = 1
        b[b == np.array(-1).astype(dtype)] = 3  # -128 / -1 is undefined
    same(op_type, [a, b])


def test_division_of_integers_goes_towards_zero():
    a = np.array([7, -7, 7, -7, 0, 6], np.int32)
    np.testing.assert_array_equal(
        run("Div", a, np.array([2, 2, -2, -2, -3, -3], np.int32)), [3, -3, -3, 3, 0, -2]
    )


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic_of_floats(same, op_type, dtype):
    same(op_type, [FLOATS.astype(dtype), np.roll(FLOATS, 7).astype(dtype) + dtype(0.5)])


# Exponentials differ from onnxruntime's polynomials by some 4 units in the last place, 2**-23 each.
CLOSE = {"rtol": 1e-6, "atol": 2e-7}


@pytest.mark.parametrize(
    ("op_type", "attributes", "tolerances"),
    [
        ("Relu", {}, {}),
        ("LeakyRelu", {}, {}),
        ("LeakyRelu", {"alpha": 0.3}, {}),
        ("HardSigmoid", {}, CLOSE),
        ("HardSigmoid", {"alpha": 0.5, "beta": 0.6}, CLOSE),
        ("HardSwish", {}, CLOSE),
        ("Sigmoid", {}, CLOSE),
        ("Tanh", {}, CLOSE),
        ("Erf", {}, CLOSE),
        ("Sqrt", {}, {}),
        # onnxruntime multiplies in another order, and large results carry its tanh's or erf's error
        ("Gelu", {}, {"rtol": 2e-6, "atol": 1e-6}),
        ("Gelu", {"approximate": "tanh"}, {"rtol": 2e-6, "atol": 1e-6}),
    ],
)
def test_functions_of_one_value(same, op_type, attributes, tolerances):
    x = np.abs(FLOATS) if op_type == "Sqrt" else FLOATS[np.abs(FLOATS) < 1e9]
    same(op_type, [x.reshape(-1, 2)], **attributes, **tolerances)


@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "HardSwish", "Tanh"])
def test_no_values(op_type):
    assert run(op_type, np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("op_type", ["Sigmoid", "Tanh", "Gelu", "HardSwish", "Relu"])
def test_halves_are_computed_in_single_precision(op_type):
    halves = FLOATS[:400].astype(np.float16)
    expected = run(op_type, halves.astype(np.float32)).astype(np.float16)
    found = run(op_type, halves)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float32, *INTEGERS])
@pytest.mark.parametrize("ends", [(2, 9), (None, 9), (2, None), (None, None), (9, 2)])
def test_clip(same, dtype, ends):
    x = FLOATS if dtype == np.float32 else whole(dtype, 200)
    if ends == (9, 2):  # the upper end wins (opset 13), which onnxruntime does for none
        assert (run("Clip", x, np.array(9, dtype), np.array(2, dtype)) == 2).all()
        return
    same("Clip", [x, *(None if end is None else np.array(end, dtype) for end in ends)])


def test_clip_by_attributes(same):
    same("Clip", [FLOATS], opset=6 + 1, min=-0.5, max=1.25)
    same("Clip", [FLOATS], opset=10, max=1.25)


def test_relu_of_integers(same):
    same("Relu", [whole(np.int8, 100)], opset=14)
    same("Relu", [whole(np.int32, 100)], opset=14)


@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "HardSwish", "HardSigmoid"])
def test_nan_stays(op_type):
    assert np.isnan(run(op_type, np.array([np.nan], np.float32))).all()


def test_error_function_of_doubles():
    x = np.concatenate(
        [np.linspace(-7, 7, 20001), [0.46875, -0.46875, 4.0, -4.0, 6.0, 1e300, np.inf, -np.inf]]
    )
    # Cody's approximations are good to a few units in the last place
    np.testing.assert_allclose(_erf(x), scipy.special.erf(x), rtol=6e-16, atol=0)
    assert np.isnan(_erf(np.array([np.nan]))).all()
    tiny = np.array([1e-300, -5e-324, 0.0])
    np.testing.assert_allclose(_erf(tiny), scipy.special.erf(tiny), rtol=1e-15, atol=5e-324)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_doubles(approximate):
    x = np.linspace(-6, 6, 1001)
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy()
    # below -4 the distribution's tail is a difference of numbers near 1
    np.testing.assert_allclose(run("Gelu", x, approximate=approximate), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [(np.float32, np.float32), (np.float32, np.int64), (np.float64, np.float32), (np.int32, np.int32)],
)
def test_powers(same, base, exponent):
    a, b = RNG.integers(1, 9, 50).astype(base), RNG.integers(0, 6, 50).astype(exponent)
    same("Pow", [a, b], rtol=1e-6)  # a power in floats may be off by a few units in the last place
    same("Pow", [a, b[:1]], rtol=1e-6)


def test_integers_to_negative_powers_lose_their_fraction(same):
    same("Pow", [np.array([2, 1, 5], np.int32), np.array([-1.0, -3.0, 2.0], np.float32)])
    assert run("Pow", np.array([2, 1], np.int32), np.array([-1, -3])).tolist() == [0, 1]


def test_choice_comparison_and_sums(same):
    a, b = whole(np.int32, 2, 3, 1), whole(np.int32, 3, 4)
    b[1, 2] = a[1, 1, 0]
    same("Equal", [a, b])
    same("Where", [a > 0, a, b])
    same("Where", [FLOATS > 0, FLOATS, np.array(7, np.float32)])
    same("Sum", [FLOATS, FLOATS[:1], FLOATS[::-1].copy()])
    same("Sum", [FLOATS])
    words = np.array(["a", "b"], object)
    same("Equal", [words, words[::-1].copy()])
    same("Where", [np.array([True, False]), words, words[::-1].copy()])
    assert not run("Equal", np.array([np.nan]), np.array([np.nan])).any()
