"""Quantized sums and products against those of onnxruntime, byte for byte."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from quantized_models import run_quantized

from fgq.errors import KernelError
from fgq.kernels.operators import elementwise
from fgq.kernels.operators.elementwise import Add, Multiply
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]
OPERATORS = [("Add", Add), ("Mul", Multiply)]

EVERY_PAIR = [half.astype(np.uint8) for half in np.meshgrid(np.arange(256), np.arange(256), indexing="ij")]

# one factor a power of two makes ties; the others make sums whose rounding depends on their order
SCALES = [(0.25, 0.5, 0.5), (1.0, 0.125, 2.0), (0.021, 0.034, 0.027), (0.0625, 0.9375, 1.0), (0.7, 0.11, 0.4)]
ZEROS = [(0, 0, 0), (3, 250, 128), (255, 1, 77)]


@pytest.fixture(params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    monkeypatch.setattr(elementwise, "available", lambda: (request.param,))


def compute(operator, a, b, shape, **options):
    y = np.full(shape, 99, np.uint8)
    call = operator(a, b, y, **options)
    call()
    first = y.copy()
    call()
    np.testing.assert_array_equal(y, first)
    return y


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize(("op_type", "operator"), OPERATORS)
@pytest.mark.parametrize("scales", SCALES)
def test_every_pair_of_activations(op_type, operator, scales):
    a, b = EVERY_PAIR
    for zeros in ZEROS:
        inputs = [(a, scales[0], zeros[0]), (b, scales[1], zeros[1])]
        options = {"scales": scales, "zeros": zeros}
        wanted = run_quantized(op_type, inputs, (scales[2], zeros[2]))
        for threads in (1, 3):
            np.testing.assert_array_equal(
                compute(operator, a, b, a.shape, **options, threads=threads), wanted
            )
        wanted = run_quantized(op_type, inputs, (scales[2], zeros[2]), after=[("Relu", [])])
        found = compute(operator, a, b, a.shape, **options, lowest=zeros[2], fused=zeros[2] == 0)
        np.testing.assert_array_equal(found, wanted)
    # a Clip between integers leaves the operator fused
    found = compute(operator, a, b, a.shape, **options, lowest=5, highest=15)
    np.testing.assert_array_equal(found, np.clip(compute(operator, a, b, a.shape, **options), 5, 15))


def test_a_clip_of_real_values_is_one_of_integers():
    a, b = EVERY_PAIR
    clip = [("Clip", [np.float32(-1), np.float32(2)])]
    for op_type, operator in OPERATORS:
        inputs = [(a, 0.031, 100), (b, 0.022, 7)]
        wanted = run_quantized(op_type, inputs, (0.025, 60), after=clip)
        options = {"scales": (0.031, 0.022, 0.025), "zeros": (100, 7, 60), "fused": False}
        found = compute(operator, a, b, a.shape, **options, lowest=20, highest=140)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize(("op_type", "operator"), OPERATORS)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), (1,)), ((0,), (0,)), ((2, 0, 3), (2, 0, 3)), ((7,), (7,)), ((4097,), (4097,)), ((7,), (1,)),
        ((2, 5, 7, 30), (2, 1, 1, 30)), ((2, 5, 7, 30), (1, 1, 1, 30)), ((2, 5, 7, 300), (2, 1, 1, 300)),
        ((2, 5, 7, 1), (2, 1, 1, 1)), ((2, 40, 30, 3), (2, 1, 1, 3)), ((2, 6, 5), (5,)), ((3, 5), (3, 5)),
        ((2, 6, 500), (500,)), ((2, 70, 130), ()), ((2, 3), (1, 1)), ((3, 300), (1, 300)), ((0, 3), (1, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_operands_of_other_shapes(op_type, operator, one, other):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, shape).astype(np.uint8) for shape in (one, other))
    scales, zeros = (0.021, 0.034, 0.027), (3, 250, 128)
    wanted = np.zeros(one, np.uint8)
    if wanted.size:
        wanted = run_quantized(
            op_type, [(a, scales[0], zeros[0]), (b, scales[1], zeros[1])], (scales[2], zeros[2])
        )
    found = compute(operator, guarded(a), guarded(b), one, scales=scales, zeros=zeros)
    np.testing.assert_array_equal(found, wanted)
    threaded = compute(operator, a, b, one, scales=scales, zeros=zeros, threads=4)
    np.testing.assert_array_equal(threaded, wanted)
    # the repeated operand may come first: the caller says in which order they count
    swapped = {"scales": (0.034, 0.021, 0.027), "zeros": (250, 3, 128)}
    full = np.broadcast_to(b, one).copy()
    np.testing.assert_array_equal(
        compute(operator, b, a, one, **swapped), compute(operator, full, a, one, **swapped)
    )


def test_onnxruntime_takes_a_number_for_the_second_operand():
    grid = EVERY_PAIR[1]
    numbers = EVERY_PAIR[0][:, :1].copy()
    scales, zeros = (0.9375, 0.0625, 1.0), (100, 3, 20)
    inputs = [(numbers, scales[0], zeros[0]), (grid, scales[1], zeros[1])]
    wanted = run_quantized("Add", inputs, (scales[2], zeros[2]))
    full = np.ascontiguousarray(np.broadcast_to(numbers, grid.shape))
    swapped = {"scales": (scales[1], scales[0], scales[2]), "zeros": (zeros[1], zeros[0], zeros[2])}
    np.testing.assert_array_equal(compute(Add, grid, full, grid.shape, **swapped), wanted)


@pytest.mark.parametrize(("op_type", "operator"), OPERATORS)
@pytest.mark.parametrize("scales", [(1e-3, 1e-3, 1e3), (1e3, 1e2, 1e2), (1e-30, 1e-4, 1e-4)])
def test_extreme_scales(op_type, operator, scales):
    a, b = EVERY_PAIR
    wanted = run_quantized(op_type, [(a, scales[0], 9), (b, scales[1], 40)], (scales[2], 128))
    found = compute(operator, a, b, a.shape, scales=scales, zeros=(9, 40, 128))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("operator", [Add, Multiply])
@pytest.mark.parametrize("fused", [True, False])
def test_what_no_int32_holds_is_clipped_all_the_same(operator, fused):
    # to onnxruntime such numbers are the lowest int32
    a, b = EVERY_PAIR
    found = compute(operator, a, b, a.shape, scales=(1e3, 1e3, 1e-8), zeros=(9, 9, 9), lowest=3, fused=fused)
    one, other = a.astype(int) - 9, b.astype(int) - 9
    sign = one + other if operator is Add else one * other
    clear = (np.abs(one) != np.abs(other)) | (operator is Multiply)  # elsewhere sums cancel but for rounding
    np.testing.assert_array_equal(found[clear], np.choose(np.sign(sign[clear]) + 1, [3, 9, 255]))


def test_a_result_may_take_the_place_of_an_operand():
    a, b = (half.copy() for half in EVERY_PAIR)
    options = {"scales": SCALES[2], "zeros": ZEROS[1]}
    wanted = compute(Add, a, b, a.shape, **options)
    Add(a, b, a, **options)()
    np.testing.assert_array_equal(a, wanted)


def test_arguments_that_do_not_fit_are_refused():
    y = np.zeros((2, 3, 4), np.uint8)
    options = {"scales": (1, 1, 1), "zeros": (0, 0, 0)}
    for one, other in (
        ((2, 3, 4), (2, 3, 1)),
        ((2, 3, 4), (2, 1, 1)),
        ((1, 1, 4), (1, 1, 4)),
        ((2, 3, 4), (3, 4)),
    ):
        with pytest.raises(
            KernelError, match=r"operands: found .* for a result \[2, 3, 4\], wanted its shape"
        ):
            Add(np.zeros(one, np.uint8), np.zeros(other, np.uint8), y, **options)
    with pytest.raises(KernelError, match="scale: found 0, wanted a positive number"):
        Add(y, y, y, scales=(0, 1, 1), zeros=(0, 0, 0))
    with pytest.raises(KernelError, match=r"scales: found .* wanted such whose quotients are float32"):
        Multiply(y, y, y, scales=(1e20, 1e18, 1e-20), zeros=(0, 0, 0))
    with pytest.raises(KernelError, match="zero point 256"):
        Multiply(y, y, y, scales=(1, 1, 1), zeros=(0, 256, 0))
