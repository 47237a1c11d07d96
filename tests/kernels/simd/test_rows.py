"""Going over rows in memory, on every instruction set of this machine."""

import numba
import numpy as np
import pytest

from fgq.kernels.simd.emit import emitted, f32, i8, i32
from fgq.kernels.simd.isa import available, index_of
from fgq.kernels.simd.rows import each_vector, load, store, store_activations

SETS = [isa for isa in available() if isa.name in ("avx512", "avx2")]
GUARD = 99

pytestmark = pytest.mark.skipif(not SETS, reason="nothing can be emitted for this machine")


def compiled(isa, function):
    """Compile an emitted function of a size and three arrays."""
    emit, tier = emitted(function), index_of(isa)

    def call(size, x, y, out):
        emit(tier, size, x, y, out)

    return numba.njit(call)


@pytest.mark.parametrize("isa", SETS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("element", "dtype"), [(f32, np.float32), (i8, np.int8)], ids=["f32", "i8"])
@pytest.mark.parametrize("together", [1, 2, 4])
def test_every_element_is_taken_once_and_nothing_else(isa, element, dtype, together):
    """Sums of two rows are added to what is there: an element taken twice would show, as would one beyond."""
    bytes_each = np.dtype(dtype).itemsize

    def function(e, size, x, y, out):
        lanes = e.isa.width // bytes_each

        def do(k, vectors, count):
            for at in [(k + v * lanes) * bytes_each for v in range(vectors)]:
                one, other = (load(e, row + at, count, element, lanes) for row in (x, y))
                store(e, out + at, load(e, out + at, count, element, lanes) + one + other, count)

        each_vector(e, size, lanes, do, together=together)

    call, lanes = compiled(isa, function), isa.width // bytes_each
    rng = np.random.default_rng(together)
    for size in (0, 1, lanes - 1, lanes, lanes + 1, together * lanes, together * lanes + 1, 7 * lanes + 3):
        x, y = (rng.integers(-20, 20, size + lanes).astype(dtype) for _ in range(2))
        out = np.full(size + lanes, GUARD, dtype)
        out[:size] = 1
        call(size, x, y, out)
        np.testing.assert_array_equal(out[:size], (1 + x + y)[:size])
        np.testing.assert_array_equal(out[size:], GUARD)


@pytest.mark.parametrize("isa", SETS, ids=lambda isa: isa.name)
def test_lanes_that_are_not_there_are_zeros(isa):
    def function(e, size, x, _, out):
        e.store(out, load(e, x, size, f32))

    call, lanes = compiled(isa, function), isa.width // 4
    x = np.arange(1, lanes + 1, dtype=np.float32)
    for count in range(lanes):
        out = np.full(lanes, GUARD, np.float32)
        call(count, x, x, out)
        np.testing.assert_array_equal(out, np.where(np.arange(lanes) < count, x, 0))


@pytest.mark.parametrize("isa", SETS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("together", [1, 4])
def test_activations_are_stored_as_bytes(isa, together):
    def function(e, size, x, _, out):
        lanes = e.lanes(i32)

        def do(k, vectors, count):
            values = [load(e, x + (k + v * lanes) * 4, count, i32) for v in range(vectors)]
            store_activations(e, out + k, values, count)

        each_vector(e, size, lanes, do, together=together)

    call, lanes = compiled(isa, function), isa.width // 4
    x = np.random.default_rng(0).integers(0, 256, 12 * lanes, dtype=np.int32)
    for size in (0, 1, lanes, 4 * lanes, 11 * lanes + 3):
        out = np.full(x.size, GUARD, np.uint8)
        call(size, x, x, out)
        np.testing.assert_array_equal(out, np.where(np.arange(x.size) < size, x, GUARD))
