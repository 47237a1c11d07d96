"""The multiplication-free kernel for many rows against the reference, with array equality."""

import numpy as np
import pytest
from engines import drive, interpreted_loop

from fgq.errors import KernelError
from fgq.kernels import Plane, Weight
from fgq.kernels.products import gemm_ternary_tables
from fgq.kernels.products.driver import plan_job
from fgq.kernels.products.epilogue import Sums
from fgq.kernels.products.gather import Geometry
from fgq.kernels.products.weights import zero_point_bias
from fgq.kernels.simd.isa import BY_NAME, available
from fgq.kernels.window import Window
from tests.kernels.layers import draw_activations, draw_bias, draw_weight, fitting_size, wanted_sums

SETS = [BY_NAME[name] for name in ("avx512", "avx2") if BY_NAME[name] in available()]
on_every_set = pytest.mark.parametrize("isa", SETS, ids=lambda isa: isa.name)
with_bits = pytest.mark.parametrize("bits", [8, 4])


def check(weight, isa, x, *, bits=8, x_zero=0, bias=None, window=None, threads=1):
    """Compare the sums of the kernel with those of the reference."""
    outputs, groups = weight.shape[0], 1 if window is None else window.groups
    bias = np.zeros(outputs, np.int32) if bias is None else bias
    engine = gemm_ternary_tables.prepare(weight.matrices(groups), isa, activation_bits=bits)
    image, taps = (x[None, :, None, :], (1, 1)) if window is None else (x, weight.shape[1:3])
    geometry = Geometry.of(image.shape, taps, window or Window(), x_zero)
    out = np.full((geometry.images, *geometry.size, outputs), -1, np.int32)
    with interpreted_loop():
        job = plan_job(engine, geometry, outputs // groups, threads)
        drive(job, engine.weights, image, zero_point_bias(weight, bias, x_zero), Sums(), out)
    wanted = wanted_sums(weight, bias, x_zero, window, x)
    np.testing.assert_array_equal(out.reshape(wanted.shape), wanted)


@on_every_set
@with_bits
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 100, 300])
def test_group_sizes_and_tails(isa, bits, group_size):
    rng = np.random.default_rng(group_size)
    for most_outputs in (48, 130, 400):  # small tables, large ones, and many of them in use
        rows, reduction = int(rng.integers(1, 150)), int(rng.integers(1, 500))
        outputs = int(rng.integers(1, most_outputs))
        weight = draw_weight(rng, "ternary", (outputs, reduction), group_size)
        x = draw_activations(rng, (rows, reduction), bits)
        x_zero, bias = int(rng.integers(0, 1 << bits)), draw_bias(rng, outputs)
        check(weight, isa, x, bits=bits, x_zero=x_zero, bias=bias, threads=int(rng.integers(1, 4)))


@on_every_set
@with_bits
def test_every_short_reduction_and_number_of_rows(isa, bits):
    rng = np.random.default_rng(1)
    for length in range(1, 135):
        weight = draw_weight(rng, "ternary", (3, length), 64)
        check(weight, isa, draw_activations(rng, (length, length), bits), bits=bits)


@on_every_set
@with_bits
@pytest.mark.parametrize("kind", ["tied", "two planes"])
@pytest.mark.parametrize("group_size", [4, 64])
def test_tied_and_several_planes(isa, bits, kind, group_size):
    rng = np.random.default_rng(2)
    for outputs in (70, 300):
        weight = draw_weight(rng, kind, (outputs, 333), group_size)
        check(weight, isa, draw_activations(rng, (40, 333), bits), bits=bits, x_zero=9)


@on_every_set
@with_bits
def test_ragged_groups(isa, bits):
    rng = np.random.default_rng(3)
    for _ in range(20):
        lengths = rng.integers(1, 90, int(rng.integers(1, 12)))
        group = np.repeat(np.arange(lengths.size), lengths).astype(np.int32)
        codes = rng.integers(-1, 2, (33, group.size)).astype(np.int8)
        alpha = rng.integers(0, 128, (33, lengths.size)).astype(np.uint8)
        x = draw_activations(rng, (35, group.size), bits)
        check(Weight.single(codes, alpha, group), isa, x, bits=bits)


@on_every_set
@with_bits
@pytest.mark.parametrize("code", [-1, 1])
@pytest.mark.parametrize("group_size", [4, 64])
def test_extreme_values(isa, bits, code, group_size):
    for reduction in (64, 66_000):
        group = (np.arange(reduction) // group_size).astype(np.int32)
        codes = np.full((2, reduction), code, np.int8)
        weight = Weight.single(codes, np.full((2, group[-1] + 1), 127, np.uint8), group)
        x = np.full((2, reduction), (1 << bits) - 1, np.uint8)
        x[1] = 0
        check(weight, isa, x, bits=bits)


@on_every_set
@with_bits
def test_more_outputs_than_a_block_holds(isa, bits):
    rng = np.random.default_rng(4)
    weight = draw_weight(rng, "ternary", (2100, 100), 64)
    check(weight, isa, draw_activations(rng, (33, 100), bits), bits=bits, threads=2)


@on_every_set
@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions(isa, groups):
    rng = np.random.default_rng(5)
    for _ in range(10):
        taps = tuple(int(n) for n in rng.integers(1, 4, 2))
        window = Window(
            strides=tuple(int(n) for n in rng.integers(1, 3, 2)),
            pads=tuple(int(n) for n in rng.integers(0, 3, 4)),
            dilations=tuple(int(n) for n in rng.integers(1, 3, 2)),
            groups=groups,
        )
        inputs = int(rng.integers(1, 70))
        weight = draw_weight(rng, "ternary", (groups * int(rng.integers(1, 80)), *taps, inputs), 64)
        size = fitting_size(rng.integers(1, 9, 2), taps, window)
        x = draw_activations(rng, (2, *(int(n) for n in size), inputs * groups), 8)
        check(weight, isa, x, window=window, x_zero=7, threads=2)


@on_every_set
def test_other_codes_are_refused(isa):
    weight = draw_weight(np.random.default_rng(6), "int4", (8, 64), 64)
    with pytest.raises(KernelError, match=r"-4\.\.4"):
        gemm_ternary_tables.prepare(weight.matrices(1), isa)


def test_processors_without_vectors_are_refused():
    plane = Plane(np.ones((1, 1), np.int8), np.ones((1, 1), np.uint8))
    with pytest.raises(KernelError, match="portable"):
        gemm_ternary_tables.prepare([Weight((plane,), np.zeros(1, np.int32))], BY_NAME["portable"])
