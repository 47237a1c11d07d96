"""Every registered kernel against the reference, on the same layers, with array equality."""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgq.kernels import reference
from fgq.kernels.dispatch import KERNELS
from fgq.kernels.window import Window

MATMUL = [kernel for kernel in KERNELS.values() if kernel.op == "matmul"]
CONV2D = [kernel for kernel in KERNELS.values() if kernel.op == "conv2d"]

GROUP_SIZES = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 100, 300])
X_ZEROS = st.sampled_from([0, 1, 128, 255])
BITS = st.sampled_from([4, 8])
SEEDS = st.integers(0, 2**32 - 1)


def by_name(kernel):
    return kernel.name


def draw_weights(rng, kernel, shape, group_size):
    """Draw codes, alpha, group and bias: ternary codes with groups, or 8-bit codes with alpha 1."""
    group = (np.arange(shape[-1]) // group_size).astype(np.int32)
    alpha_shape = (*shape[:-1], group[-1] + 1)
    bias = rng.integers(-(2**28), 2**28, shape[0], dtype=np.int32)
    if kernel.ternary_only or rng.random() < 0.5:
        codes = rng.choice(np.array([-1, 0, 1], np.int8), shape, p=[0.3, 0.4, 0.3])
        codes[rng.random(shape[0]) < 0.1] = 0  # whole rows of zeros
        return codes, rng.integers(0, 128, alpha_shape, dtype=np.uint8), group, bias
    return rng.integers(-127, 128, shape, dtype=np.int8), np.ones(alpha_shape, np.uint8), group, bias


def draw_activations(rng, shape, bits):
    x = rng.integers(0, 1 << bits, shape, dtype=np.uint8)
    x[rng.random(shape) < 0.1] = (1 << bits) - 1
    return x


@pytest.mark.parametrize("kernel", MATMUL, ids=by_name)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 150),
    reduction=st.integers(1, 320),
    outputs=st.integers(1, 40),
    group_size=GROUP_SIZES,
    x_zero=X_ZEROS,
    bits=BITS,
    seed=SEEDS,
)
def test_matmul(kernel, rows, reduction, outputs, group_size, x_zero, bits, seed):
    rng = np.random.default_rng(seed)
    weights = draw_weights(rng, kernel, (outputs, reduction), group_size)
    x = draw_activations(rng, (rows, reduction), bits)
    acc = kernel.run(kernel.prepare(*weights, x_zero), x)
    assert acc.dtype == np.int32
    np.testing.assert_array_equal(acc, reference.run_matmul(reference.prepare_matmul(*weights, x_zero), x))


@pytest.mark.parametrize("kernel", CONV2D, ids=by_name)
@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 12),
    conv_groups=st.sampled_from([1, 1, 2, 5]),
    taps=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 2), (4, 4), (7, 7)]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    group_size=GROUP_SIZES,
    x_zero=X_ZEROS,
    bits=BITS,
    seed=SEEDS,
)
def test_conv2d(
    kernel, batch, size, inputs, outputs, conv_groups, taps, strides, pads, dilations,
    group_size, x_zero, bits, seed,
):  # fmt: skip
    if kernel.depthwise_only:
        inputs, conv_groups = 1, inputs
    window = Window(strides=strides, pads=pads, dilations=dilations, groups=conv_groups)
    # make the image large enough for the dilated kernel
    height = max(size[0], (taps[0] - 1) * dilations[0] + 1 - pads[0] - pads[2], 1)
    width = max(size[1], (taps[1] - 1) * dilations[1] + 1 - pads[1] - pads[3], 1)
    rng = np.random.default_rng(seed)
    weights = draw_weights(rng, kernel, (outputs * conv_groups, *taps, inputs), group_size)
    x = draw_activations(rng, (batch, height, width, inputs * conv_groups), bits)
    acc = kernel.run(kernel.prepare(*weights, x_zero, window), x)
    assert acc.dtype == np.int32
    wanted = reference.run_conv2d(reference.prepare_conv2d(*weights, x_zero, window), x)
    np.testing.assert_array_equal(acc, wanted)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="takes minutes when interpreted")
