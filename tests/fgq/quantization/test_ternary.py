"""Ternarization against all candidates in exact integers, SciPy's integrals and a plain baseline."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from fgq.quantization.ternary import best_scale, bounded_row_scale, fit_rows, ternarize

FEW = settings(deadline=None, max_examples=60)
TINY = float(np.finfo(np.float32).tiny)


def every_ternary(length):
    return np.array(list(itertools.product((-1, 0, 1), repeat=length)), np.int64)


def least_error_420(weights):
    """420 times the least squared error of whole weights over all 3^N codes, each with its own scale.

    The best scale of codes t leaves ``w.w - (w.t)^2 / t.t``, and 420 is a multiple of 1 .. 7.
    """
    codes = every_ternary(len(weights))
    size = np.maximum((codes**2).sum(1), 1)
    return int((420 * (weights @ weights) - 420 // size * (codes @ weights) ** 2).min())


def error_420(weights, codes):
    size = max(int(codes @ codes), 1)
    return int(420 * (weights @ weights) - 420 // size * (codes @ weights) ** 2)


@FEW
@given(weights=st.lists(st.integers(-9, 9), min_size=1, max_size=7).map(np.array))
def test_no_other_codes_have_a_smaller_error(weights):
    codes, scale = ternarize(weights.astype(np.float64))
    assert error_420(weights, codes.astype(np.int64)) == least_error_420(weights)
    support = np.abs(weights)[codes != 0]
    assert scale == (support.mean() if support.size else 0.0)


@FEW
@given(
    weights=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=7).map(
        lambda values: np.array(values, np.float32)
    )
)
def test_no_other_codes_have_a_smaller_error_on_floats(weights):
    exact = weights.astype(np.float64)
    codes, scale = ternarize(weights)
    candidates = every_ternary(weights.size)
    scales = (candidates @ exact) / np.maximum((candidates**2).sum(1), 1)
    errors = ((exact - scales[:, None] * candidates) ** 2).sum(1)
    # Sums of at most 7 squares in float64.
    assert ((exact - scale * codes) ** 2).sum() <= errors.min() + 1e-14 * (exact @ exact)


@FEW
@given(
    weights=st.lists(st.integers(-9, 9), min_size=1, max_size=9).map(np.array),
    power=st.sampled_from([-1040, -700, -149, -126, 0, 100, 700, 1010]),
)
def test_codes_do_not_depend_on_the_unit(weights, power):
    codes, scale = ternarize(weights.astype(np.float64))
    in_other_unit, other_scale = ternarize(np.ldexp(weights.astype(np.float64), power))
    assert np.array_equal(in_other_unit, codes)
    # Denormal numbers near 2**-1040 keep 34 bits.
    assert other_scale == pytest.approx(np.ldexp(scale, power), rel=2.0**-33, abs=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_ends_of_the_number_range(dtype):
    info = np.finfo(dtype)
    for value in (info.max, info.tiny, info.smallest_subnormal):
        codes, scale = ternarize(np.array([value, -value, 0, value], dtype))
        assert codes.tolist() == [1, -1, 0, 1]
        assert scale == float(value)


@FEW
@given(
    weights=st.lists(st.floats(-9, 9), min_size=1, max_size=12).map(np.array),
    zeros=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_padding_order_and_sign_change_nothing(weights, zeros, seed):
    codes, scale = ternarize(weights)
    padded_codes, padded_scale = ternarize(np.append(weights, np.zeros(zeros)))
    assert np.array_equal(padded_codes, np.append(codes, np.zeros(zeros)))
    assert padded_scale == scale
    order = np.random.default_rng(seed).permutation(weights.size)
    shuffled_codes, shuffled_scale = ternarize(-weights[order])
    assert np.array_equal(shuffled_codes, -codes[order])
    assert shuffled_scale == scale


def test_zeros_have_scale_and_codes_zero():
    codes, scale = ternarize(np.zeros((2, 3, 4), np.float32))
    assert (codes.shape, codes.dtype, scale.shape, scale.dtype) == ((2, 3, 4), np.int8, (2, 3), np.float64)
    assert not codes.any()
    assert not scale.any()
    assert ternarize(np.array([-0.0]))[1] == 0.0


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-45])
def test_one_weight_is_its_own_scale(value):
    codes, scale = ternarize(np.array([value]))
    assert (codes.item(), scale.item()) == (np.sign(value), abs(value))


def test_equal_errors_take_the_fewer_nonzero_codes():
    codes, scale = ternarize(np.array([3.0, 1.0, 1.0, 1.0]))  # 9/1 = 36/4
    assert codes.tolist() == [1, 0, 0, 0]
    assert scale == 3.0


def test_the_best_scale_is_the_mean_of_a_prefix():
    prefix = np.cumsum([0.0, 5.0, 4.0, 0.5], axis=-1)
    assert best_scale(prefix) == 4.5
    assert np.array_equal(best_scale(np.stack([prefix, 0 * prefix])), [4.5, 0.0])


def relative_error(groups):
    """Return the squared error over the squared weights, and the standard error of that ratio."""
    codes, scale = ternarize(groups)
    errors = ((groups - codes * scale[..., None]) ** 2).sum(-1)
    power = (groups**2).sum(-1)
    ratio = errors.sum() / power.sum()
    return ratio, np.std(errors - ratio * power) / power.mean() / np.sqrt(errors.size)


@pytest.mark.parametrize(
    ("name", "N", "wanted"),
    [
        ("standard_normal", 4, 0.101),
        ("standard_normal", 16, 0.166),
        ("standard_normal", 64, 0.184),
        ("standard_normal", 256, 0.190),
        ("laplace", 4, 0.096),
        ("laplace", 16, 0.197),
        ("laplace", 64, 0.247),
        ("laplace", 256, 0.260),
    ],
)
def test_the_relative_error_of_random_weights(name, N, wanted):
    groups = getattr(np.random.default_rng(N), name)(size=(2**19 // N, N))
    ratio, deviation = relative_error(groups)
    # Four standard errors of this sample, and as much again for the three digits of the table.
    assert ratio == pytest.approx(wanted, abs=4 * deviation + 0.001)


@pytest.mark.parametrize("distribution", [stats.norm, stats.laplace])
def test_the_error_of_long_groups_is_that_of_the_best_threshold(distribution):
    """For N without end: one threshold, over which E|w| and P(|w|) are integrals (Max, 1960)."""

    def kept_power(threshold):
        mass = 2 * distribution.sf(threshold)
        mean, _ = integrate.quad(lambda x: 2 * x * distribution.pdf(x), threshold, np.inf)
        return mean**2 / mass

    best = optimize.minimize_scalar(lambda t: -kept_power(t), bounds=(0.01, 4), method="bounded")
    limit = 1 + best.fun / distribution.var()
    groups = distribution.rvs(size=(4, 2**17), random_state=np.random.default_rng(5))
    ratio, _ = relative_error(groups)
    # The ratio of 2**19 values deviates by some 0.1 %; the optimum of a finite group lies a little lower.
    assert ratio == pytest.approx(limit, rel=0.005)


def dequantized(codes, alpha, row_scale):
    return codes * (alpha * row_scale.astype(np.float64)[:, None])[..., None]


def row_errors(groups, codes, alpha, row_scale):
    return ((groups - dequantized(codes, alpha, row_scale)) ** 2).sum((1, 2))


def round_alpha_afterwards(groups, limit):
    """The plain way: real scales first, then alpha to the nearest whole number of the largest's share."""
    codes, scale = ternarize(groups)
    row_scale = (scale.max(-1) / limit).astype(np.float32)
    unit = np.where(row_scale > 0, row_scale, 1).astype(np.float64)
    return codes, np.minimum(np.rint(scale / unit[:, None]), limit), row_scale


