"""The epilogue against onnxruntime: every result equal, ties and saturation included."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq.errors import KernelError
from fgq.kernels import reference
from fgq.kernels.epilogue import dequantize, requantize
from fgq.kernels.window import Window


def run(nodes, constants, x, output_type):
    graph = helper.make_graph(
        nodes,
        "epilogue",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", output_type, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def product(outputs, reduction=8, x_zero=3, seed=0):
    """Return activations, weights [K, M] and their exact sums; the sums cover small and large values."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (500, reduction), dtype=np.uint8)
    x[:256] = x_zero
    x[:256, 0] = np.arange(256)
    w8 = rng.integers(-127, 128, (reduction, outputs), dtype=np.int8)
    w8[0, : outputs // 2] = 1
    return x, w8, (x.astype(np.int32) - x_zero) @ w8.astype(np.int32)


SCALES = {
    "ties": np.full(7, 0.5, np.float32),
    "quarters": np.full(7, 0.25, np.float32),
    "saturating": np.full(7, 1e6, np.float32),
    "tiny": np.full(7, 1e-30, np.float32),
    "drawn": np.random.default_rng(1).uniform(1e-4, 0.1, 7).astype(np.float32),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("per_channel", [True, False])
def test_requantize_is_the_end_of_qlinear_matmul(scale, zero_point, per_channel):
    x, w8, acc = product(7)
    x_scale, y_scale = np.float32(0.03), np.float32(0.015)
    row_scale = scale / np.float32(2) if per_channel else np.float32(scale[0] / 2)
    multiplier = x_scale * row_scale / y_scale
    weight_zero = np.zeros(7, np.int8) if per_channel else np.int8(0)
    constants = {
        "xs": x_scale, "xz": np.uint8(3), "w": w8, "ws": row_scale, "wz": weight_zero,
        "ys": y_scale, "yz": np.uint8(zero_point),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])
    wanted = run([node], constants, x, TensorProto.UINT8)
    np.testing.assert_array_equal(requantize(acc, multiplier, zero_point), wanted)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("largest_bias", [1000, 2**30])
def test_requantize_is_the_end_of_qlinear_conv(scale, largest_bias):
    # 16 input and output channels and a multiple of 4 taps: onnxruntime's fastest path; sums above 2**24
    # are not exact as float32, so that its conversion is compared too
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (2, 6, 6, 16), dtype=np.uint8)
    codes = rng.integers(-127, 128, (16, 3, 3, 16), dtype=np.int8)
    bias = rng.integers(-largest_bias, largest_bias, 16, dtype=np.int32)
    row_scale = np.resize(scale, 16) * np.float32(1000 / largest_bias)
    x_scale, y_scale = np.float32(0.02), np.float32(0.7)
    prepared = reference.prepare_conv2d(
        codes, np.ones((16, 3, 3, 1), np.uint8), np.zeros(16, np.int32), bias, 7, Window(pads=(1, 1, 1, 1))
    )
    acc = reference.run_conv2d(prepared, x)
    constants = {
        "xs": x_scale, "xz": np.uint8(7), "w": codes.transpose(0, 3, 1, 2).copy(), "ws": row_scale,
        "wz": np.zeros(16, np.int8), "ys": y_scale, "yz": np.uint8(100), "b": bias,
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"], pads=[1] * 4
    )
    wanted = run([node], constants, x.transpose(0, 3, 1, 2).copy(), TensorProto.UINT8)
    found = requantize(acc, x_scale * row_scale / y_scale, 100)
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), wanted)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_both_are_the_ends_of_matmul_integer(scale):
    x, w8, acc = product(7)
    constants = {"w": w8, "xz": np.uint8(3), "s": scale, "one": np.float32(1), "yz": np.uint8(17)}
    real = [
        helper.make_node("MatMulInteger", ["x", "w", "xz"], ["acc"]),
        helper.make_node("Cast", ["acc"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "s"], ["real"]),
    ]
    values = run([*real, helper.make_node("Identity", ["real"], ["y"])], constants, x, TensorProto.FLOAT)
    np.testing.assert_array_equal(dequantize(acc, scale), values)
    quantized = helper.make_node("QuantizeLinear", ["real", "one", "yz"], ["y"])
    wanted = run([*real, quantized], constants, x, TensorProto.UINT8)
    np.testing.assert_array_equal(requantize(acc, scale, 17), wanted)


def test_ties_go_to_the_even_integer():
    acc = np.array([[1, 3, 5, -1, -3, -5, 2, 0]], np.int32)
    assert requantize(acc, np.float32(0.5), 10).tolist() == [[10, 12, 12, 10, 8, 8, 11, 10]]


def test_extreme_sums_saturate():
    acc = np.array([[-(2**31), 2**31 - 1, -1, 1, 0]], np.int32)
    assert requantize(acc, np.float32(1e29), 9).tolist() == [[0, 255, 0, 255, 9]]
    assert requantize(acc, np.float32(1e-9), 9).tolist() == [[7, 11, 9, 9, 9]]


def test_bounds_are_relu_and_four_bits():
    acc = np.arange(-300, 300, dtype=np.int32).reshape(100, 6)
    full = requantize(acc, np.float32(0.1), 4)
    np.testing.assert_array_equal(
        requantize(acc, np.float32(0.1), 4, lowest=4, highest=15), np.clip(full, 4, 15)
    )


def test_dequantize_rounds_the_sum_and_then_the_product():
    acc = np.array([2**24 + 1, -(2**31), 2**31 - 1, 12345, 0], np.int32)
    scale = np.random.default_rng(3).uniform(1e-6, 1e-2, 5).astype(np.float32)
    wanted = acc.astype(np.float32) * scale
    found = dequantize(acc, scale)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_no_rows():
    assert requantize(np.empty((0, 3), np.int32), np.float32(1), 0).shape == (0, 3)
    assert dequantize(np.empty((2, 0, 3), np.int32), np.ones(3, np.float32)).shape == (2, 0, 3)


@pytest.mark.parametrize(
    ("acc", "scale", "message"),
    [
        (np.zeros((2, 3), np.int64), np.float32(1), r"acc: found int64\[2, 3\]"),
        (np.zeros((), np.int32), np.float32(1), "acc"),
        (
            np.zeros((2, 3), np.int32),
            np.ones(2, np.float32),
            r"scale: found float32\[2\], wanted float32\[3\]",
        ),
        (np.zeros((2, 3), np.int32), np.ones(3), "scale: found float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(acc, scale, message):
    with pytest.raises(KernelError, match=message):
        dequantize(acc, scale)


@pytest.mark.parametrize("bounds", [(0, -1, 255), (0, 0, 256), (0, 9, 8), (-1, 0, 255)])
def test_a_range_beyond_uint8_is_refused(bounds):
    with pytest.raises(KernelError, match=r"wanted them in 0\.\.255"):
        requantize(np.zeros((1, 1), np.int32), np.float32(1), *bounds)
