"""Codebooks, error feedback and descent against exhaustive search and against direct linear algebra."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fgq.quantization.scheme import Codes, WeightScheme
from fgq.recipes.codebook import Codebook
from fgq.recipes.descent import fit_row_scale, sweep
from fgq.recipes.feedback import Elimination, feed_back
from fgq.recipes.problem import Problem
from fgq.recipes.rows import Grouping, Rows, nearest

SCHEMES = {
    codes: WeightScheme(codes=codes, group_size=4) for codes in (Codes.TERNARY, Codes.TIED, Codes.INT4)
}


def hessian_of(K, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * K, K)) @ rng.standard_normal((K, K))
    return x.T @ x / len(x) + 0.1 * np.eye(K)


def problem_of(M=6, K=20, seed=0):
    return Problem(hessian=hessian_of(K, seed), target=np.random.default_rng(seed + 1).laplace(size=(M, K)))


def cost(problem, rows, grouping):
    distance = rows.weights(grouping) - problem.target
    return np.einsum("mk,kj,mj->m", distance, problem.hessian, distance)


def book(scheme):
    return Codebook(scheme.max_code, scheme.alpha_limit)


@pytest.mark.parametrize(("max_code", "N"), [(1, 3), (1, 4), (4, 2), (7, 1)])
def test_exhaustion_finds_the_best_of_all_values(max_code, N):
    codebook = Codebook(max_code, 9)
    A = hessian_of(N).astype(np.float32)
    b = (20 * np.random.default_rng(1).standard_normal((30, N))).astype(np.float32)
    codes, alpha = codebook.exhaust(b, A, codebook.patterns(N))
    q = codes * alpha[:, None]
    found = np.einsum("mn,nk,mk->m", q, A, q) - 2 * (q * b).sum(1)
    every = [
        np.array(pattern) * scale
        for pattern in itertools.product(range(-max_code, max_code + 1), repeat=N)
        for scale in range(10)
    ]
    least = np.min([value @ A @ value - 2 * b @ value for value in every], axis=0)
    np.testing.assert_allclose(found, least, rtol=1e-4, atol=1e-3)  # sums of float32 products


def test_patterns_hold_one_of_each_pair_of_opposites():
    patterns = Codebook(1, 127).patterns(4)
    assert len(patterns) == (3**4 - 1) // 2
    both = {tuple(row) for row in patterns} | {tuple(-row) for row in patterns}
    assert len(both) == 3**4 - 1
    assert Codebook(1, 127).patterns(64) is None


@pytest.mark.parametrize("N", [1, 4, 7, 20])
@pytest.mark.parametrize("codes", SCHEMES)
def test_feedback_costs_what_its_errors_add_up_to(codes, N):
    """The sum of ||e||^2 over blocks is the cost of the whole: later weights are free until their turn."""
    problem, grouping = problem_of(), Grouping(1, 20, N)
    elimination = Elimination.of(problem.hessian, grouping)
    np.testing.assert_allclose(
        elimination.factor.T
        @ elimination.factor
        @ problem.hessian[np.ix_(*[np.concatenate(elimination.places)] * 2)],
        np.eye(20),
        atol=1e-3,
    )
    scheme = replace(SCHEMES[codes], group_size=N)
    start = nearest(problem.target, scheme, grouping, None)
    rows = feed_back(problem.target, elimination, book(scheme), start.row_scale)
    assert np.abs(rows.codes).max() <= scheme.max_code
    assert rows.alpha.max() <= scheme.alpha_limit
    assert cost(problem, rows, grouping).sum() < cost(problem, start, grouping).sum()


@pytest.mark.parametrize("N", [4, 16])
@pytest.mark.parametrize("codes", SCHEMES)
@pytest.mark.parametrize("keep_codes", [False, True])
def test_descent_never_raises_the_cost(codes, N, keep_codes):
    scheme = replace(SCHEMES[codes], group_size=N)
    problem, grouping = problem_of(M=20, K=45), Grouping(3, 15, N)
    rows = nearest(problem.target, scheme, grouping, None)
    before = first = cost(problem, rows, grouping)
    for _ in range(4):
        rows = sweep(problem, grouping, book(scheme), rows, keep_codes=keep_codes)
        after = cost(problem, rows, grouping)
        assert (after <= before * (1 + 1e-4)).all()  # the slope is kept in float32
        rows = fit_row_scale(problem, grouping, rows, None)
        before = cost(problem, rows, grouping)
        assert (before <= after * (1 + 1e-6)).all()  # row scales are float32 values
    assert before.sum() < 0.95 * first.sum()


def test_alphas_converge_to_the_joint_least_squares():
    """With alpha steps too small to matter, sweeps over alphas solve the equations of all group scales."""
    problem, grouping = problem_of(M=3, K=12), Grouping(1, 12, 4)
    start = nearest(problem.target, WeightScheme(group_size=4), grouping, None)
    rows = start._replace(
        alpha=np.full_like(start.alpha, 100), row_scale=start.row_scale * start.alpha.max(1) / 100
    )
    for _ in range(60):
        rows = sweep(problem, grouping, Codebook(1, 127), rows, keep_codes=True)
    for m in range(3):
        spread = np.zeros((3, 12))
        for g, group in enumerate(grouping.slices):
            spread[g, group] = start.codes[m, group]
        scales = np.linalg.solve(
            spread @ problem.hessian @ spread.T, spread @ problem.hessian @ problem.target[m]
        )
        if (scales > 0).all() and (scales < 127 * rows.row_scale[m]).all():
            # Each alpha is within half a step of its best value given the others.
            np.testing.assert_allclose(rows.alpha[m] * rows.row_scale[m], scales, atol=3 * rows.row_scale[m])


def test_zeros_stay_zeros():
    problem = Problem(hessian=hessian_of(8), target=np.zeros((3, 8)))
    grouping, scheme = Grouping(1, 8, 4), WeightScheme(group_size=4)
    rows = nearest(problem.target, scheme, grouping, None)
    rows = feed_back(problem.target, Elimination.of(problem.hessian, grouping), book(scheme), rows.row_scale)
    rows = fit_row_scale(problem, grouping, sweep(problem, grouping, book(scheme), rows), None)
    assert not rows.codes.any()
    assert (rows.row_scale == 1).all()


def test_row_scales_keep_their_bounds():
    problem, grouping = problem_of(), Grouping(1, 20, 4)
    rows = nearest(problem.target, WeightScheme(group_size=4), grouping, None)
    least = np.full(6, 10.0)
    assert (fit_row_scale(problem, grouping, rows, least).row_scale == 10).all()
    assert (nearest(problem.target, WeightScheme(group_size=4), grouping, least).row_scale == 10).all()


def test_int8_rows_are_rounded():
    target = np.random.default_rng(0).standard_normal((4, 6))
    scheme = WeightScheme(codes=Codes.INT8)
    grouping = Grouping.of(scheme, 2, 3)
    rows = nearest(target, scheme, grouping, None)
    assert rows.alpha.tolist() == [[1]] * 4
    assert np.abs(rows.weights(grouping) - target).max() <= rows.row_scale.max() / 2 * (1 + 1e-6)


def test_rows_are_mixed():
    one, two = (
        Rows(np.full((2, 3), k, np.int8), np.full((2, 1), k, np.uint8), np.full(2, float(k))) for k in (1, 2)
    )
    mixed = one.where(np.array([False, True]), two)
    assert [field[:, 0].tolist() for field in mixed[:2]] == [[1, 2]] * 2
    assert mixed.row_scale.tolist() == [1, 2]
