"""Classifiers recognised, and divergences against SciPy's."""

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from fgq.converters.passes import prepare
from fgq.format.outputs import classifier_output, divergence, relative_error

RNG = np.random.default_rng(0)
SCORES = RNG.normal(0, 4, (7, 5)).astype(np.float32)
OTHERS = (SCORES + RNG.normal(0, 1, (7, 5))).astype(np.float32)
WANTED = entropy(softmax(SCORES.astype(float), axis=1), softmax(OTHERS.astype(float), axis=1), axis=1)


def test_divergence_of_logits():
    np.testing.assert_allclose(divergence(SCORES, OTHERS), WANTED, rtol=1e-9)  # float64 on both sides


def test_divergence_of_probabilities_and_their_logarithms():
    p, q = softmax(SCORES, axis=1), softmax(OTHERS, axis=1)
    # float32 probabilities carry 6e-8 of themselves, and theirs sum to 1 only as nearly
    np.testing.assert_allclose(divergence(p, q), WANTED, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(divergence(np.log(p), np.log(q)), WANTED, rtol=1e-4, atol=1e-6)


def test_divergence_at_the_edges():
    assert (divergence(SCORES, SCORES) == 0).all()
    assert (divergence(SCORES[:, :1], OTHERS[:, :1]) == 0).all()  # one class is always right
    sure = np.array([[1, 0], [0, 1]], np.float32)
    assert np.isfinite(divergence(sure, sure[::-1])).all()
    assert divergence(SCORES[:, :, None, None], OTHERS[:, :, None, None]).shape == (7,)


def test_relative_error_adds_up_outputs_and_batches():
    exact = [
        {"a": np.array([[3.0, 4.0]]), "b": np.array([[1.0]])},
        {"a": np.zeros((1, 2)), "b": np.array([[1.0]])},
    ]
    found = [
        {"a": np.array([[3.0, 3.0]]), "b": np.array([[2.0]])},
        {"a": np.zeros((1, 2)), "b": np.array([[1.0]])},
    ]
    assert relative_error(exact, found) == 1 / 25 + 1 / 2
    assert relative_error([{"a": np.zeros(2)}], [{"a": np.ones(2)}]) == 0  # of nothing no share can be lost
    assert relative_error([{"a": np.array([1])}], [{"a": np.array([2])}]) == 0  # integers are no measure


HEADS = {
    "gemm": ("y = Gemm(x, w, b)", True),
    "matmul and bias": ("h = MatMul(x, w) y = Add(h, b)", True),
    "softmax": ("h = MatMul(x, w) g = Relu(h) y = Softmax<axis = 1>(g)", True),
    "sigmoid": ("h = MatMul(x, w) y = Sigmoid(h)", False),
    "relu": ("h = MatMul(x, w) y = Relu(h)", False),
    "normalized": ("h = MatMul(x, w) n = ReduceL2<axes = [1]>(h) y = Div(h, n)", False),
    "residual": ("h = MatMul(x, s) y = Add(h, x)", False),
    "computed product": ("t = Transpose(x) h = MatMul(x, t) y = Identity(h)", False),
}


@pytest.mark.parametrize("head", HEADS)
def test_classifiers(make_model, head):
    text, wanted = HEADS[head]
    weights = {
        "w": np.ones((4, 3), np.float32),
        "s": np.ones((4, 4), np.float32),
        "b": np.ones(3, np.float32),
    }
    model = ir.from_proto(make_model(f"(float[N,4] x) => (float y) {{ {text} }}", weights))
    prepare(model)
    assert classifier_output(model) == ("y" if wanted else None)
    assert classifier_output(model, labelled=True) == "y"


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,4,4] x) => (float y) { y = Softmax(x) }",
        "(float[N,4] x) => (float y, float z) { y = Softmax(x) z = Relu(x) }",
    ],
)
def test_labels_do_not_make_a_classifier_of_everything(make_model, text):
    model = ir.from_proto(make_model(text))
    prepare(model)
    assert classifier_output(model, labelled=True) is None
