"""What emitted code computes, against NumPy, on every instruction set of this machine."""

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

from fgq.errors import KernelError
from fgq.kernels.simd.emit import emitted, f32, i8, i16, i32
from fgq.kernels.simd.isa import available, index_of

SETS = [isa for isa in available() if isa.width]
RNG = np.random.default_rng(1)

pytestmark = pytest.mark.skipif(not SETS, reason="nothing can be emitted for this machine")


def by_name(isa):
    return isa.name


def compiled(isa, function, arguments):
    """Compile an emitted function of so many arrays and numbers."""
    emit, tier = emitted(function), index_of(isa)
    scope = {"emit": emit, "tier": tier}
    names = ", ".join(f"a{index}" for index in range(arguments))
    exec(f"def call({names}):\n    emit(tier, {names})", scope)
    return numba.njit(scope["call"])


def run(isa, function, *arrays):
    """Compile and run an emitted function on arrays and numbers."""
    compiled(isa, function, len(arrays))(*arrays)


def each_set(function):
    return pytest.mark.parametrize("isa", SETS, ids=by_name)(function)


def integers(dtype, count):
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max + 1, count).astype(dtype)


@each_set
def test_arithmetic_is_that_of_numpy(isa):
    count = isa.width // 2
    x, y = integers(np.int16, count), integers(np.int16, count)
    y[0] = 0
    out = np.zeros((9, count), np.int16)

    def function(e, x, y, out):
        a, b = e.load(x, i16), e.load(y, i16)
        results = (a + b, a - b, a * b, a & b, a | b, a ^ b, ~a, -a, (a >> 3) + (a << 2) + 5)
        for index, value in enumerate(results):
            e.store(out + index * e.isa.width, value)

    run(isa, function, x, y, out)
    wanted = [x + y, x - y, x * y, x & y, x | y, x ^ y, ~x, -x, (x >> 3) + (x << 2) + np.int16(5)]
    np.testing.assert_array_equal(out, wanted)


@each_set
def test_loops_run_as_often_as_they_say_and_masks_stop_where_they_should(isa):
    lanes = isa.width // 4
    x = np.arange(11 * lanes, dtype=np.int32)

    def function(e, x, count, out):
        total = e.variable(e.zeros(i32))
        for i in e.range(0, count):
            total += e.load(x + i * e.isa.width, i32)
        e.store(out, total)
        first = e.load_first(x, count, i32)
        with e.when(count > 0):
            e.store_first(out + e.isa.width, first, count)

    call = compiled(isa, function, 3)
    for count in (0, 1, 3, 8, 11):
        out = np.full(2 * lanes, -1, np.int32)
        call(x, count, out)
        np.testing.assert_array_equal(out[:lanes], x.reshape(11, lanes)[:count].sum(axis=0))
        here = min(count, lanes)
        np.testing.assert_array_equal(out[lanes:], np.append(x[:here], np.full(lanes - here, -1)))


@each_set
def test_dot_products_are_exact_at_the_extremes(isa):
    u, s = integers(np.uint8, isa.width), integers(np.int8, isa.width)
    u[:8], s[:8] = 255, [127, 127, 127, 127, -128, -128, -128, -128]
    total = integers(np.int32, isa.width // 4) // 4
    out = np.zeros_like(total)

    def function(e, total, u, s, out):
        e.store(out, e.dot(e.load(total, i32), e.load(u, i8), e.load(s, i8)))

    run(isa, function, total, u, s, out)
    products = u.astype(np.int32) * s
    np.testing.assert_array_equal(out, total + products.reshape(-1, 4).sum(axis=1))


@each_set
def test_pair_sums_are_exact(isa):
    x, y = integers(np.int16, isa.width // 2), integers(np.int16, isa.width // 2)
    x[:2], y[:2] = [32767, -32768], [-32768, 32767]
    out = np.zeros(isa.width // 4, np.int32)

    def function(e, x, y, out):
        e.store(out, e.pair_sums(e.load(x, i16), e.load(y, i16)))

    run(isa, function, x, y, out)
    np.testing.assert_array_equal(out, (x.astype(np.int32) * y).reshape(-1, 2).sum(axis=1))


@each_set
def test_floats_are_fused_chosen_and_narrowed_as_told(isa):
    lanes = isa.width // 4
    x, y = (RNG.normal(size=lanes).astype(np.float32) for _ in range(2))
    out = np.zeros((3, lanes), np.float32)

    def function(e, x, y, out):
        a, b = e.load(x, f32), e.load(y, f32)
        for index, value in enumerate((e.fused(a, b, a), e.smaller(a, b), e.larger(a, 0.25))):
            e.store(out + index * e.isa.width, value)

    run(isa, function, x, y, out)
    fused = (x.astype(np.float64) * y + x).astype(np.float32)  # exact in float64, then rounded once
    np.testing.assert_array_equal(out, [fused, np.minimum(x, y), np.maximum(x, np.float32(0.25))])


@each_set
def test_lanes_are_shuffled_joined_and_reread(isa):
    lanes = isa.width // 4
    x = integers(np.int32, lanes)
    out = np.zeros((2, lanes), np.int32)

    def function(e, x, out):
        value = e.load(x, i32)
        e.store(out, value.part(1, 2).joined(value.part(0, 2)))
        e.store(out + e.isa.width, value.bits_as(i16).shuffled(range(value.lanes * 2)[::-1]).bits_as(i32))

    run(isa, function, x, out)
    np.testing.assert_array_equal(out[0], np.roll(x, lanes // 2))
    np.testing.assert_array_equal(out[1], x.view(np.int16)[::-1].copy().view(np.int32))


@each_set
def test_bytes_are_looked_up_within_sixteen(isa):
    table, index = integers(np.int8, isa.width), RNG.integers(0, 16, isa.width).astype(np.uint8)
    index[0] = 200  # above 127: zero
    out = np.zeros(isa.width, np.int8)

    def function(e, table, index, out):
        e.store(out, e.permuted_in_16(e.load(table, i8), e.load(index, i8)))

    run(isa, function, table, index, out)
    wanted = np.take_along_axis(table.reshape(-1, 16), (index & 15).reshape(-1, 16), 1).reshape(-1)
    wanted[0] = 0
    np.testing.assert_array_equal(out, wanted)


def refused(isa, function):
    with pytest.raises((KernelError, TypingError)) as caught:
        run(isa, function, np.zeros(256, np.uint8))
    return str(caught.value)


def test_what_a_set_lacks_is_refused_while_compiling():
    least = SETS[-1]
    assert f"found instruction set {least.name}, wanted one with amx-int8" in refused(
        least, lambda e, x: e.tile_zero(0)
    )


def test_operands_of_two_types_are_refused():
    def function(e, x):
        e.store(x, e.load(x, i16) + e.load(x, i8))

    assert "wanted one type" in refused(SETS[0], function)
