"""Matrices of bytes, transposed, against NumPy."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded

from fgq.errors import KernelError
from fgq.kernels.operators import transpose
from fgq.kernels.operators.transpose import Transpose
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]

SHAPES = [
    (1, 3, 200), (2, 200, 3), (1, 16, 64), (2, 47, 130), (1, 130, 47), (3, 1, 9), (1, 70, 70), (2, 64, 900),
    (0, 3, 4), (2, 3, 0), (2, 0, 3),
]  # fmt: skip


def keep(x):
    """Return an array before a forbidden page, if there is anything of it."""
    return guarded(x) if x.size else x


@pytest.fixture(params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(transpose, "available", lambda: (request.param,))


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matrices(shape, monkeypatch):
    monkeypatch.setattr(transpose, "_SHARE", 64)  # let several threads work on little
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for threads in (1, 3):
        y = keep(np.full((shape[0], shape[2], shape[1]), 9, np.uint8))
        Transpose(keep(x), y, threads)()
        np.testing.assert_array_equal(y, x.transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8), r"found an array \[3, 4\], wanted matrices"),
        (np.zeros((1, 3, 4), np.uint8), np.zeros((1, 3, 4), np.uint8), r"y: found uint8\[1, 3, 4\], wanted"),
        (np.zeros((1, 3, 4), np.int8), np.zeros((1, 4, 3), np.uint8), "x: found int8"),
        (
            np.zeros((1, 4, 3), np.uint8).swapaxes(1, 2),
            np.zeros((1, 4, 3), np.uint8),
            "an array with gaps",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(KernelError, match=message):
        Transpose(x, y)
