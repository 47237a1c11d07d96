"""Global average pooling against onnxruntime's, byte for byte."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from quantized_models import run_quantized

from fgq.errors import KernelError
from fgq.kernels.operators import global_average
from fgq.kernels.operators.global_average import GlobalAveragePool
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]

QUANTIZERS = [(0.25, 3, 0.5, 250), (0.5, 128, 0.0625, 1), (0.021, 0, 0.034, 77)]


@pytest.mark.parametrize("isa", TIERS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    "shape", [(2, 9, 11, 3), (1, 1, 1, 70), (1, 40, 33, 300), (3, 7, 7, 64), (1, 2, 257, 1)]
)
def test_means_of_images(monkeypatch, isa, shape):
    monkeypatch.setattr(global_average, "available", lambda: (isa,))
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for image in (x, np.full_like(x, 255)):
        for x_scale, x_zero, y_scale, y_zero in QUANTIZERS:
            planes = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
            means = run_quantized("GlobalAveragePool", [(planes, x_scale, x_zero)], (y_scale, y_zero))
            wanted = means.transpose(0, 2, 3, 1)
            numbers = {"x_scale": x_scale, "x_zero": x_zero, "y_scale": y_scale, "y_zero": y_zero}
            for threads in (1, 3):
                y = guarded(np.full(wanted.shape, 99, np.uint8))
                GlobalAveragePool(guarded(image), y, **numbers, threads=threads)()
                np.testing.assert_array_equal(y, wanted)
            GlobalAveragePool(image, y, **numbers, lowest=40, highest=90)()
            np.testing.assert_array_equal(y, np.clip(wanted, 40, 90))


def test_arguments_that_do_not_fit_are_refused():
    x = np.zeros((2, 3, 4, 5), np.uint8)
    numbers = {"x_scale": 1, "x_zero": 0, "y_scale": 1, "y_zero": 0}
    with pytest.raises(KernelError, match=r"global average: y: found .*, wanted uint8\[2, 1, 1, 5\]"):
        GlobalAveragePool(x, x, **numbers)
    with pytest.raises(KernelError, match="global average: found images"):
        GlobalAveragePool(x[:, :0], x[:, :1, :1].copy(), **numbers)
    with pytest.raises(KernelError, match=r"found an array \[3, 4, 5\], wanted images"):
        GlobalAveragePool(x[0], x[:1], **numbers)
    with pytest.raises(KernelError, match=r"range 9\.\.2 and zero point 0"):
        GlobalAveragePool(x, x[:, :1, :1].copy(), **numbers, lowest=9, highest=2)
