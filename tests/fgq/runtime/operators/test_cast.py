import itertools

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from fgq.errors import DataError, ModelError
from fgq.runtime import operators
from fgq.runtime.operators.cast import convert, limits

RNG = np.random.default_rng(0)
PLAIN = [
    *(np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64),
    *(np.float16, np.float32, np.float64),
]
SMALL = ["int4", "uint4", "int2", "uint2"]
EIGHT = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
FLOATS = np.array(
    [0, -0.0, 1, -1, 1.06, 3.3, -7.77, 1e-3, 2**-10, 460, 465, -1e6, 1e30, np.inf, -np.inf, np.nan],
    np.float32,
)


def cast(x, dtype, **attributes):
    to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return operators.find("", "Cast")([x], {"to": to, **attributes}, 25)[0]


@pytest.mark.parametrize(
    ("source", "target"), list(itertools.product(PLAIN, PLAIN)), ids=lambda kind: kind.__name__
)
def test_plain_types(same, source, target):
    x = (RNG.random(60) * 100).astype(source)
    if np.dtype(source).kind == "i":
        x = np.concatenate([x, -x, [np.iinfo(source).min, np.iinfo(source).max]]).astype(source)
    if np.dtype(source).kind == "f" and np.dtype(target).kind in "fi":
        x = np.concatenate([x, -x]).astype(source)
    same("Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(target)))


@pytest.mark.parametrize("target", [np.float16, np.float64, np.bool_])
def test_special_floats(same, target):
    same("Cast", [FLOATS], to=helper.np_dtype_to_tensor_dtype(np.dtype(target)))


@pytest.mark.parametrize("name", EIGHT)
def test_floats_of_8_bits_saturate(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    largest = float(ml_dtypes.finfo(dtype).max)
    found = cast(FLOATS, dtype).astype(np.float32)
    assert found.max(where=~np.isnan(found), initial=0) == largest
    assert np.flatnonzero(np.isnan(found)).tolist() == [15]
    np.testing.assert_array_equal(found[-4:-1], [largest, largest, -largest])
    loose = cast(FLOATS, dtype, saturate=0).astype(np.float32)
    np.testing.assert_array_equal(loose, FLOATS.astype(dtype).astype(np.float32))
    assert not np.isfinite(loose[-4:]).any()


@pytest.mark.parametrize("name", SMALL)
def test_small_integers(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    lowest, highest = limits(dtype)
    every = np.arange(lowest, highest + 1)
    np.testing.assert_array_equal(cast(every.astype(np.float32), dtype).astype(int), every)
    np.testing.assert_array_equal(cast(every + 0.0, dtype).astype(np.int8), every)
    # upper bits are dropped
    wide = np.arange(-20, 21)
    bits = (highest - lowest + 1).bit_length() - 1
    np.testing.assert_array_equal(cast(wide, dtype).astype(int) & ((1 << bits) - 1), wide & ((1 << bits) - 1))


def test_between_two_small_types():
    x = np.arange(-8, 8).astype(ml_dtypes.int4)
    np.testing.assert_array_equal(cast(x, ml_dtypes.float8_e4m3fn).astype(np.float32), np.arange(-8.0, 8))
    assert cast(x, ml_dtypes.uint4).dtype == ml_dtypes.uint4


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float4_e2m1fn])
def test_other_floats_round_to_nearest_even(dtype):
    finite = FLOATS[np.isfinite(FLOATS)]
    np.testing.assert_array_equal(
        cast(finite, dtype).astype(np.float32), finite.astype(dtype).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("up", [1, 2, 2, 4, 2**127, 2.0**-127]),
        ("down", [1, 1, 1, 2, 2**127, 2.0**-127]),
        ("nearest", [1, 1, 2, 4, 2**127, 2.0**-127]),
    ],
)
def test_powers_of_two(mode, expected):
    x = np.array([1, 1.25, 1.5, 3, np.inf, 0], np.float32)
    found = cast(x, ml_dtypes.float8_e8m0fnu, round_mode=mode)
    np.testing.assert_array_equal(found.astype(np.float64), expected)
    loose = cast(np.append(x, np.nan), ml_dtypes.float8_e8m0fnu, round_mode=mode, saturate=0)
    np.testing.assert_array_equal(loose.astype(np.float64), [*expected[:4], np.nan, np.nan, np.nan])


def test_strings(same):
    numbers = np.array([1, 0.1, 1e30, np.inf, -np.inf, np.nan, 1 / 3, 123456789.0, -0.0], np.float32)
    for x in (numbers, numbers.astype(np.float64), np.array([-5, 7], np.int8), np.array([True, False])):
        same("Cast", [x], to=TensorProto.STRING)
    words = np.array([["1.5", "NaN", "INF"], ["-inf", "+INF", "1e3"]], object)
    same("Cast", [words], to=TensorProto.FLOAT)
    same("Cast", [np.array(["15", "-3", "1.5"], object)], to=TensorProto.INT32)
    same("Cast", [np.array(["1", "0"], object)], to=TensorProto.BOOL)


def test_refuses_what_is_no_type_and_no_number():
    operator = operators.find("", "Cast")
    with pytest.raises(ModelError, match="Cast: element type: found 99, wanted one of ONNX's"):
        operator([FLOATS], {"to": 99}, 21)
    with pytest.raises(ModelError, match="Cast: round_mode: found 'off', wanted up, down or nearest"):
        cast(FLOATS, ml_dtypes.float8_e8m0fnu, round_mode="off")
    with pytest.raises(DataError, match="Cast: found object"):
        operator([np.array(["word"], object)], {"to": TensorProto.FLOAT}, 21)


def test_same_type_is_no_copy():
    assert convert(FLOATS, np.dtype(np.float32)) is FLOATS
