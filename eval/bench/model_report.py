"""What a run of whole models found, as tables; and docs/benchmarks-models.md.

::

    fgq bench model --json build/models.json
    python -m fgq.eval.bench.model_report build/models.json --out docs/benchmarks-models.md

The document is written by hand; each table in it stands between ``<!-- table NAME -->`` and
``<!-- end NAME -->``, and is replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fgq.errors import DataError
from fgq.eval.bench import report
from fgq.eval.bench.baselines import FLOAT, OPENVINO
from fgq.eval.bench.engines import label
from fgq.eval.bench.kernels import Result as KernelsResult
from fgq.eval.bench.model_claims import DYNAMIC, INT8, claims
from fgq.eval.bench.model_files import BUILT_IN
from fgq.eval.bench.report import DISTURBED, Table
from fgq.eval.bench.whole_models import Result, Row
from fgq.eval.command import run_command
from fgq.eval.markdown import markdown_table, rewrite
from fgq.support.schema import LARGEST_JSON, read_text

_BASELINES = (FLOAT, INT8, DYNAMIC, OPENVINO)
"""Against which ratios are told, where a run holds them."""


def machine_table(result: Result) -> Table:
    """Return the machine, the versions, and what did not run."""
    facts = report.machine_facts(KernelsResult(machine=result.machine, missing=result.missing))
    return ["", ""], [[name, fact] for name, fact in facts.items()]


def claims_table(result: Result, *, measured: bool = False) -> Table:
    """Return what is to be shown, and what was found.

    Parameters
    ----------
    result : Result
    measured : bool
        Leave out what was not measured.
    """
    lines = [
        [
            claim.what,
            claim.against,
            "" if claim.found is None else f"{claim.found:.2f}{DISTURBED if claim.busy else ''}",
            f"{claim.at_least:g}",
            claim.verdict,
        ]
        for claim in claims(result.rows)
        if claim.found is not None or not measured
    ]
    return ["what", "against", "times as fast", "at least", ""], lines


def model_table(rows: list[Row]) -> Table:
    """Return a line for each engine, with how many times faster it is than each baseline.

    Parameters
    ----------
    rows : list of Row
        Of one model.
    """
    settings = {(row.batch, row.threads): dict[str, Row]() for row in rows}
    for row in rows:
        settings[row.batch, row.threads][row.engine] = row
    names = [name for name in _BASELINES if any(row.engine == name for row in rows)]
    columns = [
        *("engine", "batch", "thr", "median ms", "p90 ms", "samples/s", "load s", "resident MB", "file MB"),
        *(f"x {name.removeprefix('onnxruntime ')}" for name in names),
    ]
    lines = []
    for row in rows:
        mark = DISTURBED if row.busy else ""
        others = [settings[row.batch, row.threads].get(name) for name in names]
        lines.append(
            [
                label(row.engine, row.options),
                str(row.batch),
                str(row.threads),
                f"{row.median_ms:.3f}{mark}",
                f"{row.p90_ms:.3f}{mark}",
                f"{row.throughput:.1f}{mark}",
                f"{row.load_s:.2f}",
                "" if row.resident_bytes is None else f"{row.resident_bytes / 1e6:.1f}",
                f"{row.file_bytes / 1e6:.2f}",
                *(
                    "" if other is None else f"{other.median_ms / row.median_ms:.2f}{mark}"
                    for other in others
                ),
            ]
        )
    return columns, lines


def rows_of(result: Result) -> dict[str, list[Row]]:
    """Return the rows of each model, in order."""
    found: dict[str, list[Row]] = {}
    for row in result.rows:
        found.setdefault(row.model, []).append(row)
    return found


def titled_tables(result: Result) -> dict[str, tuple[Table, int]]:
    """Return what to show of a run, by title, with the number of columns of text.

    Parameters
    ----------
    result : Result
    """
    tables = {"machine": (machine_table(result), 2)}
    for model, rows in rows_of(result).items():
        note = result.notes.get(model)
        tables[f"{model} ({note})" if note else model] = model_table(rows), 1
    shown = claims_table(result, measured=True)
    if shown[1]:
        tables["what is to be shown"] = shown, 2
    if any(row.busy for row in result.rows):
        tables[f"{DISTURBED} other processes were at work, in spite of repetitions"] = ([], []), 0
    return tables


def document_tables(result: Result) -> dict[str, str]:
    """Return the document's tables by name, in Markdown.

    Parameters
    ----------
    result : Result
    """
    rows = rows_of(result)
    return {
        "machine": markdown_table(*machine_table(result)),
        "claims": markdown_table(*claims_table(result)),
        **{model: markdown_table(*model_table(rows.get(model, []))) for model in BUILT_IN},
    }


def read_result(path: Path) -> Result:
    """Read what ``fgq bench model --json`` wrote.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it is something else.
    """
    try:
        return Result.from_dict(json.loads(read_text(path, DataError, LARGEST_JSON)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; wanted what fgq bench model --json wrote"
        ) from None


def main(
    measured: Annotated[Path, typer.Argument(metavar="MODELS.json", help="What fgq bench model wrote.")],
    out: Annotated[Path, typer.Option(help="The document whose tables to replace.")],
) -> None:
    """Replace the tables of a document."""
    result = read_result(measured)
    rewrite(out, document_tables(result))


if __name__ == "__main__":
    run_command(main)
