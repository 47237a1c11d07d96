"""What both models are worth: against the accuracy module with labels, by hand without."""

import numpy as np
import onnx
import pytest

from fgq.converters.self_check import onnxruntime_session
from fgq.data.inputs import input_specs
from fgq.data.sample_files import load_samples
from fgq.eval.accuracy import top1
from fgq.eval.report.quality import measure_quality
from fgq.format import onnx_file


def silent(stage, done, total):
    """Show no progress."""


def measured(models, data, limit=None):
    samples = load_samples(data, input_specs(onnx_file.load(models[0])))
    return measure_quality(models, str(data), samples, limit, silent)


@pytest.mark.parametrize("limit", [None, 30])
def test_with_labels(files, limit):
    models = files[:2]
    samples = load_samples(files.labelled, input_specs(onnx_file.load(models[0])))
    sessions = {str(path): onnxruntime_session(path, str(path)) for path in models}
    before, after = top1(sessions, samples.first(limit or 70)).values()
    found = measured(models, files.labelled, limit)
    (measure,) = found.measures
    assert (found.samples, found.problem, measure.name) == (limit or 70, "", "top1")
    assert (measure.before, measure.after) == (before.top1, after.top1)
    assert measure.difference == after.difference


@pytest.mark.parametrize("limit", [None, 1])
def test_without_labels(files, run, limit):
    x = np.load(files.plain)["x"][:limit]
    f, c = (run(path, {"x": x})[0].astype(np.float64) for path in files[:2])
    found = measured(files[:2], files.plain, limit)
    agreement, cosine, error = found.measures
    assert (found.samples, agreement.name, cosine.name) == (len(x), "agreement", "cosine")
    assert agreement.after.value == np.mean(f.argmax(1) == c.argmax(1))
    assert agreement.before is None
    lengths = np.linalg.norm(f, axis=1), np.linalg.norm(c, axis=1)
    # onnxruntime may add in another order for batches of another size
    assert cosine.after.value == pytest.approx(((f * c).sum(1) / np.prod(lengths, 0)).mean(), rel=1e-5)
    expected = np.linalg.norm(f - c, axis=1) / lengths[0]
    assert error.after.value == pytest.approx(expected.mean(), rel=1e-3)
    assert error.after.low <= error.after.value <= error.after.high


@pytest.fixture
def pair(make_model, tmp_path):
    """Write two models of one operator each."""

    def write(first, second, x):
        paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
        for path, operator in zip(paths, (first, second), strict=True):
            onnx.save(make_model(f"(float[N,3] x) => (float y) {{ y = {operator}(x) }}"), path)
        np.savez(tmp_path / "x.npz", x=np.asarray(x, np.float32))
        return measured(paths, tmp_path / "x.npz")

    return write


def test_outputs_of_zeros_are_left_out(pair):
    found = pair("Relu", "Identity", [[-1, -1, -1], [1, 1, 1], [3, -4, 0]])
    agreement, cosine, error = found.measures
    assert agreement.after.value == 1.0
    # The second sample is equal; of the third f = (3, 0, 0) and c = (3, -4, 0).
    assert cosine.after.value == pytest.approx((1 + 3 / 5) / 2)
    assert error.after.value == pytest.approx((0 + 4 / 3) / 2)


def test_a_converted_output_of_zeros(pair):
    _, cosine, error = pair("Abs", "Relu", [[-1, -2, -3]]).measures
    assert (cosine.after.value, error.after.value) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ("Relu", "Relu", "float model: found nothing but zeros in its first output"),
        ("Identity", "Log", "b.onnx: found NaN or infinity in its first output"),
        ("Log", "Identity", "a.onnx: found NaN or infinity in its first output"),
        ("Identity", "Transpose", r"b.onnx: found a first output that has no numbers for each sample"),
        ("Identity", "Flatten<axis=0>", "b.onnx: found a first output that has no numbers for each sample"),
    ],
)
def test_problems_are_told(pair, first, second, problem):
    found = pair(first, second, [[-1, -1, -1]] * 2)
    assert problem in found.problem
    assert (found.measures, found.samples) == ((), 0)


def test_scores_that_are_no_numbers_are_a_problem(make_model, tmp_path):
    for name, operator in (("a", "Identity"), ("b", "Log")):
        onnx.save(make_model(f"(float[N,3] x) => (float y) {{ y = {operator}(x) }}"), tmp_path / name)
    np.savez(tmp_path / "x.npz", x=-np.ones((2, 3), np.float32), labels=np.array([0, 1]))
    found = measured((tmp_path / "a", tmp_path / "b"), tmp_path / "x.npz")
    assert "scores that are no numbers" in found.problem
