"""The dot-product kernels for many rows, on vectors and on tiles, against the reference: array equality."""

import numpy as np
import pytest
from engines import before_a_forbidden_page, interpreted_loop, run_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import draw_activations, draw_bias, draw_weight, fitting_size, wanted_sums

from fgq.errors import KernelError
from fgq.kernels import Weight, Window
from fgq.kernels.products import gemm_amx, gemm_dot
from fgq.kernels.products.driver import Plan
from fgq.kernels.simd.isa import BY_NAME, available

KERNELS = [
    (module, BY_NAME[name])
    for module, name in [(gemm_amx, "amx")]
    + [(gemm_dot, name) for name in ("avx512vnni", "avx512", "avxvnni", "avx2")]
    if BY_NAME[name] in available()
]


def by_name(value):
    return value[1].name


def check(kernel, weight, x, **options):
    module, isa = kernel
    bias, x_zero, window = (options.get(name) for name in ("bias", "x_zero", "window"))
    if bias is None:
        bias = np.zeros(weight.shape[0], np.int32)
    with interpreted_loop():
        acc = run_engine(module.prepare, weight, isa, x, **options)
    np.testing.assert_array_equal(acc, wanted_sums(weight, bias, x_zero or 0, window, x))


@pytest.mark.parametrize("kernel", KERNELS, ids=by_name)
@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 200),
    reduction=st.integers(1, 700),
    outputs=st.integers(1, 150),
    compact=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_matrices(kernel, rows, reduction, outputs, compact, threads, seed):
    rng = np.random.default_rng(seed)
    weight = draw_weight(rng, "ternary", (outputs, reduction), 64)
    x = draw_activations(rng, (rows, reduction), 8)
    check(kernel, weight, x, compact=compact, x_zero=128, bias=draw_bias(rng, outputs), threads=threads)


@pytest.mark.parametrize("kernel", KERNELS, ids=by_name)
@pytest.mark.parametrize("compact", [False, True])
def test_every_remainder_of_rows(kernel, compact):
    rng = np.random.default_rng(1)
    weight = draw_weight(rng, "ternary", (40, 192), 64)
    x = draw_activations(rng, (66, 192), 8)
    for rows in range(1, 67):
        check(kernel, weight, x[:rows], compact=compact)


@pytest.mark.parametrize("kernel", KERNELS, ids=by_name)
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("reduction", [1024, 1025, 1088])
def test_rows_near_and_far_from_each_other(kernel, compact, reduction):
    rng = np.random.default_rng(2)
    weight = draw_weight(rng, "ternary", (100, reduction), 64)
    for rows in (33, 160):
        check(kernel, weight, draw_activations(rng, (rows, reduction), 8), compact=compact, threads=2)


@pytest.mark.parametrize("kernel", KERNELS[:2], ids=by_name)
def test_weights_that_leave_the_cache(kernel):
    rng = np.random.default_rng(3)
    weight = draw_weight(rng, "ternary", (600, 4096), 64)
    check(kernel, weight, draw_activations(rng, (176, 4096), 8), compact=False)


@pytest.mark.parametrize("kernel", KERNELS, ids=by_name)
@settings(deadline=None, max_examples=20)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    inputs=st.sampled_from([1, 3, 4, 16, 64, 65]),
    outputs=st.integers(1, 40),
    groups=st.sampled_from([1, 1, 2, 3]),
    taps=st.sampled_from([(1, 1), (3, 3), (5, 2)]),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    compact=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_convolutions(
    kernel, size, inputs, outputs, groups, taps, strides, pads, dilations, compact, threads, seed
):
    rng = np.random.default_rng(seed)
    window = Window(strides=strides, pads=pads, dilations=dilations, groups=groups)
    weight = draw_weight(rng, "ternary", (outputs * groups, *taps, inputs), 4)
    compact = compact and inputs % 4 == 0
    x = draw_activations(rng, (2, *fitting_size(size, taps, window), inputs * groups), 8)
    check(kernel, weight, x, compact=compact, x_zero=7, window=window, threads=threads)


@pytest.mark.parametrize("kernel", KERNELS, ids=by_name)
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(kernel, compact, sign):
    length = 66_000
    group = (np.arange(length) // 64).astype(np.int32)
    weight = Weight.single(
        np.full((3, length), sign, np.int8), np.full((3, group[-1] + 1), 127, np.uint8), group
    )
    for rows in (1, 33):
        x = np.full((rows, length), 255, np.uint8)
        with interpreted_loop():
            acc = run_engine(kernel[0].prepare, weight, kernel[1], x, compact=compact)
        np.testing.assert_array_equal(acc, sign * 127 * 255 * length)


@pytest.mark.parametrize("kernel", KERNELS, ids=by_name)
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("reduction", [64, 100, 192, 1024, 1027, 1088])
def test_nothing_behind_the_input_is_read(kernel, compact, reduction):
    rng = np.random.default_rng(4)
    weight = draw_weight(rng, "ternary", (20, reduction), 64)
    for rows in (1, 15, 16, 32, 64, 65, 96, 128):
        x = before_a_forbidden_page(draw_activations(rng, (rows, reduction), 8))
        check(kernel, weight, x, compact=compact)


@pytest.mark.parametrize("kernel", KERNELS, ids=by_name)
def test_plans_keep_their_promises(kernel):
    rng = np.random.default_rng(5)
    for reduction in (1, 64, 576, 1024, 1100, 4608):
        weight = draw_weight(rng, "ternary", (1, reduction), 64)
        for compact in (False, True):
            engine = kernel[0].prepare(weight.matrices(1), kernel[1], compact=compact)
            for rows in (1, 31, 49, 196, 784, 3136):
                for outputs in (1, 64, 100, 4096):
                    plan = engine.plan(rows, outputs)
                    assert isinstance(plan, Plan)
                    assert plan.rows_step % 32 == 0
                    assert plan.outputs_step % 64 == 0
                    assert plan.rows_step < rows + 32
                    assert plan.outputs_step < outputs + 64
                    assert plan.pitch >= reduction


def test_an_instruction_set_without_vectors_is_refused():
    weight = draw_weight(np.random.default_rng(6), "ternary", (1, 4), 4)
    with pytest.raises(KernelError, match="found instruction set portable, wanted one with vectors"):
        gemm_dot.prepare(weight.matrices(1), BY_NAME["portable"])
