import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from fgq.errors import ModelError
from fgq.kernels import dynamic_quantization, quantize_activations
from fgq.runtime import operators
from fgq.runtime.operators.quantization import rounded

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.standard_normal(3000) * 60, [0, -0.0, 0.5, 1.5, 2.5, 1e30, -1e30]]).astype(np.float32)
SPECIAL = np.array([np.inf, -np.inf, np.nan], np.float32)
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16]


def run(op_type, *inputs, outputs=1, opset=25, **attributes):
    results = operators.find("", op_type)(inputs, attributes, opset, outputs)
    return results[0] if outputs == 1 else results


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("scale", [0.5, 0.1, 1e-3])
def test_one_scale(same, dtype, kind, scale):
    ends = np.iinfo(dtype)
    # onnxruntime's infinities of half precision overflow an int32 on their way
    x = X[np.abs(X) < 1000].astype(kind) if kind == np.float16 else np.concatenate([X, SPECIAL])
    codes = RNG.integers(ends.min, ends.max, 300, dtype, endpoint=True)
    for zero in (ends.min, 3, ends.max):
        same("QuantizeLinear", [x, np.array(scale, kind), np.array(zero, dtype)])
        same("DequantizeLinear", [codes, np.array(scale, kind), np.array(zero, dtype)])


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(
    ("axis", "block", "shape"),
    [(1, 0, (4,)), (-1, 0, (5,)), (1, 2, (3, 2, 5)), (1, 3, (3, 2, 5)), (2, 5, (3, 4, 1))],
)
def test_scales_along_an_axis(same, dtype, axis, block, shape):
    x = (RNG.standard_normal((3, 4, 5)) * 20).astype(np.float32)
    scale, zero = RNG.uniform(0.1, 1, shape).astype(np.float32), RNG.integers(0, 9, shape).astype(dtype)
    attributes = {"axis": axis, **({"block_size": block} if block else {})}
    same("QuantizeLinear", [x, scale, zero], **attributes)
    codes = RNG.integers(0, 100, x.shape).astype(dtype)
    same("DequantizeLinear", [codes, scale, zero], **attributes)


def test_no_zero_point(same):
    scale = np.array(0.25, np.float32)
    same("QuantizeLinear", [X, scale])
    same("QuantizeLinear", [X, scale], output_dtype=TensorProto.INT16)
    same("DequantizeLinear", [np.arange(-128, 128).astype(np.int8), scale])
    same("DequantizeLinear", [RNG.integers(-(2**31), 2**31, 500).astype(np.int32), scale])


def test_the_kernels_quantize_the_same():
    x = np.concatenate([X, SPECIAL])
    found = run("QuantizeLinear", x, np.array(0.7, np.float32), np.array(9, np.uint8))
    np.testing.assert_array_equal(found, quantize_activations(x, np.float32(0.7), 9))


@pytest.mark.parametrize(
    "x",
    [
        X,
        X[:1],
        X + 5,
        np.abs(X),
        -np.abs(X),
        np.zeros(3, np.float32),
        np.zeros(0, np.float32),
        X[:0].reshape(0, 2),
    ],
    ids=["both", "one", "shifted", "positive", "negative", "zeros", "none", "none of two"],
)
def test_dynamic(same, x):
    same("DynamicQuantizeLinear", [x], outputs=3)


@pytest.mark.parametrize("x", [[0.0], [1e-40], [np.inf], [-1.0], [3.0]])
def test_dynamic_ranges_of_one_value(same, x):
    same("DynamicQuantizeLinear", [np.array(x, np.float32)], outputs=3)


def test_the_kernels_find_the_same_range():
    _, scale, zero = run("DynamicQuantizeLinear", X[:500], outputs=3, opset=11)
    assert (float(scale), int(zero)) == dynamic_quantization(X[:500])


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_integers_of_few_bits(name):
    dtype = getattr(ml_dtypes, name)
    info = ml_dtypes.iinfo(dtype)
    codes = run("QuantizeLinear", X, np.array(2, np.float32), np.array(1, dtype))
    expected = np.clip(np.rint(X / 2) + 1, info.min, info.max)
    np.testing.assert_array_equal(codes.astype(np.float32), expected)
    back = run("DequantizeLinear", codes, np.array(2, np.float32), np.array(1, dtype))
    np.testing.assert_array_equal(back, (expected - 1) * 2)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_floats_of_few_bits(name):
    dtype = getattr(ml_dtypes, name)
    largest = float(ml_dtypes.finfo(dtype).max)
    codes = run("QuantizeLinear", X, np.array(2, np.float32), np.array(0, dtype))
    expected = np.clip(X / 2, -largest, largest).astype(dtype)
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))
    back = run("DequantizeLinear", codes, np.array(2, np.float16), output_dtype=TensorProto.FLOAT)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, expected.astype(np.float32) * 2)


def test_precision_is_that_of_the_division():
    x, scale = np.array([1000.0], np.float32), np.array(3.0, np.float32)
    zero = np.array(0, np.uint16)
    assert run("QuantizeLinear", x, scale, zero) == 333
    # 1000 / 3 in half precision is 333.25
    assert run("QuantizeLinear", x * 2 - 1, scale, zero, precision=TensorProto.FLOAT16) == 666


@pytest.mark.parametrize(
    ("scales", "attributes", "message"),
    [
        (np.ones(3, np.float32), {"axis": 1}, r"found scales \[3\], wanted one or 4"),
        (np.ones((3, 4), np.float32), {"axis": 1}, r"found scales \[3, 4\], wanted one or 4"),
        (
            np.ones((3, 1), np.float32),
            {"axis": 1, "block_size": 2},
            r"found scales \[3, 1\], wanted \[3, 2\] for blocks of 2",
        ),
    ],
)
def test_refuses_scales_that_do_not_fit(scales, attributes, message):
    x = np.ones((3, 4), np.float32)
    with pytest.raises(ModelError, match=f"QuantizeLinear: {message}"):
        run("QuantizeLinear", x, scales, **attributes)


def test_rounds_to_integer_types_alone():
    with pytest.raises(ModelError, match="zero point: found float32, wanted an integer type"):
        rounded(X, 0.0, np.dtype(np.float32))
