"""Poolings against onnxruntime's, byte for byte."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from quantized_models import run_quantized

from fgq.errors import KernelError
from fgq.kernels import Window
from fgq.kernels.operators import pooling
from fgq.kernels.operators.pooling import AveragePool, MaxPool
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]

# kernel, strides, pads, dilations, ceil_mode
WINDOWS = [
    ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 0),
    ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((2, 3), (2, 3), (0, 1, 1, 2), (1, 1), 1),
    ((3, 3), (4, 4), (1, 1, 1, 1), (1, 1), 1),
    ((1, 1), (3, 1), (0, 0, 0, 0), (1, 1), 0),
    ((9, 11), (1, 1), (0, 0, 0, 0), (1, 1), 0),
    ((3, 2), (1, 2), (1, 1, 0, 1), (2, 3), 0),
    ((3, 3), (4, 4), (1, 1, 2, 2), (2, 2), 1),
]
QUANTIZERS = [(0.25, 3, 0.5, 250), (0.5, 128, 0.0625, 1), (0.021, 0, 0.034, 77)]


@pytest.fixture(params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(pooling, "available", lambda: (request.param,))


def draw(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def run(op_type, x, quantizers, **attributes):
    """Return onnxruntime's result, NHWC from NHWC."""
    x_scale, x_zero, y_scale, y_zero = quantizers
    image = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    y = run_quantized(op_type, [(image, x_scale, x_zero)], (y_scale, y_zero), **attributes)
    return np.ascontiguousarray(y.transpose(0, 2, 3, 1))


def options(quantizers):
    return dict(zip(("x_scale", "x_zero", "y_scale", "y_zero"), quantizers, strict=True))


def check(wanted, make):
    for threads in (1, 3):
        y = guarded(np.full_like(wanted, 99))
        make(y, threads)()
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize("channels", [1, 3, 64, 70, 300])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_maximum(channels, window):
    kernel, strides, pads, dilations, ceil_mode = window
    x = draw(2, 9, 11, channels)
    wanted = run(
        "MaxPool", x, (0.02, 3, 0.02, 3), kernel_shape=kernel, strides=strides, pads=pads,
        dilations=dilations, ceil_mode=ceil_mode,
    )  # fmt: skip
    window = Window(strides=strides, pads=pads, dilations=dilations)
    check(wanted, lambda y, threads: MaxPool(guarded(x), y, kernel, window, threads=threads))


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize("channels", [1, 3, 64, 70])
@pytest.mark.parametrize("window", [window for window in WINDOWS if window[3] == (1, 1)], ids=str)
@pytest.mark.parametrize("padding", [0, 1])
def test_average(channels, window, padding):
    # with dilations onnxruntime refuses the operator that it makes itself
    kernel, strides, pads, _, ceil_mode = window
    x = draw(2, 9, 11, channels)
    for quantizers in QUANTIZERS:
        wanted = run(
            "AveragePool", x, quantizers, kernel_shape=kernel, strides=strides, pads=pads,
            ceil_mode=ceil_mode, count_include_pad=padding,
        )  # fmt: skip
        window = Window(strides=strides, pads=pads)
        given = {**options(quantizers), "count_padding": bool(padding)}
        check(wanted, lambda y, n: AveragePool(guarded(x), y, kernel, window, **given, threads=n))  # noqa: B023
        y = np.empty_like(wanted)
        AveragePool(x, y, kernel, window, **given, lowest=40, highest=90)()
        np.testing.assert_array_equal(y, np.clip(wanted, 40, 90))


def test_average_with_dilations_is_that_of_the_spread_taps():
    x, quantizers = draw(1, 9, 12, 5), options(QUANTIZERS[2])
    spread, thin = np.empty((1, 3, 5, 5), np.uint8), np.empty((1, 3, 5, 5), np.uint8)
    AveragePool(x, spread, (2, 2), Window(strides=(3, 2), dilations=(1, 2)), **quantizers)()
    columns = [c for start in range(0, 9, 2) for c in (start, start + 2)]
    AveragePool(np.ascontiguousarray(x[:, :, columns]), thin, (2, 2), Window(strides=(3, 2)), **quantizers)()
    np.testing.assert_array_equal(spread, thin)


def test_arguments_that_do_not_fit_are_refused():
    x = np.zeros((2, 3, 4, 5), np.uint8)
    with pytest.raises(KernelError, match=r"y: found uint8\[2, 3, 4, 6\], wanted uint8\[2, 3, 4, 5\]"):
        MaxPool(x, np.zeros((2, 3, 4, 6), np.uint8), (1, 1), Window())
    with pytest.raises(KernelError, match=r"zero point 256, wanted them in 0\.\.255"):
        AveragePool(x, x, (1, 1), Window(), x_scale=1, x_zero=0, y_scale=1, y_zero=256)
