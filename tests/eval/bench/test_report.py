import json
from dataclasses import replace
from pathlib import Path

import pytest

from fgq.cli.display import as_json
from fgq.errors import ConfigError, DataError
from fgq.eval.bench import baselines, kernel_report, report, roofline
from fgq.eval.bench.claims import claims
from fgq.eval.bench.kernels import Result, Row
from fgq.eval.bench.shapes import GEMM, GEMV, LLM, RESNET50

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmarks.md"
THEIRS = {
    "MatMul": (baselines.FLOAT, baselines.MATMUL_INTEGER, baselines.NBITS_2, baselines.NBITS_4),
    "Conv": (baselines.FLOAT, baselines.QLINEAR_CONV),
}


def row(shape, wish, memory, ms, theirs, *, group_size=64, bits=8, threads=1, busy=False):
    weights = 1.0
    for size in shape.weights:
        weights *= size
    count = int(weights) if memory == "fast" else int(weights) // 4
    free = wish == "multiplication-free"
    return Row(
        op=shape.op, shape=str(shape), count=shape.count, group_size=group_size if shape.ternary else None,
        activation_bits=bits, threads=threads, wish=wish, memory=memory, kernel="gemm", tier="avx512",
        multiplication_free=free, ms=ms, gmacs=shape.macs / ms / 1e6, macs=shape.macs,
        baselines=dict.fromkeys(THEIRS[shape.op], theirs), resident_bytes=count,
        resident_bits_per_weight=8 * count / weights, load_ms=3.0, ceiling="read bandwidth",
        ceiling_fraction=0.5, read_gbs=20.0, rate_gmacs=600.0, busy=busy,
    )  # fmt: skip


def rows_of(shape, **setting):
    free = [row(shape, "multiplication-free", "compact", 2.0, 12.0, **setting)] if shape.ternary else []
    compact = [row(shape, "dot", "compact", 1.25, 12.0, **setting)] if shape.ternary else []
    return [*free, row(shape, "dot", "fast", 1.0, 12.0, **setting), *compact]


@pytest.fixture
def result():
    rows = [found for shape in (*LLM, *RESNET50) for found in rows_of(shape)]
    *others, compact = rows_of(GEMM, group_size=4)
    rows += [*others, replace(compact, ms=1.6)]  # the slowest packed one
    rows.append(row(GEMM, "multiplication-free", "compact", 1.0, 12.0, bits=4, busy=True))
    rows.append(row(GEMM, "multiplication-free", "compact", 1.6, 12.0, threads=2))
    reading = {"32 KiB": 200.0, "512 KiB": 150.0, "8 MiB": 26.0, "64 MiB": 20.0}
    ceilings = {"1": {"read_gbs": reading, "dot_gmacs": 400.0, "int16_gadds": 200.0}}
    machine = {"cpu": "a | b", "features": ["avx2"], "tiers": ["avx2", "portable"],
               "versions": {"fgq": "0.1.0"}, "ceilings": ceilings}  # fmt: skip
    return Result(machine=machine, rows=rows, missing={"OpenVINO int8": "static scales: none"})


def found_of(result):
    return {(claim.what, claim.against): claim for claim in claims(result.rows)}


def test_claims_are_the_ratios_of_the_rows(result):
    found = found_of(result)
    gemm = f"GEMM {GEMM}"
    expected = {
        (f"GEMV {GEMV} multiplication-free", baselines.FLOAT): 6.0,
        (f"{gemm} dot, fast", baselines.FLOAT): 12.0,
        (f"{gemm} dot, compact", baselines.MATMUL_INTEGER): 12.0 / 1.25,
        ("ResNet-50 convolutions, geometric mean, multiplication-free", baselines.FLOAT): 6.0,
        (f"{gemm} multiplication-free, N=4", baselines.FLOAT): 6.0,
        (f"{gemm} multiplication-free, 4-bit activations", "8-bit activations"): 2.0,
        (f"{gemm} multiplication-free, two threads", "one thread"): 1.25,
        (f"every dot row, compact: the slowest, {GEMM} N=4", "fast"): 1.0 / 1.6,
    }
    for key, ratio in expected.items():
        assert found[key].found == pytest.approx(ratio), key
    assert found[f"{gemm} dot, two threads", "one thread"].found is None
    reading = found[f"GEMV {GEMV} multiplication-free", "read bandwidth"]
    assert reading.found == pytest.approx(4096 * 4096 / 4 / 20e9 / 2e-3)


