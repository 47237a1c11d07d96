import itertools

import numpy as np
import pytest

from fgq.errors import ModelError
from fgq.runtime import operators

RNG = np.random.default_rng(0)
TYPES = list(itertools.product((np.uint8, np.int8), repeat=2))
SHAPES = [
    ((3, 5), (5, 4)),
    ((2, 3, 5), (5, 4)),
    ((2, 3, 5), (2, 5, 4)),
    ((5,), (5, 4)),
    ((1, 1), (1, 1)),
    ((4, 300), (300, 16)),
]


def whole(dtype, *shape):
    ends = np.iinfo(dtype)
    return RNG.integers(ends.min, ends.max, shape, dtype, endpoint=True)


def weights(dtype, *shape):
    """Return weights whose products onnxruntime adds exactly on x86 without VNNI, too."""
    return whole(dtype, *shape) // np.array(2 if dtype == np.int8 else 1, dtype)


def single(value):
    return np.array(value, np.float32)


def run(op_type, *inputs, **attributes):
    return operators.find("", op_type)(inputs, attributes, 21)[0]


def ranges(rank, seed):
    """Attributes, image and kernel shapes of a convolution; onnxruntime dilates nothing with SAME."""
    rng = np.random.default_rng(seed)
    auto = rng.choice(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
    found = {"group": int(rng.integers(1, 4)), "strides": rng.integers(1, 3, rank).tolist()}
    if auto == "NOTSET":
        found["pads"] = rng.integers(0, 3, 2 * rank).tolist()
    else:
        found["auto_pad"] = str(auto)
    if auto in ("NOTSET", "VALID"):
        found["dilations"] = rng.integers(1, 3, rank).tolist()
    inputs, outputs = rng.integers(1, 4, 2)
    image = (2, int(inputs) * found["group"], *rng.integers(6, 10, rank))
    return found, image, (int(outputs) * found["group"], int(inputs), *rng.integers(1, 4, rank))


@pytest.mark.parametrize(("a_type", "b_type"), TYPES)
@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES, ids=str)
def test_matrix_products(same, a_type, b_type, a_shape, b_shape):
    a, b = whole(a_type, *a_shape), weights(b_type, *b_shape)
    same("MatMulInteger", [a, b])
    same("MatMulInteger", [a, b, np.array(7, a_type)])
    same("MatMulInteger", [a, b, None, np.array(100, b_type)])
    if len(b_shape) == 2:
        zeros = RNG.integers(0, 100, b_shape[-1]).astype(b_type)
        same("MatMulInteger", [a, b, np.array(7, a_type), zeros])


@pytest.mark.parametrize(("a_type", "b_type"), TYPES)
def test_zero_points_of_rows(a_type, b_type):
    """onnxruntime has none of them."""
    a, b = whole(a_type, 6, 9), whole(b_type, 9, 4)
    rows, columns = whole(a_type, 6), whole(b_type, 4)
    expected = (a.astype(int) - rows[:, None].astype(int)) @ (b.astype(int) - columns.astype(int))
    np.testing.assert_array_equal(run("MatMulInteger", a, b, rows, columns), expected)
    batch, per_batch = np.stack([a, a]), np.stack([rows, rows])[..., None]
    np.testing.assert_array_equal(run("MatMulInteger", batch, b, per_batch, columns), [expected, expected])


@pytest.mark.parametrize("zero", [0, 255])
def test_largest_sums(zero):
    a, b = np.full((1, 66_001), 255 - zero, np.uint8), np.full((66_001, 1), 255, np.uint8)
    expected = np.int64(66_001) * (255 - 2 * zero) * 255
    wrapped = np.array(expected).astype(np.int32)
    np.testing.assert_array_equal(run("MatMulInteger", a, b, np.array(zero, np.uint8)), [[wrapped]])


