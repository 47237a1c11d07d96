from pathlib import Path

import pytest

from fgq.data.array_checks import LABELS
from fgq.data.inputs import input_specs
from fgq.data.samples import Samples, as_samples
from fgq.errors import DataError
from fgq.eval import characters, tables
from fgq.eval.datasets import open_dataset
from fgq.format.onnx_file import load

CONFIGS = tables.CONFIGS[:1]
"""The paper's recipe at N=4 with 8-bit activations."""


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def silent(stage: str, done: int, total: int | None) -> None:
    pass


def few(data: str, model: Path) -> Samples:
    return open_dataset(data, model, "calibration").first(64)


def test_tables_of_the_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "calibration_data", few)
    converted = tables.convert_all(characters.MODEL, CONFIGS, "characters", tmp_path, silent)
    split = characters.load("test")
    arrays = {"image": split.images[:256], LABELS: split.labels[:256]}
    samples = as_samples(arrays, input_specs(load(characters.MODEL)))

    table, count = tables.characters_table(converted, samples, silent).split("\n\n")
    assert count == "256 images."
    columns, rule, exact, row = cells(table)
    assert columns == [*tables.DESCRIPTION, "top-1", "less float"]
    assert set(rule[1:]) == {"---:"}
    assert exact[:4] == ["", "float", "float", "32"]
    assert row[:3] == ["fgq", "ternary N=4", "int8"]
    # 1.6 + 8/4 bits, and a little for row scales and the 8-bit layers.
    assert 3.6 < float(row[3]) < 4.0
    assert float(row[4]) < float(exact[4].replace(",", "")) / 7
    assert float(row[5].removesuffix(" %")) == pytest.approx(75, abs=1)
    difference = float(row[7].split(" ")[0])
    assert float(row[6].split(" ")[0]) - float(exact[6].split(" ")[0]) == pytest.approx(difference, abs=0.011)
    assert -5 < difference < 2

    _, _, row = cells(tables.engines_table(converted, samples, silent))
    assert row[3] == row[4]
    assert row[5] == "0 of 256"

    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    assert tables.convert_all(characters.MODEL, CONFIGS, "characters", tmp_path, silent)[0].path == path
    assert path.stat().st_mtime_ns == before  # what is there is taken


def test_unknown_tables_and_documents_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'other': not known"):
        tables.main(tmp_path / "accuracy.md", tables=["other"])
    with pytest.raises(DataError, match="no such file"):
        tables.main(tmp_path / "accuracy.md")
    (tmp_path / "accuracy.md").write_text("nothing")
    with pytest.raises(DataError, match="no place for the table"):
        tables.main(tmp_path / "accuracy.md")
    assert (tmp_path / "accuracy.md").read_text() == "nothing"
