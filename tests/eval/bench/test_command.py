import json

import pytest

from fgq.eval.bench import shapes
from fgq.eval.bench.shapes import MatMul


def test_help_shows_the_options_and_an_example(command):
    assert "kernels" in command("bench", "--help").out
    shown = command("bench", "kernels", "--help")
    assert shown.code == 0
    assert "Example: fgq bench kernels " in shown.out
    for option in ("--shapes", "--threads", "--group-size", "--activations", "--kernel", "--json", "--quick"):
        assert option in shown.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--shapes", "vgg"),
        ("--threads", "0"),
        ("--group-size", "-4"),
        ("--activations", "int2"),
        ("--kernel", "reference"),
        ("--json", "no/such/folder/bench.json"),
        ("4096",),
    ],
)
def test_wrong_input_is_refused(command, arguments):
    outcome = command("bench", "kernels", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


def test_it_measures_prints_and_writes(command, monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "LLM", (MatMul(rows=2, inputs=128, outputs=64),))
    path = tmp_path / "bench.json"
    options = ("--shapes", "llm", "--group-size", "64", "--kernel", "dot", "--quick", "--json", path)
    outcome = command("bench", "kernels", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert "2x128x64" in outcome.out
    assert "onnxruntime" in outcome.out
    rows = json.loads(path.read_text())["rows"]
    assert {(row["shape"], row["wish"]) for row in rows} == {("2x128x64", "dot")}
