import json

import numpy as np
import onnx
import pytest

from fgq.errors import ConfigError, KernelError
from fgq.eval.bench import whole_models
from fgq.eval.bench.engines import Footprint, Runtime
from fgq.eval.bench.whole_models import Result, Trial, bench_models

GRAPH = "(float[N,16] x) => (float y) {a = MatMul(x, v) b = Relu(a) y = MatMul(b, w)}"


@pytest.fixture
def files(make_model, tmp_path):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((16, 16), np.float32) for name in "vw"}
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    onnx.save(make_model(GRAPH, weights), model)
    np.savez(data, x=rng.standard_normal((4, 16), np.float32))
    return str(model), str(data)


@pytest.fixture
def no_processes(monkeypatch):
    """Spare the processes that footprints are taken in."""
    monkeypatch.setattr(
        whole_models, "measure_footprint", lambda *args: Footprint(load_s=1.0, resident_bytes=2)
    )


def quiet(stage, done, total):
    pass


def test_every_engine_gets_a_row(files, no_processes):
    model, data = files
    stages = []
    trial = Trial(model=model, data=data, batches=(1, 3), group_sizes=(8, 4))
    result = bench_models([trial], lambda stage, done, total: stages.append(stage), quick=True)
    ours = [row for row in result.rows if row.engine == "fgq"]
    options = {tuple(row.options.values()) for row in ours}
    assert options == {(size, *way) for size in (8, 4) for way in whole_models.WISHES}
    assert len(ours) == 2 * len(options)
    theirs = {row.engine for row in result.rows} - {"fgq"}
    assert {"onnxruntime float", "onnxruntime int8", "onnxruntime dynamic int8"} <= theirs
    assert not [name for name in result.missing if "OpenVINO" not in name]
    for row in result.rows:
        assert (row.model, row.threads, row.load_s, row.resident_bytes) == ("model.onnx", 1, 1.0, 2)
        assert 0 < row.median_ms <= row.p90_ms
        assert row.throughput == pytest.approx(1e3 * row.batch / row.median_ms)
        assert row.file_bytes > 0
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert any("load" in stage for stage in stages)
    assert any("time" in stage for stage in stages)


def test_an_engine_that_fails_is_told(files, no_processes, monkeypatch):
    model, data = files
    load = whole_models.load

    def fail(engine, threads):
        if engine.runtime is Runtime.OPENVINO:
            raise RuntimeError("not today\nmore")
        return load(engine, threads)

    monkeypatch.setattr(whole_models, "load", fail)
    result = bench_models([Trial(model=model, data=data)], quiet, quick=True)
    assert result.missing["model.onnx, OpenVINO int8"] == "not today"
    assert "OpenVINO int8" not in {row.engine for row in result.rows}


def test_kernels_that_differ_are_refused(files, no_processes, monkeypatch):
    model, data = files
    load = whole_models.load

    def wrong(engine, threads):
        run = load(engine, threads)
        off = float(engine.options.get("kernels") == "dot")
        return lambda feed: [output + np.float32(off) for output in run(feed)]

    monkeypatch.setattr(whole_models, "load", wrong)
    with pytest.raises(
        KernelError, match=r"model\.onnx: found other results from fgq, N=64, dot, fast than from"
    ):
        bench_models([Trial(model=model, data=data)], quiet, quick=True)


def test_a_converted_model_has_its_groups(files, tmp_path, no_processes):
    import fgq

    _, data = files
    path = tmp_path / "ternary.onnx"
    onnx.save(fgq.convert(files[0], group_size=4, calibration=dict(np.load(data))).model, path)
    with pytest.raises(ConfigError, match=r"group size: found 8 for ternary\.onnx, which is converted"):
        bench_models([Trial(model=str(path), data=data, group_sizes=(8,))], quiet, quick=True)
    result = bench_models([Trial(model=str(path), data=data)], quiet, quick=True)
    engines = {row.engine: row for row in result.rows}
    assert "group_size" not in engines["fgq"].options
    assert {"onnxruntime float", "onnxruntime int8"} <= set(engines)


def test_of_several_models_those_without_packages_are_left_out(monkeypatch):
    def missing(model, data, folder):
        raise ConfigError("package 'x': not found")

    monkeypatch.setattr(whole_models, "open_subject", missing)
    result = bench_models(whole_models.FULL_PLAN, quiet, quick=True)
    assert set(result.missing) == {"resnet50", "minilm", "cnn"}
    with pytest.raises(ConfigError, match="package 'x'"):
        bench_models(whole_models.FULL_PLAN[:1], quiet)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("--batch", "2"),
        ("cnn", "--batch", "0"),
        ("cnn", "--batch", "1000"),
        ("cnn", "--threads", "0"),
        ("cnn", "--calibration", "nothing"),
        ("cnn", "--json", "no/such/folder/models.json"),
    ],
)
def test_wrong_input_is_refused(command, arguments):
    outcome = command("bench", "model", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


def test_it_measures_prints_and_writes(command, files, monkeypatch, tmp_path):
    monkeypatch.setattr(whole_models, "WISHES", (("auto", "fast"),))
    model, data = files
    path = tmp_path / "models.json"
    options = ("--calibration", data, "--group-size", "8", "--batch", "2", "--quick", "--json", path)
    outcome = command("bench", "model", model, *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert "fgq, N=8, auto, fast" in outcome.out
    rows = json.loads(path.read_text())["rows"]
    assert {"fgq", "onnxruntime float", "onnxruntime int8"} <= {row["engine"] for row in rows}
    assert {row["batch"] for row in rows} == {2}


def test_help_shows_the_options_and_an_example(command):
    shown = command("bench", "model", "--help")
    assert shown.code == 0
    assert "Example: fgq bench model " in shown.out
    for option in ("--calibration", "--group-size", "--batch", "--threads", "--quick", "--json"):
        assert option in shown.out
