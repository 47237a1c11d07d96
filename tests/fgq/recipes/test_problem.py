import numpy as np
import pytest

from fgq.recipes.moments import Collector
from fgq.recipes.problem import DAMPINGS, solve


def collected(x, y):
    collector = Collector(1, y.shape[1], x.shape[1])
    collector.add(x[None].astype(np.float32), y[None].astype(np.float32))
    return collector.moments()


def inputs(R=400, K=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((R, K)) @ rng.standard_normal((K, K))


def test_without_a_drift_the_target_is_the_weights():
    x = inputs().astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((1, 4, 6))
    moments = collected(x, x @ weights[0].T)
    (problem,) = solve(weights, moments, moments)
    np.testing.assert_allclose(problem.target, weights[0], atol=1e-3)  # y was rounded to float32
    values = np.linalg.eigvalsh(problem.hessian)
    assert values.min() > 0


def test_the_target_makes_up_for_a_drift_of_the_inputs():
    """Inputs that the prefix has scaled by 1/2 want weights twice as large."""
    x = inputs()
    weights = np.random.default_rng(1).standard_normal((1, 4, 6))
    moments = collected(x / 2, x @ weights[0].T)
    (problem,) = solve(weights, moments, moments)
    assert moments.error(problem.target[None]).sum() < 0.02 * moments.error(weights).sum()
    np.testing.assert_allclose(problem.target, 2 * weights[0], rtol=0.3, atol=0.3)


@pytest.mark.parametrize("damping", DAMPINGS)
def test_the_solution_is_the_ridge_regression(damping, monkeypatch):
    monkeypatch.setattr("fgq.recipes.problem.DAMPINGS", (damping,))
    rng = np.random.default_rng(2)
    x, y, weights = inputs(), rng.standard_normal((400, 3)), rng.standard_normal((1, 3, 6))
    moments = collected(x, y)
    (problem,) = solve(weights, moments, moments)
    added = damping * (x**2).mean()
    stacked = np.concatenate([x / 20, np.sqrt(added) * np.eye(6)])  # 20 is the root of the 400 positions
    wanted = np.concatenate([y / 20, np.sqrt(added) * weights[0].T])
    expected = np.linalg.lstsq(stacked, wanted)[0].T
    np.testing.assert_allclose(problem.target, expected, atol=1e-4)


def test_held_out_data_choose_the_damping():
    """With as many inputs as positions the least damping fits noise; fresh data see that."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((1, 5, 40))
    x, fresh = rng.standard_normal((2, 45, 40)).astype(np.float32)
    noise, other = 3 * rng.standard_normal((2, 45, 5))
    train, held_out = collected(x, x @ weights[0].T + noise), collected(fresh, fresh @ weights[0].T + other)
    (fitted,) = solve(weights, train, train)
    (checked,) = solve(weights, train, held_out)
    assert held_out.error(checked.target[None]).sum() < held_out.error(fitted.target[None]).sum()


def test_dead_and_equal_inputs_keep_what_the_data_do_not_tell():
    x = inputs()
    x[:, 2] = 0
    x[:, 4] = x[:, 3]
    weights = np.random.default_rng(4).standard_normal((1, 4, 6))
    moments = collected(x, x @ weights[0].T)
    (problem,) = solve(weights, moments, moments)
    np.testing.assert_array_equal(problem.target[:, 2], weights[0, :, 2])
    np.testing.assert_allclose(problem.target, weights[0], atol=1e-4)


def test_without_any_inputs_the_weights_stay():
    weights = np.random.default_rng(5).standard_normal((2, 4, 3))
    collector = Collector(2, 4, 3)
    collector.add(np.zeros((2, 9, 3), np.float32), np.zeros((2, 9, 4), np.float32))
    moments = collector.moments()
    for problem, expected in zip(solve(weights, moments, moments), weights, strict=True):
        np.testing.assert_array_equal(problem.target, expected)
        np.testing.assert_array_equal(problem.hessian, np.eye(3))


def test_one_position_about_its_mean_leaves_the_weights():
    x = inputs(R=1).astype(np.float32)
    weights = np.random.default_rng(6).standard_normal((1, 4, 6))
    moments = collected(x, 1 + x @ weights[0].T)
    (problem,) = solve(weights, moments.centred(weights), moments.centred(weights))
    np.testing.assert_allclose(problem.target, weights[0], rtol=1e-6)
    np.testing.assert_allclose(problem.hessian, problem.hessian[0, 0] * np.eye(6), atol=1e-6)


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("kind", ["one huge input", "constant", "offset", "two equal"])
def test_no_inputs_leave_a_problem_without_a_solution(kind, size):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((64, 12))
    match kind:
        case "one huge input":
            x[:, 3] *= 1e9
        case "constant":
            x[:] = x[:1]
        case "offset":
            x += 1e6
        case _:
            x[:, 4] = x[:, 5]
    x = (x * size).astype(np.float32)
    weights = rng.standard_normal((1, 5, 12))
    moments = collected(x, x @ weights[0].T).centred(weights)
    (problem,) = solve(weights, moments, moments)
    np.linalg.cholesky(problem.hessian)
    assert 0.1 < np.diag(problem.hessian).mean() < 10
    assert np.isfinite(problem.target).all()
    assert np.linalg.norm(problem.target - weights[0]) < 0.1 * np.linalg.norm(weights)
