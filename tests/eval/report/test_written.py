"""The command, from two models and data to files."""

import re
import sys

import numpy as np
import onnx
import pytest

from fgq.eval import minilm
from fgq.eval.docstrings import Corpus


def test_the_command(files, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = command("report", *files[:2], "--data", files.labelled, "--limit", "20")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("wrote report.html\n")
    assert "The converted model reaches" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        f"fgq report {files.float_model} {files.converted} --data {files.labelled} -o report.html --limit 20"
        in text
    )
    assert "top-1 accuracy on 20 samples" in text


def test_pictures(files, command, tmp_path):
    pytest.importorskip("matplotlib")
    plots = tmp_path / "new" / "plots"
    outcome = command(
        "report", *files[:2], "--data", files.plain, "-o", tmp_path / "r.html", "--plots", plots
    )
    assert (outcome.code, outcome.err) == (0, "")
    names = ["histograms-01.png", "layers-01.png"]
    assert sorted(path.name for path in plots.iterdir()) == names
    for name in names:
        assert (plots / name).read_bytes().startswith(b"\x89PNG")
        assert f"wrote {plots / name}\n" in outcome.out


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra(files, command, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    output, plots = tmp_path / "r.html", tmp_path / "plots"
    outcome = command("report", *files[:2], "--data", files.plain, "-o", output, "--plots", plots)
    assert outcome.code == 2
    assert re.search(rf"found no {package}, wanted it: pip install 'fgq\[report\]'", outcome.err)
    assert list(tmp_path.iterdir()) == []


class TestRefusals:
    def refused(self, command, folder, *arguments):
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        outcome = command("report", *arguments)
        assert outcome.code == 2
        assert outcome.err.startswith("fgq: error: ")
        assert outcome.err.count("\n") == 1
        assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        return outcome.err

    @pytest.mark.parametrize("place", [0, 1, 3])
    def test_nothing_that_is_read_is_written_over(self, files, command, tmp_path, place):
        folder = files.float_model.parent
        arguments = [*files[:2], "--data", files.plain, "-o", files[place]]
        assert "found the same file as" in self.refused(command, folder, *arguments)

    def test_two_float_models(self, files, command, tmp_path):
        arguments = [files.float_model, files.float_model, "--data", files.plain, "-o", tmp_path / "r.html"]
        assert "found no quantized weight" in self.refused(command, tmp_path, *arguments)

    def test_two_converted_models(self, files, command, tmp_path):
        arguments = [files.converted, files.converted, "--data", files.plain, "-o", tmp_path / "r.html"]
        assert "found a model that fgq has converted" in self.refused(command, tmp_path, *arguments)

    def test_data_that_do_not_fit(self, files, command, tmp_path):
        np.savez(tmp_path / "x.npz", x=np.zeros((2, 4), np.float32))
        arguments = [*files[:2], "--data", tmp_path / "x.npz", "-o", tmp_path / "r.html"]
        assert "found x: float32[2, 4]" in self.refused(command, tmp_path, *arguments)

    def test_a_folder_that_is_a_file(self, files, command, tmp_path):
        pytest.importorskip("matplotlib")
        (tmp_path / "plots").write_text("")
        arguments = [
            *files[:2],
            "--data",
            files.plain,
            "-o",
            tmp_path / "r.html",
            "--plots",
            tmp_path / "plots",
        ]
        assert "plots: cannot be made (File exists)" in self.refused(command, tmp_path, *arguments)


def test_nan_in_the_float_model_is_refused(files, command, tmp_path):
    model = onnx.load(files.float_model)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Log"
    onnx.save(model, tmp_path / "log.onnx")
    arguments = [tmp_path / "log.onnx", files.converted, "--data", files.plain, "-o", tmp_path / "r.html"]
    outcome = command("report", *arguments)
    assert outcome.code == 2
    assert "NaN" in outcome.err


def test_retrieval(make_model, command, tmp_path, monkeypatch):
    """Texts have no labels; their measure is retrieval, and that of layers the relative error."""
    from fgq import convert

    vocabulary = 50

    def tokenize(texts, pad_to=None):
        length = pad_to or max(len(text) for text in texts)
        ids = np.zeros((len(texts), length), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = [ord(letter) % vocabulary for letter in text]
        return {"input_ids": ids}

    texts = [f"{name} text" for name in ("first", "second", "third", "another")]
    corpus = Corpus(calibration=tuple(texts), test=tuple((text[:5], text) for text in texts), sha256="")
    for module in ("fgq.eval.docstrings", "fgq.eval.retrieval"):
        monkeypatch.setattr(f"{module}.docstring_pairs", lambda: corpus, raising=False)
    monkeypatch.setattr(minilm, "tokenize", tokenize)
    monkeypatch.setattr("fgq.eval.retrieval.tokenize", tokenize)
    text = """(int64[N,L] input_ids) => (float y) {
        e = Gather(t, input_ids)
        m = ReduceMean<axes=[1], keepdims=0>(e)
        y = MatMul(m, w)
    }"""
    rng = np.random.default_rng(0)
    weights = {"t": rng.standard_normal((vocabulary, 16)), "w": rng.standard_normal((16, 8))}
    model = make_model(text, {name: array.astype(np.float32) for name, array in weights.items()}, opset=17)
    model.graph.node[0].name, model.graph.node[2].name = "embedding", "head"
    onnx.save(model, tmp_path / "f.onnx")
    onnx.save(convert(model, calibration=tokenize(texts)).model, tmp_path / "c.onnx")
    output = tmp_path / "r.html"
    outcome = command(
        "report", tmp_path / "f.onnx", tmp_path / "c.onnx", "--data", "docstrings", "-o", output
    )
    assert (outcome.code, outcome.err) == (0, "")
    shown = output.read_text(encoding="utf-8")
    assert "mean reciprocal rank" in shown
    assert "squared error relative to" in shown
    assert "an embedding: rows are looked up" in shown
