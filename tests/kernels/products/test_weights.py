import numpy as np
import pytest
from layers import KINDS, draw_weight

from fgq.errors import KernelError
from fgq.kernels import Plane, Weight, Window
from fgq.kernels.products.weights import check_activations, check_weights, zero_point_bias


def layer(**changes):
    fields = {
        "codes": np.array([[1, 0, -1], [0, 0, 1]], np.int8),
        "alpha": np.array([[3, 5], [127, 0]], np.uint8),
        "group": np.array([0, 0, 1], np.int32),
        "bias": np.array([-7, 7], np.int32),
        "x_zero": 3,
    }
    return fields | changes


def check(codes, alpha, group, bias, x_zero, window=None):
    check_weights(Weight.single(codes, alpha, group), bias, x_zero, window)


def test_weights_are_sums_of_alpha_times_code():
    codes, alpha, group = layer()["codes"], layer()["alpha"], layer()["group"]
    weights = Weight.single(codes, alpha, group).int8()
    assert weights.dtype == np.int8
    assert weights.tolist() == [[3, 0, -5], [0, 0, 0]]
    twice = Weight((Plane(codes, alpha), Plane(-codes, np.ones_like(alpha))), group)
    assert twice.int8().tolist() == [[2, 0, -4], [0, 0, -1]]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_tied_planes_are_two_ternary_ones(kind):
    weight = draw_weight(np.random.default_rng(3), kind, (9, 40), 7)
    ternary = weight.ternary()
    assert ternary.largest_code <= 1
    np.testing.assert_array_equal(ternary.int8(), weight.int8())


def test_larger_codes_have_no_ternary_planes():
    weight = draw_weight(np.random.default_rng(3), "int4", (9, 40), 7)
    with pytest.raises(KernelError, match="found magnitudes up to 7"):
        weight.ternary()


def test_a_convolution_is_a_matrix_for_each_conv_group():
    weight = draw_weight(np.random.default_rng(3), "ternary", (6, 2, 3, 10), 4)
    first, second = weight.matrices(2)
    assert first.group.tolist() == [3 * tap + i for tap in range(6) for i in (0,) * 4 + (1,) * 4 + (2,) * 2]
    together = np.concatenate([first.int8(), second.int8()])
    np.testing.assert_array_equal(together, weight.int8().reshape(6, -1))


def test_the_zero_point_enters_the_bias_once():
    weight = draw_weight(np.random.default_rng(3), "int8", (4, 20), 20)
    bias = np.array([5, -5, 0, 1], np.int32)
    wanted = bias - 9 * weight.int8().astype(np.int32).sum(axis=1)
    np.testing.assert_array_equal(zero_point_bias(weight, bias, 9), wanted)


def test_a_layer_that_fits_passes():
    check(**layer())


def test_a_weight_without_planes_is_refused():
    with pytest.raises(KernelError, match="planes: found none"):
        check_weights(Weight((), np.zeros(3, np.int32)), np.zeros(2, np.int32), 0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((2, 3), np.int16)}, r"codes: found int16\[2, 3\]"),
        ({"codes": np.zeros((0, 3), np.int8)}, "none empty"),
        ({"codes": np.zeros((2, 3, 1), np.int8)}, r"wanted int8\[\*, \*\]"),
        ({"codes": np.full((2, 3), 2, np.int8)}, r"alpha \* code: found 0\.\.254"),
        ({"codes": np.array([[-128, 0, 0]] * 2, np.int8), "alpha": np.ones((2, 2), np.uint8)}, "found -128"),
        ({"alpha": np.zeros((2, 3), np.uint8)}, r"alpha: found uint8\[2, 3\], wanted uint8\[2, 2\]"),
        ({"alpha": np.zeros((2, 2), np.int8)}, "alpha: found int8"),
        ({"group": np.array([0, 0, 1])}, "group: found int64"),
        ({"group": np.array([0, 2, 2], np.int32)}, "group: found a gap"),
        ({"group": np.array([1, 1, 1], np.int32)}, "group: found a gap"),
        ({"group": np.array([0, 1, 0], np.int32)}, "group: found a gap or a decrease"),
        ({"bias": np.zeros(3, np.int32)}, r"bias: found int32\[3\], wanted int32\[2\]"),
        ({"bias": np.zeros(2, np.float32)}, "bias: found float32"),
        ({"x_zero": 256}, "x_zero: found 256"),
        ({"x_zero": -1}, "x_zero: found -1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(KernelError, match=message):
        check(**layer(**changes))


def test_sums_are_refused_exactly_where_they_could_leave_int32():
    # row: 127 * (x0 - 5) - 3 * (x1 - 5) + bias, at most 127 * 250 + 3 * 5 + bias
    fields = layer(
        codes=np.array([[1, -1]], np.int8),
        alpha=np.array([[127, 3]], np.uint8),
        group=np.array([0, 1], np.int32),
        x_zero=5,
    )
    highest = 2**31 - 1 - (127 * 250 + 3 * 5)
    lowest = -(2**31) + (127 * 5 + 3 * 250)
    for fits in (highest, lowest):
        check(**fields | {"bias": np.array([fits], np.int32)})
    for leaves in (highest + 1, lowest - 1):
        with pytest.raises(KernelError, match="sums"):
            check(**fields | {"bias": np.array([leaves], np.int32)})


@pytest.mark.parametrize("x_zero", [0, 255])
def test_a_reduction_of_66000_always_fits(x_zero):
    check(
        codes=np.ones((1, 66_000), np.int8),
        alpha=np.full((1, 1), 127, np.uint8),
        group=np.zeros(66_000, np.int32),
        bias=np.zeros(1, np.int32),
        x_zero=x_zero,
    )


def test_conv_groups_must_divide_the_output_channels():
    codes, alpha = np.ones((3, 1, 1, 2), np.int8), np.ones((3, 1, 1, 1), np.uint8)
    rest = np.zeros(2, np.int32), np.zeros(3, np.int32), 0
    check(codes, alpha, *rest, Window(groups=3))
    with pytest.raises(KernelError, match="wanted a multiple of 2 groups"):
        check(codes, alpha, *rest, Window(groups=2))


@pytest.mark.parametrize("x", [np.zeros((2, 3), np.int8), np.zeros((2, 4), np.uint8), np.zeros(3, np.uint8)])
def test_activations_that_do_not_fit_are_refused(x):
    with pytest.raises(KernelError, match=r"wanted uint8\[\*, 3\]"):
        check_activations(x, 2, 3)
