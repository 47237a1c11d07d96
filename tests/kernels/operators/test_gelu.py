"""GELU against float64 and onnxruntime, and quantized meanwhile."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from onnx import TensorProto
from quantized_models import run_float
from scipy import special

from fgq.errors import KernelError
from fgq.kernels.operators import rounding
from fgq.kernels.operators.gelu import Gelu
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]

QUANTIZER = {"y_scale": 0.011, "y_zero": 90, "lowest": 3, "highest": 240}


@pytest.fixture(autouse=True, params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(rounding, "available", lambda: (request.param,))


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
    x = np.zeros((2, 3), np.float32)
    for y in (x[:1], x.astype(np.float64)):
        with pytest.raises(KernelError, match=r"gelu: y: found float.*, wanted float32\[2, 3\]"):
            Gelu(x, y)
    with pytest.raises(KernelError, match="zero point -1"):
        Gelu(x, x.astype(np.uint8), y_zero=-1)
