"""The rounding of rows against onnxruntime's QuantizeLinear."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from onnx import TensorProto
from quantized_models import run_float

from fgq.kernels.operators import rounding
from fgq.kernels.operators.rounding import rounder, rounding_tier
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]


@pytest.fixture(autouse=True, params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(rounding, "available", lambda: (request.param,))


def quantize_linear(x, scale, zero_point):
    return run_float(
        "QuantizeLinear", [x], [np.float32(scale), np.uint8(zero_point)], result=TensorProto.UINT8
    )


def quantize(x, scale, zero_point, lowest=0, highest=255):
    """Return rows of activations, rounded with a gap of 3 between the rows of both arrays."""
    rows, count = x.shape
    given, found = (np.full((rows, count + 3), 99, dtype) for dtype in (np.float32, np.uint8))
    given[:, 3:] = x
    given, found = (guarded(array.reshape(-1)) for array in (given, found))
    run = rounder(rounding_tier(scale))
    quantizer = np.float32(scale), zero_point, lowest, highest
    run(given, 3, count + 3, rows, count, *quantizer, found, 3, count + 3)
    found = found.reshape(rows, -1)
    assert (found[:, :3] == 99).all()
    return found[:, 3:]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 64, 130])
def test_rows_of_any_length(count):
    x = np.random.default_rng(count).normal(0, 2, (5, count)).astype(np.float32)
    wanted = quantize_linear(x, 0.021, 100)
    np.testing.assert_array_equal(quantize(x, 0.021, 100), wanted)
    np.testing.assert_array_equal(quantize(x, 0.021, 100, 4, 15), np.clip(wanted, 4, 15))


@pytest.mark.parametrize("scale", [0.25, 0.3, 2.0**-100, 2.0**100, 1e-38, 3e38, 7e-5])
def test_ties_and_special_numbers_round_as_divisions(scale):
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -1e-45])
    with np.errstate(over="ignore"):
        ties = ((np.arange(-300, 300) + 0.5) * np.float64(np.float32(scale))).astype(np.float32)
    near = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([special, ties, *near])[None]
    for zero_point in (0, 7, 255):
        wanted = quantize_linear(x, scale, zero_point)
        np.testing.assert_array_equal(quantize(x, scale, zero_point), wanted)
        np.testing.assert_array_equal(quantize(x, scale, zero_point, 5, 200), np.clip(wanted, 5, 200))


def test_very_small_and_large_scales_are_left_to_divisions():
    for scale in (0.0, 1e-38, 3e38, np.nan):
        assert INSTRUCTION_SETS[rounding_tier(scale)].name == "portable"
