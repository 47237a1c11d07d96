import itertools

import numpy as np
import pytest

from fgq.refine.moments import Collector


def data(C=2, R=50, K=5, M=3, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((C, R, K)) + 1).astype(np.float32)
    y = (rng.standard_normal((C, R, M)) - 2).astype(np.float32)
    return x, y, rng.standard_normal((C, M, K))


def collected(x, y, cuts=(0, 7, 8, 50)):
    collector = Collector(x.shape[0], y.shape[2], x.shape[2])
    for start, stop in itertools.pairwise(cuts):
        collector.add(x[:, start:stop], y[:, start:stop])
    return collector.moments()


@pytest.mark.parametrize("together", [1, 10, 1000])
def test_errors_are_those_of_the_data(monkeypatch, together):
    monkeypatch.setattr("fgq.refine.moments._TOGETHER", together)
    x, y, weights = data()
    moments = collected(x, y)
    residue = y - np.einsum("cmk,crk->crm", weights, x)
    assert moments.positions == 50
    # Products of a batch are summed in float32.
    np.testing.assert_allclose(moments.error(weights), (residue**2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(moments.mean_error(weights), residue.mean(1), rtol=1e-5)
    found = np.einsum("cmk,crk->crm", weights, x)
    np.testing.assert_allclose(moments.variance(weights), (found**2).mean(1), rtol=1e-5)


def test_centred_errors_are_those_with_the_best_bias():
    x, y, weights = data()
    residue = y - np.einsum("cmk,crk->crm", weights, x)
    np.testing.assert_allclose(collected(x, y).centred().error(weights), residue.var(1), rtol=1e-4)


def test_one_reduction_alone():
    x, y, weights = data()
    alone = collected(x, y).of(1)
    np.testing.assert_array_equal(alone.error(weights[1:]), collected(x[1:], y[1:]).error(weights[1:]))


def test_no_positions_have_no_error():
    nothing = Collector(1, 2, 3).moments()
    assert nothing.error(np.ones((1, 2, 3))).tolist() == [[0.0, 0.0]]
    assert nothing.centred().mean_error(np.ones((1, 2, 3))).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_perfect_fit_has_an_error_that_is_not_negative(scale):
    x, _, weights = data()
    y = np.einsum("cmk,crk->crm", weights, x * scale).astype(np.float32)
    error = collected((x * scale).astype(np.float32), y).error(weights)
    assert (error >= 0).all()
    assert (error <= 1e-5 * (y**2).mean(1)).all()
