import itertools

import numpy as np
import pytest

from fgq.recipes.moments import Collector


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
    monkeypatch.setattr("fgq.recipes.moments._TOGETHER", together)
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
    np.testing.assert_allclose(collected(x, y).centred(weights).error(weights), residue.var(1), rtol=1e-4)


def test_one_reduction_alone():
    x, y, weights = data()
    alone = collected(x, y).of(1)
    np.testing.assert_array_equal(alone.error(weights[1:]), collected(x[1:], y[1:]).error(weights[1:]))


def test_no_positions_have_no_error():
    nothing = Collector(1, 2, 3).moments()
    assert nothing.error(np.ones((1, 2, 3))).tolist() == [[0.0, 0.0]]
    assert nothing.centred(np.ones((1, 2, 3))).mean_error(np.ones((1, 2, 3))).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_perfect_fit_has_an_error_that_is_not_negative(scale):
    x, _, weights = data()
    y = np.einsum("cmk,crk->crm", weights, x * scale).astype(np.float32)
    error = collected((x * scale).astype(np.float32), y).error(weights)
    assert (error >= 0).all()
    assert (error <= 1e-5 * (y**2).mean(1)).all()


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_a_common_offset_leaves_the_digits_of_what_varies(offset):
    x, _, weights = data()
    x = (x + np.float32(offset)).astype(np.float32)
    y = np.einsum("cmk,crk->crm", weights, x.astype(np.float64) - offset)
    expected = y.var(1)
    found = collected(x, y.astype(np.float32)).centred(weights).error(np.zeros_like(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_squares_beyond_float32_are_summed(scale):
    x, y, weights = data()
    found = collected((x * np.float32(scale)), (y * np.float32(scale)))
    expected = collected(x, y)
    np.testing.assert_allclose(found.gram, expected.gram * scale**2, rtol=1e-5)
    np.testing.assert_allclose(found.error(weights), expected.error(weights) * scale**2, rtol=1e-5)


@pytest.mark.parametrize("positions", [1, 40])
def test_inputs_that_never_vary_leave_the_float_weights_the_best(positions):
    rng = np.random.default_rng(1)
    x = np.broadcast_to(50 * rng.standard_normal((1, 1, 6)), (1, positions, 6)).astype(np.float32)
    weights = rng.standard_normal((1, 4, 6))
    moments = collected(x, (x @ weights[0].T).astype(np.float32), (0, positions))
    assert moments.is_constant
    centred = moments.centred(weights)
    exact, *others = (centred.error(scale * weights) for scale in (1.0, 0.99, 0.5, 0.01))
    for other in others:
        assert (exact < other).all()


def test_held_out_errors_are_those_with_the_bias_of_the_others():
    x, y, weights = data()
    train, held_out = collected(x[:, :30], y[:, :30], (0, 30)), collected(x[:, 30:], y[:, 30:], (0, 20))
    residue = y - np.einsum("cmk,crk->crm", weights, x)
    bias = residue[:, :30].mean(1, keepdims=True)
    expected = ((residue[:, 30:] - bias) ** 2).mean(1)
    np.testing.assert_allclose(held_out.centred(weights, at=train).error(weights), expected, rtol=1e-4)


def test_one_held_out_position_sees_an_error():
    x, y, weights = data()
    train, held_out = collected(x[:, :1], y[:, :1], (0, 1)), collected(x[:, 1:2], y[:, 1:2], (0, 1))
    assert (held_out.centred(weights, at=train).error(weights) > 1e-3).all()
    assert train.centred(weights).error(weights).max() < 1e-6
