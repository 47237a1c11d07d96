"""What is seen of a layer, and how far its means can be trusted."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.converters.float_layers import find_layers
from fgq.recipes.observation import Parts, observe_layer
from fgq.recipes.pieces import Prefix


def observed(make_model, feeds, text="(float[N,4] x) => (float y) { y = Gemm(x, w, b) }"):
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3)).astype(np.float32), "b": np.ones(3, np.float32)}
    model = ir.from_proto(make_model(text, weights))
    (layer,) = find_layers(model)
    prefixes = Prefix(model, feeds, {}), Prefix(model, feeds, {})
    return observe_layer(layer, model, layer.node, *prefixes, ())


def feeds_of(*lengths):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((length, 4)).astype(np.float32)} for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "train", "held_out"),
    [
        ((1,), 1, 0),
        ((7,), 4, 3),
        ((1, 1), 1, 1),
        ((1, 2, 3), 3, 3),
        ((2,) * 11, 18, 4),
        ((0, 5, 0, 3, 0), 5, 3),
        ((0, 5), 3, 2),
        ((0, 0), 0, 0),
    ],
)
def test_every_fifth_batch_with_rows_is_held_out(make_model, lengths, train, held_out):
    """Of fewer than five the last, and of a single one the second half."""
    found = observed(make_model, feeds_of(*lengths))
    assert (found.train.positions, found.held_out.positions) == (train, held_out)
    assert found.parts.positions.sum() == sum(lengths)
    assert [len(wanted) for wanted in found.wanted] == list(lengths)


def test_the_variance_of_a_mean_is_that_of_the_parts():
    rng = np.random.default_rng(2)
    spread, count, positions = np.array([[1.0, 2.0]]), 4000, 5
    errors = spread * rng.standard_normal((count, positions, 1, 2))
    x = rng.standard_normal((count, positions, 1, 3))
    weights = rng.standard_normal((1, 2, 3))
    y = errors + np.einsum("cmk,prck->prcm", weights, x)
    parts = Parts(np.full(count, positions, np.float64), x.sum(1), y.sum(1))
    expected = spread**2 / (count * positions)
    np.testing.assert_allclose(parts.mean_variance(weights), expected, rtol=0.1)


def test_one_part_says_nothing_of_a_mean():
    parts = Parts(np.ones(1), np.ones((1, 1, 3)), np.ones((1, 1, 2)))
    assert np.isinf(parts.mean_variance(np.ones((1, 2, 3)))).all()


def test_few_parts_are_drawn_to_what_all_outputs_have():
    """Two parts that agree by chance on one output do not make its mean certain."""
    outputs = np.array([[[1.0, 5.0]], [[1.0, -5.0]]])
    parts = Parts(np.ones(2), np.zeros((2, 1, 1)), outputs)
    certain, other = parts.mean_variance(np.ones((1, 2, 1)))[0]
    assert 0.3 * other < certain < other
