"""What is held out, and what is measured on it, against NumPy."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fgq.conversion.heldout import held_out, measure, set_aside
from fgq.converters.passes import prepare
from fgq.converters.self_check import onnxruntime_session
from fgq.errors import DataError
from fgq.quantization.statistics import paired_bootstrap

RNG = np.random.default_rng(0)


def batches(sizes, labelled=True):
    ends = itertools.pairwise([0, *np.cumsum(sizes)])
    return [
        ({"x": np.arange(a, b, dtype=np.float32)[:, None]}, np.arange(a, b) if labelled else None)
        for a, b in ends
    ]


def samples(parts):
    return [int(value) for feed, _ in parts for value in feed["x"][:, 0]]


@pytest.mark.parametrize("sizes", [[32] * 4, [7, 1, 1, 40], [1] * 9, [5]])
def test_every_sample_is_in_one_of_the_parts(sizes):
    kept, aside = set_aside(batches(sizes), True)
    assert sorted(samples(kept) + samples(aside)) == list(range(sum(sizes)))
    assert len(samples(aside)) == sum(sizes) // 5
    for feed, labels in [*kept, *aside]:
        assert (labels == feed["x"][:, 0]).all()
    assert samples(set_aside(batches(sizes), True)[1]) == samples(aside)


@pytest.mark.parametrize("sizes", [[1], [4], [2, 2]])
def test_too_few_are_all_kept(sizes):
    kept, aside = set_aside(batches(sizes), True)
    assert aside == []
    assert samples(kept) == list(range(sum(sizes)))


def test_whole_batches_where_these_cannot_be_cut():
    kept, aside = set_aside(batches([8] * 11, labelled=False), False)
    assert len(aside) == 2
    assert all(len(feed["x"]) == 8 for feed, _ in [*kept, *aside])
    odd = [({"x": np.ones((3, 1)), "n": np.ones((2, 3))}, None)] * 5  # no common axis of samples
    assert [len(part) for part in set_aside(odd, True)] == [4, 1]


def test_a_value_for_all_samples_stays_with_each_part():
    given = [({"x": np.arange(10.0), "gain": np.array(2.0)}, None)]
    parts = [feed for part in set_aside(given, True) for feed, _ in part]
    assert [len(feed["x"]) for feed in parts] == [8, 2]
    assert [float(feed["gain"]) for feed in parts] == [2.0, 2.0]


TEXT = "(float[N,4] x) => (float y) { y = MatMul(x, w) }"
W = RNG.standard_normal((4, 3)).astype(np.float32)
V = W + 0.5 * RNG.standard_normal((4, 3)).astype(np.float32)
X = RNG.standard_normal((90, 4)).astype(np.float32)
LABELS = (X @ W).argmax(axis=1)
LABELS[::7] = 0


@pytest.fixture
def models(make_model, tmp_path):
    def make(text=TEXT):
        model = ir.from_proto(make_model(text, {"w": W}))
        prepare(model)
        onnx.save(make_model(text, {"w": V}), tmp_path / "converted.onnx")
        return model, tmp_path / "converted.onnx"

    return make


def cut(labels):
    return [({"x": X[a : a + 40]}, None if labels is None else labels[a : a + 40]) for a in (0, 40, 80)]


def test_top1_against_labels(models):
    model, path = models()
    found = measure(onnxruntime_session(model, "model"), path, held_out(model, cut(LABELS)))
    first, second = ((X @ weights).argmax(axis=1) == LABELS for weights in (W, V))
    wanted = paired_bootstrap(first, second)
    assert (found.measure, found.samples) == ("top-1", 90)
    assert found.loss.value == pytest.approx(100 * (first.mean() - second.mean()))
    assert (found.loss.low, found.loss.high) == (100 * wanted.low, 100 * wanted.high)


def test_agreement_without_labels(models):
    model, path = models()
    found = measure(onnxruntime_session(model, "model"), path, held_out(model, cut(None)))
    moved = (X @ W).argmax(axis=1) != (X @ V).argmax(axis=1)
    assert found.measure == "top-1 agreement"
    assert found.loss.value == pytest.approx(100 * moved.mean())
    assert found.loss.low < found.loss.value < found.loss.high


def test_relative_error_of_other_networks(models):
    model, path = models("(float[N,4] x) => (float y) { h = MatMul(x, w) y = Relu(h) }")
    found = measure(onnxruntime_session(model, "model"), path, held_out(model, cut(None)))
    exact, other = (np.maximum(X @ weights, 0).astype(float) for weights in (W, V))
    assert found.measure == "relative squared error"
    assert found.samples == 90
    # products of float32 in another order
    assert found.loss.value == pytest.approx(100 * np.sum((other - exact) ** 2) / np.sum(exact**2), rel=1e-5)


def test_refusals(models):
    model, path = models()
    with pytest.raises(DataError, match="held-out data: found label 3, wanted a class of the model's 3"):
        measure(onnxruntime_session(model, "model"), path, held_out(model, cut(LABELS + 1)))
    with pytest.raises(DataError, match="held-out data: the model cannot run on them"):
        measure(onnxruntime_session(model, "model"), path, held_out(model, [({"x": X[:, :3]}, None)]))
