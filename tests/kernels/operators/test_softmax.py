"""Softmax against float64 and onnxruntime."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from quantized_models import run_float
from scipy import special

from fgq.errors import KernelError
from fgq.kernels.operators import softmax
from fgq.kernels.operators.softmax import Softmax
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]
WIDTHS = [1, 5, 16, 17, 100, 128, 1000]


@pytest.fixture(autouse=True, params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(softmax, "available", lambda: (request.param,))


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
def test_softmax(width):
    x = np.round(draw(3, 7, width, spread=4) * 64) / 64  # differences that are exact
    y = check(x, lambda y, **options: Softmax(guarded(x), y, **options))
    # exp 1.5e-7, sum and quotient as much: 3e-7 is what the module promises
    np.testing.assert_allclose(y, special.softmax(x.astype(np.float64), axis=-1), rtol=3e-7)
    # and onnxruntime rounds as often
    np.testing.assert_allclose(y, run_float("Softmax", [x], axis=-1), rtol=6e-7)


@pytest.mark.parametrize("shape", [(2, 3, 5, 40), (1, 1, 1, 40), (2, 1, 1, 40), (5, 40), (3, 1, 40)], ids=str)
def test_scale_and_mask(shape):
    x = np.round(draw(2, 3, 5, 40) * 64) / 64
    mask = np.where(np.random.default_rng(1).random(shape) < 0.4, np.float32(-np.inf), np.float32(0.5))
    mask[..., 7] = 0
    y = check(x, lambda y, **options: Softmax(guarded(x), y, scale=0.125, mask=guarded(mask), **options))
    wanted = special.softmax(x * 0.125 + np.broadcast_to(mask, x.shape).astype(np.float64), axis=-1)
    np.testing.assert_allclose(y, wanted, rtol=3e-7)
    mask[:] = 0  # it is read by each call
    call = Softmax(x, y, mask=mask)
    mask[..., 3] = -np.inf
    call()
    assert (y[..., 3] == 0).all()


def test_all_of_exp():
    x = np.zeros((200_001, 2), np.float32)
    x[:, 1] = np.linspace(-80, 0, len(x))
    y = np.empty_like(x)
    Softmax(x, y)()
    np.testing.assert_allclose(y, special.softmax(x.astype(np.float64), axis=-1), rtol=3e-7)
    x[:, 1] = -np.geomspace(80.1, 3e38, len(x))
    Softmax(x, y)()
    np.testing.assert_array_equal(y, np.broadcast_to(np.float32([1, 0]), x.shape))


def test_no_result_of_softmax_is_a_denormal():
    x = draw(100, 33)
    x[:, 5:] = np.finfo(np.float32).min
    x[:, 6] = x[:, :5].max(axis=1) - np.linspace(70, 110, 100, dtype=np.float32)
    y = np.empty_like(x)
    Softmax(x, y)()
    assert (y[:, 7:] == 0).all()
    assert (y[np.abs(y) < np.finfo(np.float32).tiny] == 0).all()
    assert (y[:5, 6] > 0).all()
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)  # 33 roundings of up to 6e-8


def test_softmax_of_special_numbers():
    inf, nan = np.inf, np.nan
    x = np.float32([[1, -inf, 1], [-inf, -inf, -inf], [nan, 1, 2], [inf, 1, 2], [3e38, 3e38, -3e38]])
    y = np.empty_like(x)
    Softmax(x, y)()
    wanted = np.float32([[0.5, 0, 0.5], [nan] * 3, [nan] * 3, [nan, 0, 0], [0.5, 0.5, 0]])
    assert np.isnan(y[1:4]).any(axis=1).all()
    np.testing.assert_array_equal(y[[0, 4]], wanted[[0, 4]])
    empty = np.zeros((0, 5), np.float32)
    Softmax(empty, empty)()


def test_arguments_that_do_not_fit_are_refused():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(KernelError, match=r"softmax: y: found uint8\[2, 3\], wanted float32\[2, 3\]"):
        Softmax(x, x.astype(np.uint8))
    with pytest.raises(KernelError, match=r"softmax: mask: found float32\[2, 1\], wanted float32\[2, 3\]"):
        Softmax(x, x, mask=x[:, :1])
    with pytest.raises(KernelError, match=r"mask: found \[3, 3\] for \[2, 3\]"):
        Softmax(x, x, mask=np.zeros((3, 3), np.float32))