@pytest.mark.parametrize(("a_type", "b_type"), [pair for pair in TYPES if pair != (np.int8, np.uint8)])
@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES, ids=str)
def test_quantized_matrix_products(same, a_type, b_type, a_shape, b_shape):
    a, b = whole(a_type, *a_shape), weights(b_type, *b_shape)
    left = [a, single(0.02), np.array(7, a_type)]
    result = [single(0.9), np.array(5, a_type)]
    same("QLinearMatMul", [*left, b, single(0.03), np.array(3, b_type), *result])
    if len(b_shape) == 2:
        scales = RNG.uniform(0.01, 0.1, b_shape[-1]).astype(np.float32)
        zeros = RNG.integers(0, 9, b_shape[-1]).astype(b_type)
        same("QLinearMatMul", [*left, b, scales, zeros, *result])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("w_type", [np.uint8, np.int8])
@pytest.mark.parametrize("zero", [0, 4])
def test_convolutions(same, rank, w_type, zero):
    for seed in range(8):
        attributes, image, kernel = ranges(rank, seed)
        x, w = whole(np.uint8, *image), whole(w_type, *kernel)
        same("ConvInteger", [x, w, np.array(9, np.uint8), np.array(zero, w_type)], **attributes)
        same("ConvInteger", [x, w], **attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("x_type", "w_type"), [pair for pair in TYPES if pair != (np.int8, np.uint8)])
def test_quantized_convolutions(same, rank, x_type, w_type):
    for seed in range(8):
        attributes, image, kernel = ranges(rank, seed)
        x = [whole(x_type, *image), single(0.02), np.array(7, x_type)]
        w, result = weights(w_type, *kernel), [single(0.9), np.array(5, x_type)]
        bias = RNG.integers(-1000, 1000, kernel[0]).astype(np.int32)
        same("QLinearConv", [*x, w, single(0.03), np.array(0, w_type), *result, bias], **attributes)
        scales = RNG.uniform(0.01, 0.1, kernel[0]).astype(np.float32)
        same("QLinearConv", [*x, w, scales, np.zeros(kernel[0], w_type), *result], **attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_kernels_and_plain_products_agree(rank, monkeypatch):
    for seed in range(4):
        attributes, image, kernel = ranges(rank, seed)
        x, w = whole(np.int8, *image), np.maximum(whole(np.int8, *kernel), np.int8(-127))
        zero = np.array(-3, np.int8)
        found = run("ConvInteger", x, w, zero, **attributes)
        with monkeypatch.context() as patch:
            patch.setattr(operators.products, "_for_kernels", lambda *_: False)
            np.testing.assert_array_equal(found, run("ConvInteger", x, w, zero, **attributes))


def test_zero_points_of_kernels():
    """onnxruntime wants one for all."""
    x, w = whole(np.uint8, 1, 2, 5, 5), whole(np.uint8, 3, 2, 3, 3)
    zeros = np.array([0, 128, 255], np.uint8)
    found = run("ConvInteger", x, w, np.array(11, np.uint8), zeros)
    each = [run("ConvInteger", x, w[m : m + 1], np.array(11, np.uint8), zeros[m]) for m in range(3)]
    np.testing.assert_array_equal(found, np.concatenate(each, 1))


def test_no_images_and_no_rows():
    w = whole(np.int8, 4, 2, 3, 3)
    assert run("ConvInteger", np.zeros((0, 2, 5, 5), np.uint8), w).shape == (0, 4, 3, 3)
    assert run("MatMulInteger", np.zeros((0, 9), np.uint8), whole(np.int8, 9, 4)).shape == (0, 4)


def test_refuses_what_does_not_fit():
    x, w = whole(np.uint8, 1, 2, 5, 5), whole(np.int8, 4, 2, 3, 3)
    with pytest.raises(ModelError, match=r"ConvInteger: kernel_shape: found \[2, 2\], wanted \[3, 3\]"):
        run("ConvInteger", x, w, kernel_shape=[2, 2])
    with pytest.raises(ModelError, match="ConvInteger: found 2 channels, wanted 2 groups of 2"):
        run("ConvInteger", x, w, group=2)
