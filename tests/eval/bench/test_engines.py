import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from fgq.data import npz
from fgq.errors import ModelError
from fgq.eval.bench import engines
from fgq.eval.bench.engines import Engine, Runtime, load, measure_footprint, resident_bytes

FGQ_OPTIONS = {"group_size": 64, "kernels": "auto", "memory": "fast"}
FEED = {"x": np.random.default_rng(0).standard_normal((2, 3), np.float32)}


@pytest.fixture
def model(make_model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(make_model("(float[2,3] x) => (float[2,3] y, float[2,3] z) {y = Relu(x) z = Tanh(x)}"), path)
    return path


def engine_of(runtime, path):
    options = FGQ_OPTIONS if runtime is Runtime.FGQ else {}
    return Engine(runtime=runtime, form="float", path=path, options=options)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("runtime", Runtime)
def test_engines_compute_every_output(model, runtime, threads):
    if runtime is Runtime.OPENVINO:
        pytest.importorskip("openvino")
    run = load(engine_of(runtime, model), threads)
    expected = ReferenceEvaluator(onnx.load(model)).run(None, FEED)
    run({"x": -FEED["x"]})
    found = run(FEED)
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, 0, 2e-6)  # a few steps of float32 at 1, for tanh


def test_names_and_labels(model):
    ours = engine_of(Runtime.FGQ, model)
    theirs = Engine(runtime=Runtime.ONNXRUNTIME, form="dynamic int8", path=model)
    assert (ours.name, str(ours)) == ("fgq", "fgq, N=64, auto, fast")
    assert theirs.name == str(theirs) == "onnxruntime dynamic int8"


def test_a_footprint_is_taken_in_a_process_of_its_own(model, tmp_path):
    npz.write_arrays(tmp_path / "feed.npz", FEED)
    found = measure_footprint(engine_of(Runtime.ONNXRUNTIME, model), 1, tmp_path / "feed.npz")
    assert found.load_s > 0
    assert found.resident_bytes is None or abs(found.resident_bytes) < 1e9


def test_a_process_that_fails_is_an_error(tmp_path):
    npz.write_arrays(tmp_path / "feed.npz", FEED)
    engine = engine_of(Runtime.ONNXRUNTIME, tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"onnxruntime float: cannot run in a process of its own \(.+\)"):
        measure_footprint(engine, 1, tmp_path / "feed.npz")


def test_a_process_that_hangs_is_an_error(model, tmp_path, monkeypatch):
    npz.write_arrays(tmp_path / "feed.npz", FEED)
    monkeypatch.setattr(engines, "_MOST_SECONDS", 0.01)
    with pytest.raises(ModelError, match=r"found no result after 0\.01 s"):
        measure_footprint(engine_of(Runtime.ONNXRUNTIME, model), 1, tmp_path / "feed.npz")


def test_memory_is_read_from_the_system(monkeypatch, tmp_path):
    told = tmp_path / "smaps_rollup"
    told.write_text("Rss:   900 kB\nPss:   300 kB\nPss_Anon:   7 kB\n")
    monkeypatch.setattr(engines, "_SMAPS", told)
    assert resident_bytes() == 300 * 1024
    monkeypatch.setattr(engines, "_SMAPS", tmp_path / "none")
    assert resident_bytes() is None
