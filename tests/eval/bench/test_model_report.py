import json
from dataclasses import replace
from pathlib import Path

import pytest

from fgq.cli.display import as_json
from fgq.errors import DataError
from fgq.eval.bench import model_report
from fgq.eval.bench.baselines import FLOAT, OPENVINO
from fgq.eval.bench.kernels import WISHES
from fgq.eval.bench.model_claims import DYNAMIC, INT8, claims
from fgq.eval.bench.report import DISTURBED
from fgq.eval.bench.whole_models import Result, Row

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmarks-models.md"


def row(model, engine, ms, *, batch=1, threads=1, busy=False, **options):
    return Row(
        model=model, engine=engine, options=options, batch=batch, threads=threads, median_ms=ms,
        p90_ms=1.5 * ms, throughput=1e3 * batch / ms, load_s=0.25, resident_bytes=5_000_000,
        file_bytes=2_500_000, busy=busy,
    )  # fmt: skip


def rows_of(model, *, batch=1, threads=1, group_sizes=(64,)):
    """Return rows in which auto, fast, takes 2 ms at N=64, and the others of fgq longer."""
    ours = [
        row(
            model, "fgq", 2.0 + number + 64 / size - 1, batch=batch, threads=threads,
            group_size=size, kernels=kernels, memory=memory,
        )
        for size in group_sizes
        for number, (kernels, memory) in enumerate(sorted(WISHES, key=lambda way: way != ("auto", "fast")))
    ]  # fmt: skip
    theirs = {FLOAT: 12.0, INT8: 3.0, OPENVINO: 1.0}
    return ours + [row(model, name, ms, batch=batch, threads=threads) for name, ms in theirs.items()]


@pytest.fixture
def result():
    rows = rows_of("resnet50", group_sizes=(64, 4)) + rows_of("cnn") + rows_of("cnn", batch=32, threads=2)
    rows.append(row("minilm", DYNAMIC, 4.0, busy=True))
    rows.append(row("minilm", "fgq", 2.0, group_size=64, kernels="auto", memory="fast"))
    machine = {
        "cpu": "a | b",
        "features": [],
        "tiers": ["avx2"],
        "versions": {"fgq": "0.1.0"},
        "ceilings": {},
    }
    return Result(
        machine=machine, rows=rows, notes={"cnn": "small"}, missing={"minilm, OpenVINO int8": "none"}
    )


def found_of(rows):
    return {(claim.what, claim.against): claim for claim in claims(rows)}


def test_claims_are_ratios_of_one_thread(result):
    found = found_of(result.rows)
    expected = {
        ("resnet50, N=64, auto", FLOAT): 6.0,
        ("resnet50, N=64, auto", INT8): 1.5,
        ("resnet50, N=64, auto", OPENVINO): 0.5,
        ("resnet50, N=4, auto", FLOAT): 12.0 / 17.0,
        ("minilm, N=64, auto", DYNAMIC): 2.0,
        ("cnn, batch 1, N=64, auto", FLOAT): 6.0,
    }
    for key, ratio in expected.items():
        assert found[key].found == pytest.approx(ratio), key
    packed = found["resnet50, N=64, auto, compact", "fgq, fast"]
    assert packed.found is not None
    assert packed.found < 1
    assert found["cnn, batch 32, N=64, auto", FLOAT].found is None  # two threads
    assert found["minilm, N=64, auto", FLOAT].verdict == "not measured"
    assert found["resnet50, N=64, auto", FLOAT].verdict == "met"
    assert found["resnet50, N=64, auto", INT8].verdict == "missed"


def test_ratios_of_disturbed_times_are_marked(result):
    found = found_of(result.rows)
    assert found["minilm, N=64, auto", DYNAMIC].busy
    assert not found["resnet50, N=64, auto", FLOAT].busy
    for line in model_report.claims_table(result)[1]:
        assert (line[0].startswith("minilm") and bool(line[2])) == line[2].endswith(DISTURBED)
    titles = list(model_report.titled_tables(result))
    assert titles[-1].startswith(DISTURBED)
    calm = replace(result, rows=[replace(each, busy=None) for each in result.rows])
    assert DISTURBED not in str(model_report.titled_tables(calm))


def test_tables_have_a_cell_for_each_column(result):
    tables = model_report.titled_tables(result)
    assert "cnn (small)" in tables
    for (columns, lines), _ in list(tables.values())[:-1]:
        assert lines
        assert {len(line) for line in lines} == {len(columns)}


def test_ratios_are_to_the_same_batch_and_threads(result):
    rows = [
        *rows_of("cnn"),
        *(replace(each, batch=32, median_ms=10 * each.median_ms) for each in rows_of("cnn")),
    ]
    columns, lines = model_report.model_table(rows)
    ratios = [line[columns.index("x float")] for line in lines if line[0] == "fgq, N=64, auto, fast"]
    assert ratios == ["6.00", "6.00"]


def test_only_what_was_measured_is_printed():
    empty = Result(machine={"cpu": "a", "tiers": [], "versions": {}, "ceilings": {}})
    assert list(model_report.titled_tables(empty)) == ["machine"]
    assert {claim.found for claim in claims([])} == {None}


def test_the_document_takes_all_tables(result, tmp_path):
    measured, out = tmp_path / "models.json", tmp_path / "models.md"
    measured.write_text(as_json(result.to_dict()))
    out.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    model_report.main(measured, out)
    text = out.read_text(encoding="utf-8")
    assert "| a \\| b |" in text
    assert "| fgq, N=64, auto, fast |" in text
    assert "| no minilm, OpenVINO int8 | none |" in text
    assert text.count("<!-- table ") == text.count("<!-- end ") == len(model_report.document_tables(result))
    with pytest.raises(DataError, match="found no such file, wanted a document"):
        model_report.main(measured, tmp_path / "none.md")


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"machine": {}, "rows": [{"op": "x"}]})])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "models.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"models\.json: .*wanted what fgq bench model --json wrote"):
        model_report.read_result(path)
