"""Levels against brute force over all scales and codes, and against what every row must keep."""

import itertools

import numpy as np
import pytest

from fgq.quantization.levels import best_scale, fit_rows

LIMITS = {4: 31, 7: 18}


def error(groups, codes, alpha, row_scale):
    return ((groups - codes * (alpha * row_scale[:, None])[..., None]) ** 2).sum((1, 2))


def brute_scale(group, max_code):
    """The best scale of one group: every assignment of codes that some scale makes is tried."""
    thresholds = [2 * abs(w) / (2 * level + 1) for w in group for level in range(max_code)]
    edges = sorted({0.0, *thresholds})
    middles = [(a + b) / 2 for a, b in itertools.pairwise([*edges, 2 * max(edges)])]
    best = (0.0, 0.0)
    for middle in middles:
        codes = np.clip(np.rint(group / middle), -max_code, max_code)
        if codes.any():
            scale = group @ codes / (codes @ codes)
            best = min(best, (-(group @ codes) * scale, scale))
    return best


@pytest.mark.parametrize("max_code", LIMITS)
def test_the_scale_of_a_group_is_close_to_the_best_of_all(max_code):
    rng = np.random.default_rng(max_code)
    found, least = 0.0, 0.0
    for group in rng.laplace(size=(40, 9)):
        scale = best_scale(group, max_code)
        codes = np.clip(np.rint(group / scale), -max_code, max_code)
        found += float(((group - codes * scale) ** 2).sum())
        least += group @ group + brute_scale(group, max_code)[0]
    # The grid of scales is finite, and nine weights make narrow valleys.
    assert least - 1e-9 <= found <= 1.1 * least


@pytest.mark.parametrize("max_code", LIMITS)
def test_rows_are_close_to_real_scales(max_code):
    groups = np.random.default_rng(1).standard_normal((20, 6, 64))
    codes, alpha, row_scale = fit_rows(groups, max_code, LIMITS[max_code])
    assert (np.abs(codes).max(), alpha.max()) == (max_code, LIMITS[max_code])
    real = best_scale(groups, max_code)[..., None]
    free = ((groups - np.clip(np.rint(groups / real), -max_code, max_code) * real) ** 2).sum()
    # whole alphas up to 18 cost 2.6 % of the error of INT4 rows of 64, fewer levels cost less
    assert free < error(groups, codes, alpha, row_scale).sum() < 1.05 * free


@pytest.mark.parametrize("max_code", LIMITS)
def test_what_is_on_the_grid_is_kept(max_code):
    rng = np.random.default_rng(2)
    codes = rng.integers(-max_code, max_code + 1, (4, 3, 16))
    codes[..., 0] = max_code
    alpha = rng.integers(1, LIMITS[max_code] + 1, (4, 3))
    alpha[:, 0] = LIMITS[max_code]
    groups = codes * alpha[..., None] * 0.25
    found = fit_rows(groups, max_code, LIMITS[max_code])
    assert np.array_equal(found[0], codes)
    assert np.array_equal(found[1], alpha)
    assert np.array_equal(found[2], np.full(4, 0.25))


def test_zeros_stay_zeros():
    groups = np.zeros((3, 2, 4))
    groups[1, 0] = [1, 2, 3, 4]
    codes, alpha, row_scale = fit_rows(groups, 7, 18)
    assert not codes[[0, 2]].any()
    assert not codes[1, 1].any()
    assert alpha.tolist() == [[0, 0], [alpha[1, 0], 0], [0, 0]]
    assert row_scale[0] == row_scale[2] == 0 < row_scale[1]


def test_one_weight_alone():
    codes, alpha, row_scale = fit_rows(np.array([[[-3.0]]]), 4, 31)
    assert codes.item() * alpha.item() * row_scale.item() == pytest.approx(-3, rel=1e-6)  # one float32 scale


def test_a_lower_bound_on_the_row_scale_holds():
    groups = np.random.default_rng(3).standard_normal((5, 2, 8))
    least = np.array([0.0, 1e-3, 0.1, 1.0, 50.0])
    codes, alpha, row_scale = fit_rows(groups, 7, 18, least)
    assert (row_scale >= least).all()
    assert not (codes[4] * alpha[4][:, None]).any()
