"""The public functions of the package."""

import doctest
import subprocess
import sys

import numpy as np
import pytest

import fgq.kernels
from fgq.errors import KernelError
from fgq.kernels import Weight, ternary_conv2d, ternary_matmul

RNG = np.random.default_rng(8)
CODES = RNG.integers(-1, 2, (6, 3, 3, 10), dtype=np.int8)
ALPHA = RNG.integers(0, 128, (6, 3, 3, 3), dtype=np.uint8)
GROUP = (np.arange(10) // 4).astype(np.int32)
BIAS = RNG.integers(-1000, 1000, 6, dtype=np.int32)
IMAGE = RNG.integers(0, 256, (2, 7, 8, 10), dtype=np.uint8)
KERNELS = ["auto", "dot", "multiplication-free", "reference"]


def test_examples():
    results = doctest.testmod(fgq.kernels)
    assert results.failed == 0
    assert results.attempted > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_matmul_is_its_formula(kernel):
    codes, alpha = CODES[:, 0, 0], ALPHA[:, 0, 0]
    x = IMAGE.reshape(-1, 10)
    w8 = codes * alpha[:, GROUP].astype(np.int32)
    acc = ternary_matmul(x, Weight.single(codes, alpha, GROUP), x_zero=9, bias=BIAS, kernel=kernel)
    np.testing.assert_array_equal(acc, (x.astype(np.int32) - 9) @ w8.T + BIAS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_conv2d_is_a_sum_of_matmuls_over_the_taps(kernel):
    acc = ternary_conv2d(IMAGE, Weight.single(CODES, ALPHA, GROUP), x_zero=9, bias=BIAS, kernel=kernel)
    wanted = np.zeros((2, 5, 6, 6), np.int32) + BIAS
    for i in range(3):
        for j in range(3):
            w8 = CODES[:, i, j] * ALPHA[:, i, j][:, GROUP].astype(np.int32)
            wanted += (IMAGE[:, i : i + 5, j : j + 6].astype(np.int32) - 9) @ w8.T
    np.testing.assert_array_equal(acc, wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_conv2d_of_single_channels(kernel):
    codes, alpha = CODES[..., :1], ALPHA[..., :1]
    geometry = {"groups": 6, "pads": (0, 1, 2, 1), "strides": (2, 1)}
    weight = Weight.single(codes, alpha, np.zeros(1, np.int32))
    acc = ternary_conv2d(IMAGE[..., :6], weight, **geometry, kernel=kernel)
    padded = np.pad(IMAGE[..., :6], ((0, 0), (0, 2), (1, 1), (0, 0))).astype(np.int32)
    taps = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2]
    w8 = (codes * alpha.astype(np.int32))[..., 0]
    np.testing.assert_array_equal(acc, np.einsum("bhwmij,mij->bhwm", taps, w8))


MATRIX = Weight.single(CODES[:, 0, 0], ALPHA[:, 0, 0], GROUP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "fast"}, "kernel: found 'fast', wanted one of auto, multiplication-free, dot, reference"),
        ({"memory": "small"}, "memory: found 'small', wanted one of auto, fast, compact"),
        ({"tier": "mmx"}, "tier: found 'mmx', wanted one of amx, "),
        ({"activation_bits": 2}, "activation_bits: found 2"),
        ({"activation_bits": 4, "x_zero": 16}, "x_zero: found 16"),
        ({"threads": 0}, "threads: found 0"),
        ({"residual": np.zeros((8, 6), np.int32)}, r"residual: found int32\[8, 6\], wanted none"),
    ],
)
def test_what_there_is_not_is_refused_with_the_choices(options, message):
    with pytest.raises(KernelError, match=message):
        ternary_matmul(IMAGE[0, 0], MATRIX, **options)


def test_8_bit_codes_cannot_be_added():
    weight = Weight.single(CODES[:, 0, 0] * np.int8(5), ALPHA[:, 0, 0] // 5, GROUP)
    with pytest.raises(KernelError, match="multiplication-free for a layer of codes up to 5"):
        ternary_matmul(IMAGE[0, 0], weight, kernel="multiplication-free")
    acc = ternary_matmul(IMAGE[0, 0], weight)
    np.testing.assert_array_equal(acc, IMAGE[0, 0].astype(np.int32) @ weight.int8().T)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(KernelError, match=r"codes: found int8\[10\]"):
        ternary_matmul(IMAGE[0, 0], Weight.single(CODES[0, 0, 0], ALPHA[0, 0, 0], GROUP))
    with pytest.raises(KernelError, match=r"x: found uint8\[2, 7, 8, 9\]"):
        ternary_conv2d(IMAGE[..., :9], Weight.single(CODES, ALPHA, GROUP))


def test_importing_the_package_does_not_load_numba():
    code = "import sys, fgq.kernels; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
