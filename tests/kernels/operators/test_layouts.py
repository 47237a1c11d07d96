"""Quantizing, dequantizing and reordering against onnxruntime and NumPy."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from onnx import TensorProto
from quantized_models import run_float

from fgq.errors import KernelError
from fgq.kernels.operators import layouts, rounding
from fgq.kernels.operators.layouts import DequantizeLinear, QuantizeLinear, Transpose
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]

IMAGES = [
    (1, 3, 70, 65), (2, 3, 7, 9), (2, 1, 5, 5), (1, 16, 16, 16), (2, 64, 13, 11), (1, 300, 9, 9),
    (1, 17, 65, 1), (1, 4, 30, 30), (0, 3, 4, 4), (1, 2, 0, 3), (3, 5, 1, 1),
]  # fmt: skip


@pytest.fixture(params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    for module in (layouts, rounding):
        monkeypatch.setattr(module, "available", lambda: (request.param,))


def onnx_quantize(x, scale, zero_point):
    constants = [np.float32(scale), np.uint8(zero_point)]
    return run_float("QuantizeLinear", [x], constants, result=TensorProto.UINT8)


def onnx_dequantize(x, scale, zero_point):
    return run_float("DequantizeLinear", [x], [np.float32(scale), np.uint8(zero_point)])


def keep(x):
    """Return an array before a forbidden page, if there is anything of it."""
    return guarded(x) if x.size else x


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_images(shape):
    x = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    planes = onnx_quantize(x, 0.021, 100) if x.size else x.astype(np.uint8)
    pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    for threads in (1, 3):
        found = keep(np.full(pixels.shape, 9, np.uint8))
        QuantizeLinear(0.021, 100, image=True, threads=threads)(keep(x), found)
        np.testing.assert_array_equal(found, pixels)
        QuantizeLinear(0.021, 100, 4, 15, image=True, threads=threads)(x, found)
        np.testing.assert_array_equal(found, np.clip(pixels, 4, 15))
        real = keep(np.full(shape, 9, np.float32))
        DequantizeLinear(0.021, 100, image=True, threads=threads)(keep(pixels), real)
        np.testing.assert_array_equal(real, onnx_dequantize(planes, 0.021, 100) if x.size else x)


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5, 16), (3, 16_500)], ids=str)
def test_any_shape_in_its_own_order(shape):
    x = np.asarray(np.random.default_rng(0).normal(0, 2, shape), np.float32)
    whole = onnx_quantize(x, 0.021, 3)
    for threads in (1, 3):
        found, real = np.full(shape, 9, np.uint8), np.full(shape, 9, np.float32)
        QuantizeLinear(0.021, 3, threads=threads)(x, found)
        np.testing.assert_array_equal(found, whole)
        DequantizeLinear(0.021, 3, threads=threads)(whole, real)
        np.testing.assert_array_equal(real, onnx_dequantize(whole, 0.021, 3))


def test_inputs_in_any_order_of_axes():
    x = np.random.default_rng(0).normal(0, 2, (4, 5, 3, 2)).astype(np.float32).T
    found = np.empty((2, 5, 4, 3), np.uint8)
    QuantizeLinear(0.021, 100, image=True)(x, found)
    np.testing.assert_array_equal(found, onnx_quantize(x, 0.021, 100).transpose(0, 2, 3, 1))


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 200),
        (2, 200, 3),
        (1, 16, 64),
        (2, 47, 130),
        (1, 130, 47),
        (3, 1, 9),
        (1, 70, 70),
        (0, 3, 4),
        (2, 3, 0),
    ],
    ids=str,
)
def test_transposed_bytes(shape):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for threads in (1, 3):
        y = keep(np.full((shape[0], shape[2], shape[1]), 9, np.uint8))
        Transpose(keep(x), y, threads)()
        np.testing.assert_array_equal(y, x.transpose(0, 2, 1))


def test_arguments_that_do_not_fit_are_refused():
    x = np.zeros((1, 3, 4, 5), np.float32)
    with pytest.raises(
        KernelError, match=r"layout: found float32\[1, 3, 4, 5\] for uint8\[1, 3, 4, 5\], wanted"
    ):
        QuantizeLinear(1, 0, image=True)(x, np.zeros(x.shape, np.uint8))
    with pytest.raises(KernelError, match="layout: found float64"):
        QuantizeLinear(1, 0)(x.astype(np.float64), np.zeros(x.shape, np.uint8))
    with pytest.raises(KernelError, match="wanted uint8 of four axes"):
        DequantizeLinear(1, 0, image=True)(np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.float32))
    with pytest.raises(KernelError, match="zero point 256"):
        QuantizeLinear(1, 256)
    with pytest.raises(KernelError, match=r"transpose: found \[3, 4\] for \[4, 3\]"):
        Transpose(np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8))