@pytest.mark.parametrize("name", ["standard_normal", "laplace"])
@pytest.mark.parametrize("N", [4, 64])
def test_whole_alphas_cost_less_than_a_thousandth_of_the_error(name, N):
    groups = getattr(np.random.default_rng(7), name)(size=(128, 1152 // N, N))
    codes, scale = ternarize(groups)
    least = ((groups - codes * scale[..., None]) ** 2).sum()
    found = row_errors(groups, *fit_rows(groups, 127)).sum()
    assert least <= found < 1.001 * least


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))


def weights_of(size, seed):
    """Heavy-tailed rows with groups of zeros, rows of zeros and repeated magnitudes."""
    rng = np.random.default_rng(seed)
    groups = rng.laplace(size=size) * np.exp(3 * rng.standard_normal((*size[:2], 1)))
    groups = np.where(rng.random(size) < 0.2, np.round(groups), groups)
    groups[rng.random(size[:2]) < 0.2] = 0
    return groups.astype(np.float32)


@FEW
@given(size=SIZES, limit=st.sampled_from([1, 3, 15, 63, 127]), seed=st.integers(0, 2**32 - 1))
def test_the_joint_fit_is_never_worse_than_rounding_alpha_afterwards(size, limit, seed):
    groups = weights_of(size, seed)
    fitted = row_errors(groups, *fit_rows(groups, limit))
    plain = row_errors(groups, *round_alpha_afterwards(groups, limit))
    # Float64 sums of at most 30 squares, themselves at most the squared weights.
    slack = 1e-14 * (groups.astype(np.float64) ** 2).sum((1, 2))
    assert (fitted <= plain + slack).all()


