"""Plans on the command line: written, given back, and refused."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

TEXT = "(float[N,64] x) => (float[N,10] y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }"


@pytest.fixture(autouse=True)
def folder(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("v", (64, 96)), ("w", (96, 10)))
    }
    onnx.save(make_model(TEXT, weights), "float.onnx")
    x = rng.standard_normal((200, 64)).astype(np.float32)
    np.savez("x.npz", x=x, labels=(np.maximum(x @ weights["v"], 0) @ weights["w"]).argmax(axis=1))


CONVERT = ("convert", "float.onnx", "--calibration-data", "x.npz", "--recipe", "fgq")


def test_a_saved_plan_gives_the_same_file(command):
    done = command(*CONVERT, "-o", "one.onnx", "--target-multiplications", "0.5", "--save-plan", "plan.json")
    assert (done.code, done.err) == (0, "")
    shown = " ".join(done.out.split())
    assert "% of the multiplications" in shown
    assert "(top-1, 40 samples)" in shown
    plan = json.loads(Path("plan.json").read_text())
    assert plan["budgets"] == {"multiplications": 0.5}
    again = command(*CONVERT, "-o", "two.onnx", "--plan", "plan.json", "--save-plan", "again.json")
    assert (again.code, again.err) == (0, "")
    assert Path("two.onnx").read_bytes() == Path("one.onnx").read_bytes()
    assert json.loads(Path("again.json").read_text()) == plan


def test_an_impossible_drop_writes_nothing(command):
    before = sorted(os.listdir())
    done = command(
        *CONVERT, "-o", "out.onnx", "--max-drop", "0", "--target-bits", "3", "--save-plan", "plan.json"
    )
    assert (done.code, done.out) == (2, "")
    assert "fgq: error: max drop: found a loss of" in done.err
    assert sorted(os.listdir()) == before


def test_held_out_data(command):
    done = command(*CONVERT, "-o", "out.onnx", "--held-out-data", "x.npz", "--json")
    assert json.loads(done.out)["held_out"]["samples"] == 200
    assert json.loads(done.out)["plan"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plan", "missing.json"), "missing.json: cannot be read"),
        (("--plan", "x.npz"), "x.npz: cannot be read (it is not UTF-8 text)"),
        (("--save-plan", "plan.json"), "--save-plan: found no plan to save"),
        (("--plan", "x.npz", "--dry-run"), "--dry-run: found --plan or --save-plan with it"),
        (("--target-bits", "3", "--save-plan", "out.onnx"), "out.onnx: found the same file as out.onnx"),
        (("--target-bits", "3", "--save-plan", "x.npz"), "x.npz: found the same file as x.npz"),
        (("--target-bits", "3", "--save-plan", "none/plan.json"), "none/plan.json: found no folder 'none'"),
    ],
    ids=["missing", "no JSON", "no plan", "dry run", "the output", "the data", "no folder"],
)
def test_refusals(command, arguments, message):
    before = sorted(os.listdir())
    done = command(*CONVERT, "-o", "out.onnx", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert sorted(os.listdir()) == before
