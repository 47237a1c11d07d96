"""The multiplication-free kernel for few rows against the reference, with array equality."""

import numpy as np
import pytest
from engines import drive

from fgq.errors import KernelError
from fgq.kernels import Plane, Weight
from fgq.kernels.products import gemv_ternary_permute
from fgq.kernels.products.driver import aligned, plan_job
from fgq.kernels.products.epilogue import Sums
from fgq.kernels.products.gather import Geometry
from fgq.kernels.products.weights import zero_point_bias
from fgq.kernels.simd.isa import BY_NAME, available
from fgq.kernels.window import Window
from tests.kernels.layers import draw_activations, draw_bias, draw_weight, fitting_size, wanted_sums

SETS = [BY_NAME[name] for name in ("avx512vbmi", "avx512", "avx2") if BY_NAME[name] in available()]


def by_name(isa):
    return isa.name


def run(weight, isa, x, *, bias=None, x_zero=0, window=None, bits=8, threads=1):
    """Return the sums of the kernel and those of the reference."""
    outputs = weight.shape[0]
    bias = np.zeros(outputs, np.int32) if bias is None else bias
    matrices = weight.matrices(1 if window is None else window.groups)
    engine = gemv_ternary_permute.prepare(matrices, isa, activation_bits=bits)
    image = x[None, :, None, :] if window is None else x
    taps = (1, 1) if window is None else weight.shape[1:3]
    geometry = Geometry.of(image.shape, taps, window or Window(), x_zero)
    out = np.full((geometry.images, *geometry.size, outputs), -1, np.int32)
    folded = zero_point_bias(weight, bias, x_zero)
    groups = 1 if window is None else window.groups
    job = plan_job(engine, geometry, outputs // groups, threads)
    drive(job, engine.weights, image, folded, Sums(), out)
    wanted = wanted_sums(weight, bias, x_zero, window, x)
    return out.reshape(wanted.shape), wanted


def run_block(engine, weight, x):
    """Return the sums of the kernel's block function alone: the loop around it compiles slowly."""
    rows, outputs = len(x), weight.shape[0]
    plan = engine.plan(rows, outputs)
    panel = aligned((plan.rows_step, plan.pitch), np.uint8)
    panel.fill(x.max(initial=0))  # what lies behind K may be any activation
    work = aligned((plan.work_bytes + 64,), np.uint8)
    sums = aligned((plan.rows_step, plan.outputs_step), np.int32)
    out = np.empty((rows, outputs), np.int32)
    for begin in range(0, rows, plan.rows_step):
        some = x[begin : begin + plan.rows_step]
        panel[: len(some), : x.shape[1]] = some
        engine.stage(engine.weights, 0, panel, len(some), work)
        engine.block(engine.weights, 0, panel, len(some), 0, outputs, sums, work)
        out[begin : begin + len(some)] = sums[: len(some), :outputs]
    return out


def wanted_products(weight, x):
    """Return the sums of the reference, without zero point and bias."""
    return wanted_sums(weight, np.zeros(weight.shape[0], np.int32), 0, None, x)


@pytest.mark.parametrize("isa", SETS, ids=by_name)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 8, 9, 16, 18, 32, 33, 64, 65, 100, 300])
def test_group_sizes_rows_and_tails(isa, bits, group_size):
    if (
        isa is not SETS[0]
        and (bits == 4 or group_size < 64)
        and (isa.name, bits, group_size) != ("avx2", 4, 4)
    ):
        pytest.skip("differs from the best set in the kind of lookup alone")
    rng = np.random.default_rng(group_size)
    for rows in range(1, 10):
        outputs, reduction = int(rng.integers(1, 200)), int(rng.integers(1, 700))
        weight = draw_weight(rng, "ternary", (outputs, reduction), group_size)
        x = draw_activations(rng, (rows, reduction), bits)
        engine = gemv_ternary_permute.prepare(weight.matrices(1), isa, activation_bits=bits)
        np.testing.assert_array_equal(run_block(engine, weight, x), wanted_products(weight, x))