@FEW
@given(size=SIZES, limit=st.sampled_from([1, 3, 15, 63, 127]), seed=st.integers(0, 2**32 - 1))
def test_codes_are_weights_rounded_at_half_their_scale(size, limit, seed):
    groups = weights_of(size, seed)
    codes, alpha, row_scale = fit_rows(groups, limit)
    assert (codes.dtype, alpha.dtype, row_scale.dtype) == (np.int8, np.uint8, np.float32)
    assert alpha.max() <= limit
    level = alpha * row_scale.astype(np.float64)[:, None]  # exact: 7 bits times 24 bits
    kept = (np.abs(groups) >= level[..., None] / 2) & (level[..., None] > 0)
    assert np.array_equal(codes, np.sign(groups) * kept)
    assert np.array_equal(alpha == 0, ~codes.any(-1))
    assert np.array_equal(row_scale > 0, groups.any((1, 2)))


@FEW
@given(size=SIZES, seed=st.integers(0, 2**32 - 1))
def test_rows_are_fitted_alone(size, seed):
    groups = weights_of(size, seed)
    together = fit_rows(groups, 127)
    for row in range(size[0]):
        alone = fit_rows(groups[row : row + 1], 127)
        assert all(
            np.array_equal(one, all_[row : row + 1]) for one, all_ in zip(alone, together, strict=True)
        )


@pytest.mark.parametrize(("name", "N"), [("standard_normal", 4), ("laplace", 4), ("laplace", 64)])
def test_more_rounds_change_next_to_nothing(name, N, monkeypatch):
    groups = getattr(np.random.default_rng(9), name)(size=(32, 4096 // N, N))
    few = row_errors(groups, *fit_rows(groups, 127)).sum()
    monkeypatch.setattr("fgq.quantization.ternary.ROUNDS", 20)
    many = row_errors(groups, *fit_rows(groups, 127)).sum()
    assert many <= few <= (1 + 2e-5) * many


@FEW
@given(
    size=SIZES,
    limit=st.sampled_from([1, 63, 127]),
    spread=st.floats(-8, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_row_scales_keep_their_bounds(size, limit, spread, seed):
    groups = weights_of(size, seed)
    # Most of these float64 bounds lie between two float32 values.
    least = np.exp(spread + np.random.default_rng(seed).standard_normal(size[0]))
    codes, alpha, row_scale = fit_rows(groups, limit, least)
    used = groups.any((1, 2))
    assert (row_scale[used].astype(np.float64) >= least[used]).all()
    assert not row_scale[~used].any()
    plain = row_errors(groups, codes, alpha, row_scale)
    power = (groups.astype(np.float64) ** 2).sum((1, 2))
    assert (plain <= power * (1 + 1e-14)).all()  # never worse than all zeros


def test_a_bound_between_two_float32_values_goes_up():
    least = np.array([1 + 2.0**-30, 1.0, 3e-45, 0.0])
    found = bounded_row_scale(np.array([1.0, 0.5, 1e-44, 0.0]), least)
    assert found.tolist() == [1 + 2.0**-23, 1.0, TINY, 0.0]
    assert bounded_row_scale(np.array([0.0, 1e-300]), None).tolist() == [0.0, TINY]


def test_half_the_scale_maps_to_one():
    below = np.nextafter(np.float32(1), np.float32(0))
    groups = np.array([[[1.5, 1.0, -1.0, below, -below, 0.0]]], np.float32)
    codes, alpha, row_scale = fit_rows(groups, 127, np.array([2.0]))
    assert (alpha.item(), row_scale.item()) == (1, 2.0)
    assert codes.tolist() == [[[1, 1, -1, 0, 0, 0]]]


def test_groups_below_half_the_smallest_step_become_zero():
    groups = np.array([[[127.0, 127.0], [0.4, -0.4], [0.0, 0.0], [-0.6, 0.6]]])
    codes, alpha, row_scale = fit_rows(groups, 127)
    assert alpha.tolist() == [[127, 0, 0, 1]]
    assert codes.tolist() == [[[1, 1], [0, 0], [0, 0], [-1, 1]]]
    assert row_scale[0] == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("value", [1.0, -3e38, 1e-30, -1e-37])
def test_one_weight_in_one_group_in_one_row(value):
    codes, alpha, row_scale = fit_rows(np.array([[[value]]]), 127)
    found = dequantized(codes, alpha, row_scale).item()
    assert found == pytest.approx(value, rel=0.01)  # below 1e-36 alpha holds few of its bits


def test_rows_of_denormal_weights_are_lost_and_nothing_else():
    groups = np.array([[[1e-45, -1e-45]], [[1.0, -1.0]], [[0.0, 0.0]]], np.float32)
    codes, alpha, row_scale = fit_rows(groups, 127)
    assert codes.tolist() == [[[0, 0]], [[1, -1]], [[0, 0]]]
    assert alpha.tolist() == [[0], [127], [0]]
    assert row_scale.tolist() == [pytest.approx(TINY), np.float32(1 / 127), 0]
