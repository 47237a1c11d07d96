"""Layer normalization against float64 and onnxruntime."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from quantized_models import run_float

from fgq.errors import KernelError
from fgq.kernels.operators import layer_norm
from fgq.kernels.operators.layer_norm import LayerNorm
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]
WIDTHS = [1, 5, 16, 17, 100, 128, 1000]


@pytest.fixture(autouse=True, params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(layer_norm, "available", lambda: (request.param,))


def draw(*shape, spread=2.0, seed=0):
    return np.random.default_rng(seed).normal(0.3, spread, shape).astype(np.float32)


def check(x, make):
    """Return the result of ``make(y, **options)``, after a look at threads and bounds."""
    y = guarded(np.full(x.shape, 9, np.float32))
    make(y)()
    threaded = np.empty_like(y)
    make(threaded, threads=3)()
    np.testing.assert_array_equal(threaded, y)
    return y


@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(width):
    x, weight, bias = draw(5, 4, width), draw(width, seed=2), draw(width, seed=3)
    y = check(x, lambda y, **options: LayerNorm(guarded(x), y, weight, guarded(bias), 1e-5, **options))
    values = x.astype(np.float64)
    centred = values - values.mean(-1, keepdims=True)
    wanted = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * weight + bias
    # x - mean loses some 1e-7 of the mean, which epsilon, for a row of one value, makes 300 times as much;
    # times a weight of up to 10
    tolerance = {"rtol": 2e-6, "atol": 2e-6 if width > 1 else 1e-3}
    np.testing.assert_allclose(y, wanted, **tolerance)
    np.testing.assert_allclose(
        y, run_float("LayerNormalization", [x], [weight, bias], axis=-1, epsilon=1e-5), **tolerance
    )
    LayerNorm(x, x, weight, bias, 1e-5)()  # in place
    np.testing.assert_array_equal(x, y)


def test_layer_norm_of_a_mean_far_from_zero():
    x = draw(3, 384) + np.float32(1000)
    y, one = np.empty_like(x), np.ones(384, np.float32)
    LayerNorm(x, y, one, 0 * one, 0)()
    values = x.astype(np.float64)
    wanted = (values - values.mean(-1, keepdims=True)) / values.std(-1, keepdims=True)
    np.testing.assert_allclose(y, wanted, atol=1e-4)  # a float32 near 1000 is 6e-5 from the next


def test_arguments_that_do_not_fit_are_refused():
    x, one = np.zeros((2, 3), np.float32), np.ones(3, np.float32)
    with pytest.raises(KernelError, match=r"layernorm: weight: found float32\[2\], wanted float32\[3\]"):
        LayerNorm(x, x, one[:2], one, 1e-5)
    with pytest.raises(KernelError, match=r"layernorm: y: found float32\[1, 3\], wanted float32\[2, 3\]"):
        LayerNorm(x, x[:1], one, one, 1e-5)
