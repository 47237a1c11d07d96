"""Softmax, layer normalization and GELU against SciPy in float64."""

import numpy as np
import pytest
import scipy.special

from fgq.kernels import transformer
from fgq.kernels.simd.isa import available
from fgq.kernels.transformer import Gelu, LayerNorm, Softmax

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]
WIDTHS = [1, 2, 7, 16, 17, 31, 64, 130]


@pytest.fixture(params=TIERS, ids=lambda isa: isa.name)
def tier(request, monkeypatch):
    monkeypatch.setattr(transformer, "available", lambda: (request.param,))


def normal(*shape, seed=0, size=1.0):
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("width", WIDTHS)
def test_softmax(width):
    x = normal(2, 3, 5, width, size=4)
    mask = normal(2, 1, 1, width, seed=1)
    y = np.empty_like(x)
    for scale, added in ((1.0, None), (0.25, mask)):
        Softmax(x, y, scale=scale, mask=added, threads=2)()
        real = x.astype(np.float64) * scale + (0 if added is None else added)
        # the float32 argument of the exponential, of up to 20, is rounded: 20 * 2**-24, and some for the sum
        np.testing.assert_allclose(y, scipy.special.softmax(real, axis=-1), rtol=3e-6, atol=1e-38)


@pytest.mark.usefixtures("tier")
def test_softmax_of_masked_values_is_zero_and_no_denormal():
    x = normal(4, 33)
    x[:, 5:] = np.finfo(np.float32).min
    x[1, 6] = x[1, :5].max() - 95  # exp gives a denormal
    y = np.empty_like(x)
    Softmax(x, y)()
    assert (y[:, 7:] == 0).all()
    assert (y[np.abs(y) < np.finfo(np.float32).tiny] == 0).all()
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(width):
    x, weight, bias = normal(3, 7, width, size=3) + 2, normal(width, seed=1), normal(width, seed=2)
    y = np.empty_like(x)
    LayerNorm(x, y, weight, bias, 1e-5, threads=2)()
    real = x.astype(np.float64)
    spread = np.sqrt(real.var(axis=-1, keepdims=True) + 1e-5)
    wanted = (real - real.mean(axis=-1, keepdims=True)) / spread * weight + bias
    # the mean, of magnitude 5, is rounded, and divided by spreads down to 0.1
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("tier")
def test_gelu():
    x = np.concatenate([np.linspace(-30, 30, 5003), [0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30]]).astype(
        np.float32
    )
    y = np.empty_like(x)
    Gelu(x, y, threads=2)()
    real = x.astype(np.float64)
    wanted = 0.5 * real * (1 + scipy.special.erf(real / np.sqrt(2)))
    # erf to 3e-7 and its rounding, times half of x
    np.testing.assert_allclose(y[:-2], wanted[:-2], rtol=1e-6, atol=1e-6)
    assert y[-2] == np.float32(1e30)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(
    ("scale", "zero", "lowest", "highest"), [(0.05, 4, 0, 255), (0.5, 1, 0, 15), (0.02, 200, 190, 255)]
)
def test_quantized_gelu(scale, zero, lowest, highest):
    x = normal(999, size=3)
    real, integers = np.empty_like(x), np.empty(x.shape, np.uint8)
    Gelu(x, real)()
    Gelu(x, integers, scale=scale, zero_point=zero, lowest=lowest, highest=highest)()
    wanted = np.clip(np.rint(real / np.float32(scale)) + zero, lowest, highest)
    np.testing.assert_array_equal(integers, wanted)