def test_verdicts(result):
    found = found_of(result)
    gemm = f"GEMM {GEMM}"
    assert found[f"{gemm} dot, fast", baselines.FLOAT].verdict == "met"
    assert found[f"{gemm} dot, fast", baselines.MATMUL_INTEGER].verdict == "aim"
    assert found[f"GEMV {GEMV} multiplication-free", baselines.FLOAT].verdict == "missed"
    assert found[f"{gemm} dot, two threads", "one thread"].verdict == "not measured"
    assert found[f"GEMV {GEMV} multiplication-free", "read bandwidth"].verdict == "short of the aim"


def test_ratios_of_disturbed_times_are_marked(result):
    found, gemm = found_of(result), f"GEMM {GEMM}"
    assert found[f"{gemm} multiplication-free, 4-bit activations", "8-bit activations"].busy
    assert not found[f"{gemm} dot, fast", baselines.FLOAT].busy
    columns, lines = report.claims_table(result.rows)
    marked = [line[0] for line in lines if line[columns.index("found")].endswith(report.DISTURBED)]
    assert marked == [f"{gemm} multiplication-free, 4-bit activations"]
    disturbed = [replace(row, busy=True) for row in result.rows]
    for line in report.claims_table(disturbed)[1]:
        assert line[2] == "" or line[2].endswith(report.DISTURBED)
    for table in (report.times_table(disturbed), report.means_table(disturbed)):
        columns, lines = table
        times = columns.index("layers" if "layers" in columns else "thr") + 1
        assert all(cell == "" or cell.endswith(report.DISTURBED) for line in lines for cell in line[times:])


def test_nothing_is_claimed_of_no_rows():
    assert {claim.found for claim in claims([])} == {None}
    assert report.claims_table([], measured=True)[1] == []


def test_tables_have_a_cell_for_each_column(result):
    rows = report.by_operator(result)
    for table in (
        report.kernels_table(rows["MatMul"]),
        report.times_table(rows["Conv"]),
        report.means_table(rows["Conv"]),
        report.claims_table(result.rows),
    ):
        columns, lines = table
        assert lines
        assert {len(line) for line in lines} == {len(columns)}
    columns, lines = report.kernels_table(rows["MatMul"])
    disturbed = [line for line in lines if line[columns.index("ms")].endswith(report.DISTURBED)]
    assert [line[columns.index("act")] for line in disturbed] == ["int4"]


def test_means_say_over_how_many_layers(result):
    columns, lines = report.means_table(report.by_operator(result)["Conv"])
    layers = {line[columns.index("way")]: line[columns.index("layers")] for line in lines}
    assert layers == {"multiplication-free": "22", "dot, fast": "23", "dot, compact": "22"}


def test_the_document_takes_all_tables(result, tmp_path):
    pytest.importorskip("matplotlib")
    measured, out = tmp_path / "bench.json", tmp_path / "benchmarks.md"
    measured.write_text(as_json(result.to_dict()))
    out.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    plots = [tmp_path / name for name in ("a.svg", "b.svg", "c.png")]
    for plot in plots:
        kernel_report.main(measured, out, plot)
    text = out.read_text(encoding="utf-8")
    assert "| a \\| b |" in text
    assert f"| {GEMV} |" in text
    assert text.count("<!-- table ") == text.count("<!-- end ") == len(kernel_report.tables(result))
    assert plots[0].read_bytes() == plots[1].read_bytes()
    assert plots[2].read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error(result, tmp_path):
    pytest.importorskip("matplotlib")
    none = Result(machine=result.machine)
    with pytest.raises(ConfigError, match="plot: found no row of one thread"):
        roofline.draw_roofline(none, tmp_path / "plot.svg")


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"machine": {}, "rows": [{"op": "x"}]})])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "bench.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"bench\.json: .*wanted what fgq bench kernels --json wrote"):
        kernel_report.read_result(path)
