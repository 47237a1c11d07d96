"""Softmax, layer normalization and GELU against float64 and onnxruntime, and quantized by the way."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from onnx import TensorProto
from quantized_models import run_float
from scipy import special

from fgq.errors import KernelError
from fgq.kernels.operators import rounding
from fgq.kernels.operators.transformer import Gelu, LayerNorm, Softmax
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]
WIDTHS = [1, 5, 16, 17, 100, 128, 1000]

QUANTIZER = {"y_scale": 0.011, "y_zero": 90, "lowest": 3, "highest": 240}


@pytest.fixture(autouse=True, params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(rounding, "available", lambda: (request.param,))


def draw(*shape, spread=2.0, seed=0):
    return np.random.default_rng(seed).normal(0.3, spread, shape).astype(np.float32)


def check(x, make):
    """Return the result of ``make(y, **options)``, after a look at threads, bounds and the quantized one."""
    y = guarded(np.full(x.shape, 9, np.float32))
    make(y)()
    threaded = np.empty_like(y)
    make(threaded, threads=3)()
    np.testing.assert_array_equal(threaded, y)
    quantized = guarded(np.full(x.shape, 9, np.uint8))
    make(quantized, **QUANTIZER)()
    constants = [np.float32(QUANTIZER["y_scale"]), np.uint8(QUANTIZER["y_zero"])]
    wanted = run_float("QuantizeLinear", [y], constants, result=TensorProto.UINT8)
    np.testing.assert_array_equal(quantized, np.clip(wanted, QUANTIZER["lowest"], QUANTIZER["highest"]))
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


@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(width):
    x, added = draw(5, 4, width), draw(5, 4, width, seed=1)
    weight, bias = draw(width, seed=2), draw(width, seed=3)

    def wanted(values):
        values = values.astype(np.float64)
        centred = values - values.mean(-1, keepdims=True)
        return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * weight + bias

    y = check(x, lambda y, **options: LayerNorm(guarded(x), y, weight, guarded(bias), 1e-5, **options))
    # x - mean loses some 1e-7 of the mean, which epsilon, for a row of one value, makes 300 times as much;
    # times a weight of up to 10
    tolerance = {"rtol": 2e-6, "atol": 2e-6 if width > 1 else 1e-3}
    np.testing.assert_allclose(y, wanted(x), **tolerance)
    np.testing.assert_allclose(
        y, run_float("LayerNormalization", [x], [weight, bias], axis=-1, epsilon=1e-5), **tolerance
    )
    y = check(x, lambda y, **options: LayerNorm(x, y, weight, bias, 1e-5, added=guarded(added), **options))
    np.testing.assert_allclose(y, wanted(x + added), **tolerance)
    total = guarded(np.empty_like(x))
    same = check(
        x, lambda y, **options: LayerNorm(x, y, weight, bias, 1e-5, added=added, total=total, **options)
    )
    np.testing.assert_array_equal(same, y)
    np.testing.assert_array_equal(total, x + added)
    kept = x.copy()
    LayerNorm(kept, same, weight, bias, 1e-5, added=added, total=kept)()
    np.testing.assert_array_equal(kept, total)
    np.testing.assert_array_equal(same, y)


def test_layer_norm_of_a_mean_far_from_zero():
    x = draw(3, 384) + np.float32(1000)
    y, one = np.empty_like(x), np.ones(384, np.float32)
    LayerNorm(x, y, one, 0 * one, 0)()
    values = x.astype(np.float64)
    wanted = (values - values.mean(-1, keepdims=True)) / values.std(-1, keepdims=True)
    np.testing.assert_allclose(y, wanted, atol=1e-4)  # a float32 near 1000 is 6e-5 from the next


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("size", [0, 1, 17, 1024, 20_000])
def test_gelu(tanh, size):
    x = np.linspace(-9, 9, size, dtype=np.float32)
    y = np.empty_like(x)
    if size:
        y = check(x, lambda y, **options: Gelu(guarded(x), y, tanh=tanh, **options))
    v = x.astype(np.float64)
    inner = np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)) if tanh else special.erf(v / np.sqrt(2))
    wanted = 0.5 * v * (1 + inner)
    assert (np.abs(y - wanted) <= 3e-7 * np.abs(v)).all()
    theirs = run_float("Gelu", [x], approximate="tanh" if tanh else "none") if size else y
    # onnxruntime is within 4e-7 of it
    assert (np.abs(y - theirs) <= 7e-7 * np.abs(v)).all()
    extreme = np.float32([-3e38, -1e4, -20, 0, 20, 1e4, 3e38, np.inf, np.nan])
    y = np.empty_like(extreme)
    Gelu(extreme, y, tanh=tanh)()
    np.testing.assert_array_equal(y, np.float32([0, 0, 0, 0, 20, 1e4, 3e38, np.inf, np.nan]))


def test_arguments_that_do_not_fit_are_refused():
    x, one = np.zeros((2, 3), np.float32), np.ones(3, np.float32)
    for y in (x[:1], x.astype(np.float64)):
        with pytest.raises(KernelError, match=r"gelu: y: found float.*, wanted float32\[2, 3\]"):
            Gelu(x, y)
    with pytest.raises(KernelError, match=r"softmax: mask: found float32\[2, 1\], wanted float32\[2, 3\]"):
        Softmax(x, x, mask=x[:, :1])
    with pytest.raises(KernelError, match=r"mask: found \[3, 3\] for \[2, 3\]"):
        Softmax(x, x, mask=np.zeros((3, 3), np.float32))
    with pytest.raises(KernelError, match=r"layernorm: weight: found float32\[2\], wanted float32\[3\]"):
        LayerNorm(x, x, one[:2], one, 1e-5)
    with pytest.raises(KernelError, match="total: found no array to be added, wanted one"):
        LayerNorm(x, x, one, one, 1e-5, total=x)
    with pytest.raises(KernelError, match="zero point -1"):
        Gelu(x, x.astype(np.uint8), y_zero=-1)
