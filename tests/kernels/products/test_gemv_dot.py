"""The dot-product kernel for few rows against the reference, with array equality."""

import numpy as np
import pytest
from engines import drive

from fgq.errors import KernelError
from fgq.kernels import Weight
from fgq.kernels.products import gemv_dot
from fgq.kernels.products.driver import aligned, plan_job
from fgq.kernels.products.epilogue import Sums
from fgq.kernels.products.gather import Geometry
from fgq.kernels.products.weights import zero_point_bias
from fgq.kernels.simd.isa import BY_NAME, available
from fgq.kernels.window import Window
from tests.kernels.layers import draw_activations, draw_bias, draw_weight, fitting_size, wanted_sums

SETS = [BY_NAME[name] for name in ("avx512vnni", "avx512", "avxvnni", "avx2") if BY_NAME[name] in available()]
FAST_SETS = SETS[:1] + SETS[2:3]
"""The others differ in the dot product alone, and compile slowly."""

KINDS = ("ternary", "tied", "two planes", "int4", "dual int4", "int8")


def by_name(isa):
    return isa.name


def run(weight, isa, x, *, compact, bias=None, x_zero=0, window=None, threads=1):
    """Return the sums of the kernel and those of the reference."""
    outputs = weight.shape[0]
    bias = np.zeros(outputs, np.int32) if bias is None else bias
    engine = gemv_dot.prepare(weight.matrices(1 if window is None else window.groups), isa, compact=compact)
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


def check(weight, isa, x, *, compact):
    engine = gemv_dot.prepare(weight.matrices(1), isa, compact=compact)
    np.testing.assert_array_equal(run_block(engine, weight, x), wanted_products(weight, x))


@pytest.mark.parametrize("isa", SETS, ids=by_name)
@pytest.mark.parametrize("kind", KINDS)
def test_int8_weights_of_every_kind(isa, kind):
    rng = np.random.default_rng(0)
    for rows in range(1, 10):
        outputs, reduction = int(rng.integers(1, 150)), int(rng.integers(1, 400))
        weight = draw_weight(rng, kind, (outputs, reduction), 64)
        check(weight, isa, draw_activations(rng, (rows, reduction), 8), compact=False)


@pytest.mark.parametrize("isa", SETS, ids=by_name)
@pytest.mark.parametrize("group_size", [4, 8, 16, 32, 64, 100])
def test_packed_ternary_weights(isa, group_size):
    if isa is not SETS[0] and group_size not in (8, 64):
        pytest.skip("differs from the best set in the dot product alone")
    rng = np.random.default_rng(group_size)
    for rows in range(1, 10):
        outputs, reduction = int(rng.integers(1, 150)), int(rng.integers(1, 700))
        weight = draw_weight(rng, "ternary", (outputs, reduction), group_size)
        check(weight, isa, draw_activations(rng, (rows, reduction), 8), compact=True)


@pytest.mark.parametrize("isa", FAST_SETS, ids=by_name)
@pytest.mark.parametrize("kind", ["tied", "two planes", "int4", "dual int4"])
def test_packed_weights_of_other_kinds(isa, kind):
    rng = np.random.default_rng(1)
    for rows in (1, 3):
        weight = draw_weight(rng, kind, (70, 333), 64)
        check(weight, isa, draw_activations(rng, (rows, 333), 8), compact=True)


@pytest.mark.parametrize("isa", FAST_SETS, ids=by_name)
@pytest.mark.parametrize("compact", [False, True])
def test_every_short_reduction(isa, compact):
    rng = np.random.default_rng(2)
    for reduction in range(1, 140):
        weight = draw_weight(rng, "ternary", (3, reduction), 64)
        check(weight, isa, draw_activations(rng, (1, reduction), 8), compact=compact)


@pytest.mark.parametrize("isa", FAST_SETS, ids=by_name)
@pytest.mark.parametrize("code", [-1, 1, -7, 7])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("reduction", [64, 66_000])
def test_extreme_values(isa, code, compact, reduction):
    codes = np.full((2, reduction), code, np.int8)
    group = (np.arange(reduction) // 64).astype(np.int32)
    alpha = np.full((2, group[-1] + 1), 127 // abs(code), np.uint8)
    x = np.full((2, reduction), 255, np.uint8)
    x[1] = 0
    check(Weight.single(codes, alpha, group), isa, x, compact=compact)


@pytest.mark.parametrize("isa", SETS[:1], ids=by_name)
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(isa, compact, groups):
    rng = np.random.default_rng(4)
    for _ in range(6):
        taps = tuple(int(n) for n in rng.integers(1, 4, 2))
        window = Window(
            strides=tuple(int(n) for n in rng.integers(1, 3, 2)),
            pads=tuple(int(n) for n in rng.integers(0, 3, 4)),
            dilations=tuple(int(n) for n in rng.integers(1, 3, 2)),
            groups=groups,
        )
        inputs = 64 if compact else int(rng.integers(1, 70))
        weight = draw_weight(rng, "ternary", (groups * int(rng.integers(1, 80)), *taps, inputs), 64)
        size = fitting_size(rng.integers(1, 6, 2), taps, window)
        x = draw_activations(rng, (2, *(int(n) for n in size), inputs * groups), 8)
        got, wanted = run(
            weight,
            isa,
            x,
            compact=compact,
            window=window,
            x_zero=7,
            threads=2,
            bias=draw_bias(rng, weight.shape[0]),
        )
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("isa", FAST_SETS, ids=by_name)
def test_what_cannot_be_packed_is_refused(isa):
    rng = np.random.default_rng(5)
    with pytest.raises(KernelError, match="multiples of 4"):
        gemv_dot.prepare(draw_weight(rng, "ternary", (8, 64), 6).matrices(1), isa, compact=True)
    with pytest.raises(KernelError, match="codes"):
        gemv_dot.prepare(draw_weight(rng, "int8", (8, 64), 64).matrices(1), isa, compact=True)


def test_processors_without_vectors_are_refused():
    weight = draw_weight(np.random.default_rng(6), "ternary", (8, 64), 64)
    with pytest.raises(KernelError, match="portable"):
        gemv_dot.prepare(weight.matrices(1), BY_NAME["portable"])