@pytest.mark.parametrize("isa", SETS, ids=by_name)
def test_every_short_reduction(isa):
    rng = np.random.default_rng(1)
    for reduction in range(1, 140):
        weight = draw_weight(rng, "ternary", (3, reduction), 64 if reduction > 33 else 100)
        x = draw_activations(rng, (2, reduction), 8)
        engine = gemv_ternary_permute.prepare(weight.matrices(1), isa)
        np.testing.assert_array_equal(run_block(engine, weight, x), wanted_products(weight, x))


@pytest.mark.parametrize("isa", SETS, ids=by_name)
@pytest.mark.parametrize("kind", ["tied", "two planes"])
def test_tied_and_several_planes(isa, kind):
    rng = np.random.default_rng(2)
    weight = draw_weight(rng, kind, (70, 333), 64)
    x = draw_activations(rng, (3, 333), 8)
    engine = gemv_ternary_permute.prepare(weight.matrices(1), isa)
    np.testing.assert_array_equal(run_block(engine, weight, x), wanted_products(weight, x))


@pytest.mark.parametrize("isa", SETS[:1], ids=by_name)
def test_ragged_groups(isa):
    rng = np.random.default_rng(3)
    for _ in range(20):
        lengths = rng.integers(1, 90, int(rng.integers(1, 12)))
        group = np.repeat(np.arange(lengths.size), lengths).astype(np.int32)
        codes = rng.integers(-1, 2, (33, group.size)).astype(np.int8)
        alpha = rng.integers(0, 128, (33, lengths.size)).astype(np.uint8)
        weight = Weight.single(codes, alpha, group)
        x = draw_activations(rng, (2, group.size), 8)
        engine = gemv_ternary_permute.prepare(weight.matrices(1), isa)
        np.testing.assert_array_equal(run_block(engine, weight, x), wanted_products(weight, x))


@pytest.mark.parametrize("isa", SETS, ids=by_name)
@pytest.mark.parametrize("code", [-1, 1])
@pytest.mark.parametrize("reduction", [64, 66_000])
def test_extreme_values(isa, code, reduction):
    codes = np.full((2, reduction), code, np.int8)
    group = (np.arange(reduction) // 64).astype(np.int32)
    weight = Weight.single(codes, np.full((2, group[-1] + 1), 127, np.uint8), group)
    for bits in (4, 8) if isa is SETS[0] else (8,):
        x = np.full((2, reduction), (1 << bits) - 1, np.uint8)
        x[1] = 0
        engine = gemv_ternary_permute.prepare(weight.matrices(1), isa, activation_bits=bits)
        np.testing.assert_array_equal(run_block(engine, weight, x), wanted_products(weight, x))


@pytest.mark.parametrize("isa", SETS[:1], ids=by_name)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(isa, groups):
    rng = np.random.default_rng(4)
    for _ in range(8):
        taps = tuple(int(n) for n in rng.integers(1, 4, 2))
        window = Window(
            strides=tuple(int(n) for n in rng.integers(1, 3, 2)),
            pads=tuple(int(n) for n in rng.integers(0, 3, 4)),
            dilations=tuple(int(n) for n in rng.integers(1, 3, 2)),
            groups=groups,
        )
        inputs = int(rng.integers(40, 70))
        weight = draw_weight(rng, "ternary", (groups * int(rng.integers(1, 80)), *taps, inputs), 64)
        size = fitting_size(rng.integers(1, 6, 2), taps, window)
        x = draw_activations(rng, (2, *(int(n) for n in size), inputs * groups), 8)
        got, wanted = run(
            weight, isa, x, window=window, x_zero=7, threads=2, bias=draw_bias(rng, weight.shape[0])
        )
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("isa", SETS, ids=by_name)
def test_codes_beyond_tied_planes_are_refused(isa):
    rng = np.random.default_rng(5)
    weight = draw_weight(rng, "int4", (8, 64), 64)
    with pytest.raises(KernelError, match="codes"):
        gemv_ternary_permute.prepare(weight.matrices(1), isa)


def test_other_processors_are_refused():
    plane = Plane(np.ones((1, 1), np.int8), np.ones((1, 1), np.uint8))
    with pytest.raises(KernelError, match="portable"):
        gemv_ternary_permute.prepare([Weight((plane,), np.zeros(1, np.int32))], BY_NAME["portable"])
