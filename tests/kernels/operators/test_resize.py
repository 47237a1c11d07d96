"""Resizing and padding against onnxruntime and NumPy."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from onnx import TensorProto
from quantized_models import run_float

from fgq.errors import KernelError
from fgq.kernels.operators.resize import Pad, ResizeNearest


def draw(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 64, 70])
@pytest.mark.parametrize("scales", [(2, 2), (1, 3), (0.5, 0.25)])
def test_nearest_neighbours(channels, scales):
    x = draw(2, 8, 10, channels)
    constants = [np.zeros(0, np.float32), np.array([1, 1, *scales], np.float32)]
    image = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    wanted = run_float(
        "Resize", [image], constants, result=TensorProto.UINT8, mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ).transpose(0, 2, 3, 1)  # fmt: skip
    rows, columns = (
        (np.arange(size) / np.float32(scale)).astype(int)
        for size, scale in zip(wanted.shape[1:3], scales, strict=True)
    )
    for threads in (1, 3):
        y = guarded(np.full(wanted.shape, 9, np.uint8))
        ResizeNearest(guarded(x), y, rows, columns, threads)()
        np.testing.assert_array_equal(y, wanted)


def test_rows_and_columns_in_any_order():
    x = draw(3, 4, 5, 2)
    rows, columns = [3, 3, 0, 1, 1], [4, 0, 0, 2]
    y = np.empty((3, 5, 4, 2), np.uint8)
    ResizeNearest(x, y, rows, columns)()
    np.testing.assert_array_equal(y, x[:, rows][:, :, columns])
    ResizeNearest(x, y[:, :0], [], columns)()


@pytest.mark.parametrize(
    ("shape", "before", "after"),
    [
        ((2, 5, 6, 7), (0, 1, 2, 0), (0, 3, 0, 0)), ((2, 5, 6, 7), (1, 0, 0, 3), (0, 1, 1, 1)),
        ((3,), (2,), (4,)), ((2, 3), (0, 0), (0, 0)), ((1, 0, 2), (0, 1, 1), (0, 1, 0)),
    ],
    ids=str,
)  # fmt: skip
def test_padding(shape, before, after):
    x = draw(*shape)
    wanted = np.pad(x, list(zip(before, after, strict=True)), constant_values=77)
    for threads in (1, 3):
        y = guarded(np.full(wanted.shape, 9, np.uint8))
        Pad(guarded(x) if x.size else x, y, before, 77, threads)()
        np.testing.assert_array_equal(y, wanted)


def test_arguments_that_do_not_fit_are_refused():
    x, y = draw(1, 4, 5, 2), draw(1, 8, 10, 2)
    with pytest.raises(KernelError, match=r"rows: found indices 0\.\.4, wanted them in 0\.\.3"):
        ResizeNearest(x, y, np.arange(8) // 2 + (np.arange(8) > 6), np.arange(10) // 2)
    with pytest.raises(KernelError, match=r"columns: found indices -1\.\.8, wanted them in 0\.\.4"):
        ResizeNearest(x, y, np.arange(8) // 2, np.arange(10) - 1)
    with pytest.raises(KernelError, match=r"resize: found .* 3 rows and 10 columns"):
        ResizeNearest(x, y, [0, 1, 2], np.arange(10) // 2)
    for before, value in (((0, 5, 0, 0), 0), ((0, -1, 0, 0), 0), ((0, 0, 0), 0), ((0, 0, 0, 0), 256)):
        with pytest.raises(KernelError, match="pad: found"):
            Pad(x, y, before, value)