@pytest.mark.parametrize("kernel", MATMUL, ids=by_name)
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("x_zero", [0, 255])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(kernel, rows, x_zero, sign):
    # 66,000 weights of 127 in one group: every partial sum is as large as it can be
    weights = (
        np.full((2, 66_000), sign, np.int8),
        np.full((2, 1), 127, np.uint8),
        np.zeros(66_000, np.int32),
        np.zeros(2, np.int32),
    )
    for value in (0, 255):
        acc = kernel.run(kernel.prepare(*weights, x_zero), np.full((rows, 66_000), value, np.uint8))
        np.testing.assert_array_equal(acc, sign * 127 * 66_000 * (value - x_zero))


@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS.values() if k.op == "matmul" and not k.ternary_only], ids=by_name
)
def test_8_bit_codes_with_scales_too(kernel):
    rng = np.random.default_rng(3)
    weights = (
        rng.integers(-7, 8, (9, 50), dtype=np.int8),
        rng.integers(0, 19, (9, 4), dtype=np.uint8),
        (np.arange(50) // 16).astype(np.int32),
        np.zeros(9, np.int32),
    )
    x = rng.integers(0, 256, (11, 50), dtype=np.uint8)
    w8 = weights[0] * weights[1][:, weights[2]].astype(np.int32)
    np.testing.assert_array_equal(
        kernel.run(kernel.prepare(*weights, 100), x), (x.astype(np.int32) - 100) @ w8.T
    )


@pytest.mark.parametrize("kernel", CONV2D, ids=by_name)
def test_a_convolution_of_many_blocks(kernel):
    rng = np.random.default_rng(4)
    channels = 1 if kernel.depthwise_only else 48
    groups = 48 if kernel.depthwise_only else 1
    weights = draw_weights(rng, kernel, (48, 3, 3, channels), 16)
    window = Window(pads=(1, 1, 1, 1), groups=groups)
    x = draw_activations(rng, (2, 33, 31, 48), 8)
    acc = kernel.run(kernel.prepare(*weights, 77, window), x)
    wanted = reference.run_conv2d(reference.prepare_conv2d(*weights, 77, window), x)
    np.testing.assert_array_equal(acc, wanted)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=by_name)
def test_arrays_in_any_order_read_only_or_empty(kernel):
    rng = np.random.default_rng(6)
    geometry = [Window(groups=4)] if kernel.op == "conv2d" else []
    shape = (4, 2, 2, 1) if geometry else (4, 6)
    codes, alpha, group, bias = draw_weights(rng, kernel, shape, 4)
    x = draw_activations(rng, (3, 5, 5, 4) if geometry else (3, 6), 8)
    wanted = kernel.run(kernel.prepare(codes, alpha, group, bias, 1, *geometry), x)
    turned = [np.asfortranarray(array) for array in (codes, alpha, group, bias, x)]
    for array in turned:
        array.flags.writeable = False
    acc = kernel.run(kernel.prepare(*turned[:4], 1, *geometry), turned[4])
    np.testing.assert_array_equal(acc, wanted)
    none = kernel.run(kernel.prepare(codes, alpha, group, bias, 1, *geometry), x[:0])
    assert none.shape == (0, *wanted.shape[1:])


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=by_name)
def test_threads_may_run_the_same_prepared_weights_at_once(kernel):
    rng = np.random.default_rng(7)
    geometry = [Window(pads=(1, 1, 1, 1), groups=8)] if kernel.op == "conv2d" else []
    shape = (16, 3, 3, 1) if geometry else (16, 64)
    prepared = kernel.prepare(*draw_weights(rng, kernel, shape, 16), 5, *geometry)
    inputs = [draw_activations(rng, (2, 9, 9, 8) if geometry else (70, 64), 8) for _ in range(16)]
    alone = [kernel.run(prepared, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: kernel.run(prepared, x), inputs))
    np.testing.assert_array_equal(together, alone)
