"""Arrays that kernels take the addresses of: what does not fit is refused before anything is read."""

import numpy as np
import pytest

from fgq.errors import KernelError
from fgq.kernels import Plane, Sums, Weight, Window
from fgq.kernels.boundary import check, check_range, ready
from fgq.kernels.operators.concat import Concat
from fgq.kernels.operators.dynamic import NUMBERS_BYTES, Rows, bind_multiply, bind_quantize
from fgq.kernels.operators.elementwise import Add
from fgq.kernels.operators.gelu import Gelu
from fgq.kernels.operators.global_average import GlobalAveragePool
from fgq.kernels.operators.layer_norm import LayerNorm
from fgq.kernels.operators.lookup import Lookup
from fgq.kernels.operators.pooling import AveragePool, MaxPool
from fgq.kernels.operators.softmax import Softmax
from fgq.kernels.products.layer import Layer

U8, F32 = np.uint8, np.float32


def image(*shape):
    return np.zeros(shape, U8)


def real(*shape):
    return np.zeros(shape, F32)


def frozen(array):
    array.flags.writeable = False
    return array


def astray(array):
    """Return an equal array that begins at an address which is no multiple of its elements' size."""
    memory = np.zeros(array.nbytes + 1, U8)[1:]
    found = memory.view(array.dtype).reshape(array.shape)
    assert not found.flags.aligned
    return found


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (real(2, 3), r"^kernel: x: found float32\[2, 3\], wanted float32\[3, 2\]$"),
        (image(3, 2), r"^kernel: x: found uint8\[3, 2\], wanted float32\[3, 2\]$"),
        (real(2, 3).T, "one piece of memory in C order"),
        (real(3, 4)[:, :2], "one piece of memory in C order"),
        (frozen(real(3, 2)), "that may be written to"),
        (astray(real(3, 2)), "not aligned"),
    ],
)
def test_what_does_not_fit(array, message):
    with pytest.raises(KernelError, match=message):
        check("kernel", y=(None, (9,), U8), x=(array, (3, 2), F32))


@pytest.mark.parametrize("numbers", [(9, 2, 0), (0, 256, 0), (-1, 255, 0), (0, 255, 256), (0, 255, -1)])
def test_ranges_that_bytes_cannot_hold(numbers):
    with pytest.raises(KernelError, match=f"range {numbers[0]}..{numbers[1]} and zero point {numbers[2]}"):
        check_range(*numbers)


@pytest.mark.parametrize("numbers", [(0, 255, 0), (7, 7, 200), (0, 15, 255)])
def test_ranges_within_bytes(numbers):
    check_range(*numbers)


@pytest.mark.parametrize("array", [real(2, 3).T, frozen(real(3, 2)), astray(real(3, 2)), real(3, 2)])
def test_a_copy_fits(array):
    check("kernel", x=(ready(array), array.shape, F32))
    np.testing.assert_array_equal(ready(array), array)


def layer():
    planes = (Plane(np.ones((4, 8), np.int8), np.ones((4, 1), U8)),)
    return Layer(Weight(planes, np.zeros(8, np.int32)))


def bound_layer(x=None, out=None, scratch=None, residual=None):
    made = layer()
    good = image(3, 8)
    made.bind(
        good if x is None else x,
        np.zeros((3, 4), np.int32) if out is None else out,
        np.zeros(made.scratch_bytes(good), U8) if scratch is None else scratch,
        epilogue=Sums(),
        residual=residual,
    )


def multiplied(residual=None, out=None, shift=None):
    made, rows = layer(), Rows.within(image(3, 8 + NUMBERS_BYTES))
    numbers = np.zeros(4, np.int32), real(4), real(4) if shift is None else shift
    scratch = np.zeros(made.scratch_bytes(rows.activations), U8)
    bind_multiply(made, *numbers, rows, residual, real(3, 4) if out is None else out, scratch, 1)


QUANTIZERS = {"x_scale": 1.0, "x_zero": 0, "y_scale": 1.0, "y_zero": 0}
PAIR = {"scales": (1.0, 1.0, 1.0), "zeros": (0, 0, 0)}
TABLE = np.arange(256, dtype=U8)


@pytest.mark.parametrize(
    "bind",
    [
        lambda: bound_layer(x=image(3, 16)[:, ::2]),
        lambda: bound_layer(out=np.zeros((2, 4), np.int32)),
        lambda: bound_layer(out=real(3, 4)),
        lambda: bound_layer(out=np.zeros((4, 3), np.int32).T),
        lambda: bound_layer(scratch=image(8)),
        lambda: bound_layer(residual=image(3, 4)),
        lambda: multiplied(residual=real(1, 4)),
        lambda: multiplied(residual=real(3, 4).astype(np.float64)),
        lambda: multiplied(out=real(2, 4)),
        lambda: multiplied(shift=real(1)),
        lambda: bind_quantize(real(3, 8), image(2, 8 + NUMBERS_BYTES), by_row=True, threads=1),
        lambda: bind_quantize(real(3, 8), image(3, 8), by_row=False, threads=1),
        lambda: Lookup(image(5), image(4), TABLE),
        lambda: Lookup(image(5), image(10)[::2], TABLE),
        lambda: Lookup(real(5), image(5), TABLE),
        lambda: Concat([image(2, 3), image(2, 3)[:, ::-1]], image(2, 6), 1, [TABLE, TABLE]),
        lambda: Concat([image(2, 3)], real(2, 3), 1, [TABLE]),
        lambda: Add(image(2, 3), real(2, 3), image(2, 3), **PAIR),
        lambda: Add(image(3, 2).T, image(2, 3), image(2, 3), **PAIR),
        lambda: MaxPool(image(1, 4, 4, 2), image(2, 4, 4, 2), (1, 1), Window()),
        lambda: MaxPool(image(1, 4, 4, 2).transpose(0, 2, 1, 3), image(1, 4, 4, 2), (1, 1), Window()),
        lambda: MaxPool(image(1, 4, 4, 2), image(1, 4, 4, 2), (1, 1), Window(), lowest=9, highest=2),
        lambda: MaxPool(image(4, 4, 2), image(1, 4, 4, 2), (1, 1), Window()),
        lambda: AveragePool(real(1, 4, 4, 2), image(1, 4, 4, 2), (1, 1), Window(), **QUANTIZERS),
        lambda: GlobalAveragePool(image(2, 4, 4, 2), image(1, 1, 1, 4), **QUANTIZERS),
        lambda: Gelu(real(2, 3), real(3, 2)),
        lambda: Gelu(real(3, 2).T, real(2, 3)),
        lambda: Softmax(real(2, 3), real(2, 3), mask=real(2, 1)),
        lambda: Softmax(real(2, 3), real(2, 3), mask=real(2, 3).astype(np.float64)),
        lambda: LayerNorm(real(2, 3), real(2, 3), real(1), real(3), 1e-5),
    ],
)
def test_kernels_are_bound_to_what_they_read(bind):
    with pytest.raises(KernelError):
        bind()


def test_good_arrays_are_taken():
    bound_layer()
    multiplied()
    multiplied(residual=real(3, 4))


@pytest.mark.parametrize("numbers", [{"pads": (2**31, 0, 0, 0)}, {"strides": (1, 2**62)}, {"groups": 2**40}])
def test_windows_of_numbers_that_no_place_can_be_computed_from(numbers):
    with pytest.raises(KernelError, match="whole numbers of"):
        Window(**numbers)
