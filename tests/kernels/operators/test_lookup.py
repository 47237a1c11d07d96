"""Tables of functions against onnxruntime's quantized operators, and looking up against NumPy."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from quantized_models import run_quantized
from scipy import special

from fgq.errors import KernelError
from fgq.kernels.operators import lookup
from fgq.kernels.operators.lookup import Lookup, requantization_table, tabulate
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512vnni", "avx512", "avx2", "portable")]

FUNCTIONS = {
    "Relu": (lambda x: np.maximum(x, 0), {}),
    "LeakyRelu": (lambda x: np.where(x < 0, x * np.float32(0.1), x), {"alpha": 0.1}),
    "HardSwish": (lambda x: x * np.clip(x * np.float32(1 / 6) + np.float32(0.5), 0, 1), {}),
    "HardSigmoid": (lambda x: np.clip(x * np.float32(0.2) + np.float32(0.5), 0, 1), {}),
    # in float64 and then rounded: onnxruntime's own approximations come to the same steps
    "Sigmoid": (lambda x: special.expit(x.astype(np.float64)), {}),
    "Tanh": (lambda x: np.tanh(x.astype(np.float64)), {}),
    "Gelu": (lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2.0))), {"opset": 20}),
    "Identity": (lambda x: x, {}),
    "Sqrt": (np.sqrt, {}),
}


@pytest.mark.parametrize("op_type", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_table_is_what_onnxruntime_computes(op_type):
    function, options = FUNCTIONS[op_type]
    rng = np.random.default_rng(0)
    x = np.arange(256, dtype=np.uint8)
    for turn in range(40):
        x_scale = np.float32(rng.uniform(0.5, 2) * 2.0 ** rng.integers(-8, -2))
        y_scale = np.float32(rng.uniform(0.5, 2) * 2.0 ** rng.integers(-9, -3))
        if turn % 2:
            x_scale, y_scale = np.float32(2.0 ** rng.integers(-8, -2)), np.float32(1 / 256)
        x_zero, y_zero = (int(zero) for zero in rng.integers(0, 256, 2))
        wanted = run_quantized(op_type, [(x, x_scale, x_zero)], (y_scale, y_zero), **options)
        quantizers = {"x_scale": x_scale, "x_zero": x_zero, "y_scale": y_scale, "y_zero": y_zero}
        table = tabulate(function, **quantizers)
        np.testing.assert_array_equal(table, wanted)
        np.testing.assert_array_equal(
            tabulate(function, **quantizers, lowest=3, highest=15), np.clip(wanted, 3, 15)
        )


def test_tables_of_clip_and_of_another_quantizer():
    x = np.arange(256, dtype=np.uint8)
    clip = [np.float32(0), np.float32(6)]
    wanted = run_quantized("Clip", [(x, 0.05, 100)], (0.03, 20), constants=clip)
    found = tabulate(lambda r: np.clip(r, 0, 6), x_scale=0.05, x_zero=100, y_scale=0.03, y_zero=20)
    np.testing.assert_array_equal(found, wanted)
    wanted = run_quantized("Identity", [(x, 0.05, 100)], (0.03, 20))
    np.testing.assert_array_equal(requantization_table(0.05, 100, 0.03, 20), wanted)
    np.testing.assert_array_equal(requantization_table(0.05, 100, 0.05, 100), x)


def test_what_is_no_number_becomes_the_lowest():
    quantizers = {"x_scale": 1.0, "x_zero": 128, "y_scale": 1.0, "y_zero": 7}
    table = tabulate(lambda x: np.where(x < 0, np.nan, np.inf), **quantizers, lowest=2, highest=200)
    np.testing.assert_array_equal(table, np.repeat(np.uint8([2, 200]), 128))


@pytest.mark.parametrize("isa", TIERS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("size", [0, 1, 31, 63, 64, 65, 1000, 70_000])
def test_looking_up(isa, size, monkeypatch):
    monkeypatch.setattr(lookup, "available", lambda: (isa,))
    rng = np.random.default_rng(size)
    x, table = (rng.integers(0, 256, count).astype(np.uint8) for count in (size, 256))
    for threads in (1, 3):
        y = guarded(np.zeros(size, np.uint8)) if size else x.copy()
        call = Lookup(guarded(x) if size else x, y, table, threads)
        call()
        np.testing.assert_array_equal(y, table[x])
    Lookup(y, y, table)()
    np.testing.assert_array_equal(y, table[table[x]])


def test_arguments_that_do_not_fit_are_refused():
    x = np.zeros(3, np.uint8)
    with pytest.raises(KernelError, match=r"lookup: y: found uint8\[2\], wanted uint8\[3\]"):
        Lookup(x, x[:2], np.zeros(256, np.uint8))
    with pytest.raises(KernelError, match=r"table: found uint8\[255\], wanted uint8\[256\]"):
        Lookup(x, x, np.zeros(255, np.uint8))
    with pytest.raises(KernelError, match=r"function: found a result of shape \[\], wanted \[256\]"):
        tabulate(np.sum, x_scale=1, x_zero=0, y_scale=1, y_zero=0)
