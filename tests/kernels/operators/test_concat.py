"""Concatenation against onnxruntime's, byte for byte."""

import numpy as np
import pytest
from quantized_models import run_quantized

from fgq.errors import KernelError
from fgq.kernels.operators import concat
from fgq.kernels.operators.concat import Concat
from fgq.kernels.operators.lookup import requantization_table
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512vnni", "avx2", "portable")]

RESULT = 0.03, 9


@pytest.mark.parametrize("isa", TIERS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("sizes", [(5,), (3, 64), (1, 130, 0, 7), (300, 20_000)], ids=str)
def test_it_is_onnxruntimes(isa, axis, sizes, monkeypatch):
    monkeypatch.setattr(concat, "available", lambda: (isa,))
    rng = np.random.default_rng(0)
    shapes = [(*(2, 3, 1, 2)[:axis], size, *(2, 3, 1, 2)[axis + 1 :]) for size in sizes]
    parts = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    quantizers = [(np.float32(rng.uniform(0.01, 0.05)), int(rng.integers(256))) for _ in parts]
    quantizers[0] = RESULT  # which is copied
    inputs = [(part, *quantizer) for part, quantizer in zip(parts, quantizers, strict=True)]
    wanted = run_quantized("Concat", inputs, RESULT, axis=axis)
    for threads in (1, 3):
        y = np.full(wanted.shape, 77, np.uint8)
        Concat(
            parts, y, axis, [requantization_table(*quantizer, *RESULT) for quantizer in quantizers], threads
        )()
        np.testing.assert_array_equal(y, wanted)


def test_arguments_that_do_not_fit_are_refused():
    x, y = np.zeros((2, 3), np.uint8), np.zeros((2, 5), np.uint8)
    table = np.arange(256, dtype=np.uint8)
    with pytest.raises(KernelError, match=r"concat: found \[2, 3\], \[2, 3\] for \[2, 5\]"):
        Concat([x, x], y, 1, [table, table])
