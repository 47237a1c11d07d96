"""Top-1 accuracy against a plain NumPy computation."""

import numpy as np
import pytest

from fgq.data.inputs import InputSpec
from fgq.data.samples import as_samples
from fgq.errors import DataError
from fgq.eval.accuracy import BATCH, top1

SPEC = InputSpec(name="x", dtype=np.dtype(np.float32), shape=("N", 5))


class Linear:
    """Scores x @ weight; remembers the sizes of its batches."""

    def __init__(self, weight, shape=None):
        self.weight, self.shape, self.batches = weight, shape, []

    def run(self, output_names, input_feed):
        self.batches.append(len(input_feed["x"]))
        scores = input_feed["x"] @ self.weight
        return [scores if self.shape is None else scores.reshape(len(scores), *self.shape)]


class Fixed:
    """Gives the same answer to everything."""

    def __init__(self, *answer):
        self.answer = answer

    def run(self, output_names, input_feed):
        return list(self.answer)


def data(count=150, classes=4):
    rng = np.random.default_rng(count)
    return rng.standard_normal((count, 5)).astype(np.float32), rng.integers(0, classes, count)


def samples(x, labels=None, spec=SPEC):
    return as_samples({"x": x} | ({} if labels is None else {"labels": labels}), [spec])


def test_equals_numpy():
    x, labels = data()
    rng = np.random.default_rng(1)
    weights = {name: rng.standard_normal((5, 4)).astype(np.float32) for name in "abc"}
    sessions = {name: Linear(weight) for name, weight in weights.items()}
    seen = []
    found = top1(sessions, samples(x, labels), lambda *progress: seen.append(progress))
    assert list(found) == list("abc")
    hits = {name: (x @ weight).argmax(1) == labels for name, weight in weights.items()}
    for name, accuracy in found.items():
        assert accuracy.samples == 150
        assert accuracy.top1.value == hits[name].mean()
        assert accuracy.top1.low < accuracy.top1.value < accuracy.top1.high
        np.testing.assert_array_equal(accuracy.predictions, (x @ weights[name]).argmax(1))
        assert sessions[name].batches == [BATCH, BATCH, 150 - 2 * BATCH]
    assert found["a"].difference is None
    for name in "bc":
        difference = found[name].difference
        assert difference.value == pytest.approx(hits[name].mean() - hits["a"].mean(), abs=1e-12)
        assert difference.low <= difference.value <= difference.high
    assert seen[:3] == [("a", 64, 150), ("a", 128, 150), ("a", 150, 150)]


def test_the_sign_of_the_difference():
    """A model that is better than the first gains, one that is worse loses."""
    x, _ = data()
    weight = np.eye(5, 4, dtype=np.float32)
    labels = (x @ weight).argmax(1)
    worse, best = Linear(-weight), Linear(weight)
    assert top1({"worse": worse, "best": best}, samples(x, labels))["best"].difference.low > 0
    assert top1({"best": best, "worse": worse}, samples(x, labels))["worse"].difference.high < 0


def test_the_first_of_equal_scores_counts():
    x = np.zeros((6, 5), np.float32)
    (found,) = top1({"a": Linear(np.zeros((5, 4)))}, samples(x, np.array([0, 0, 1, 2, 3, 0]))).values()
    assert found.predictions.tolist() == [0] * 6
    assert found.top1.value == 0.5


def test_further_axes_of_one_are_taken_for_classes():
    x, labels = data()
    weight = np.ones((5, 4), np.float32) * np.arange(4, dtype=np.float32)
    flat, deep = (top1({"a": Linear(weight, shape)}, samples(x, labels))["a"] for shape in (None, (4, 1, 1)))
    np.testing.assert_array_equal(flat.predictions, deep.predictions)


def test_one_sample():
    (found,) = top1(
        {"a": Linear(np.eye(5, 4))}, samples(np.eye(1, 5, dtype=np.float32), np.array([0]))
    ).values()
    assert (found.samples, found.top1.value) == (1, 1.0)


def test_to_dict_is_plain():
    x, labels = data(20)
    first, second = top1({"a": Linear(np.eye(5, 4)), "b": Linear(np.eye(5, 4))}, samples(x, labels)).values()
    assert set(first.to_dict()) == {"samples", "top1", "difference"}
    assert first.to_dict()["difference"] is None
    assert second.to_dict()["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_fixed_batch_leaves_out_the_rest():
    x, labels = data(10)
    spec = InputSpec(name="x", dtype=np.dtype(np.float32), shape=(4, 5))
    session = Linear(np.eye(5, 4))
    with pytest.warns(UserWarning, match="2 of 10 samples do not fill the model's fixed batch of 4"):
        (found,) = top1({"a": session}, samples(x, labels, spec), inputs=[spec]).values()
    assert session.batches == [4, 4]
    assert found.samples == 8
    assert found.top1.value == ((x @ np.eye(5, 4)).argmax(1) == labels)[:8].mean()


@pytest.mark.parametrize(
    ("session", "found"),
    [
        (Fixed(np.zeros(6, np.float32)), r"a: found a first output of shape \[6\] for 6 samples"),
        (Fixed(np.zeros((5, 4), np.float32)), r"a: found a first output of shape \[5, 4\] for 6 samples"),
        (Fixed([{"cat": 1.0}]), "a: found a first output of list for 6 samples"),
        (Fixed(np.full((6, 4), np.nan, np.float32)), "a: found float32 scores that are no numbers"),
        (Fixed(np.full((6, 4), "cat", object)), "a: found object scores that are no numbers"),
        (Fixed(np.zeros((6, 3), np.float32)), "a: found label 3 for a model of 3 classes"),
        (Linear(np.zeros((2, 2))), r"a: cannot run on the samples \(matmul"),
    ],
)
def test_what_is_no_classifier(session, found):
    x = np.ones((6, 5), np.float32)
    with pytest.raises(DataError, match=found):
        top1({"a": session}, samples(x, np.array([0, 1, 2, 3, 0, 1])))


def test_labels_are_needed():
    with pytest.raises(DataError, match="found no labels, wanted a class for each sample"):
        top1({"a": Linear(np.eye(5, 4))}, samples(np.ones((6, 5), np.float32)))
