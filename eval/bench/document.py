"""The tables and the plot of docs/benchmarks.md, from what `fgq bench kernels` measured.

::

    fgq bench kernels --json build/bench.json
    python -m fgq.eval.bench.document build/bench.json --out docs/benchmarks.md --plot docs/roofline.svg

The document is written by hand; each table in it stands between ``<!-- table NAME -->`` and
``<!-- end NAME -->``, and is replaced. The plot needs the extra ``report``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fgq import onnx_file
from fgq.errors import DataError, FgqError
from fgq.eval.bench import report
from fgq.eval.bench.kernels import Result
from fgq.eval.bench.roofline import draw_roofline
from fgq.eval.tables import replace_tables


def tables(result: Result) -> dict[str, str]:
    """Return the document's tables by name, in Markdown.

    Parameters
    ----------
    result : Result
    """
    rows = report.by_operator(result)
    products, convolutions = rows.get("MatMul", []), rows.get("Conv", [])
    facts = report.machine_facts(result)
    return {
        "machine": _markdown((["", ""], [[name, fact] for name, fact in facts.items()])),
        "claims": _markdown(report.claims_table(result.rows)),
        "llm": _markdown(report.kernels_table(products)),
        "llm-times": _markdown(report.times_table(products)),
        "resnet50": _markdown(report.means_table(convolutions)),
        "resnet50-times": _markdown(report.times_table(convolutions)),
    }


def read_result(path: Path) -> Result:
    """Read what ``fgq bench kernels --json`` wrote.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it is something else.
    """
    try:
        return Result.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; wanted what fgq bench kernels --json wrote"
        ) from None


def _markdown(table: report.Table) -> str:
    columns, lines = table
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *escaped))


def main(
    measured: Annotated[Path, typer.Argument(metavar="BENCH.json", help="What fgq bench kernels wrote.")],
    out: Annotated[Path, typer.Option(help="The document whose tables to replace.")],
    plot: Annotated[Path, typer.Option(help="The image to write, .svg or .png.")],
) -> None:
    """Replace the tables of a document and draw its plot."""
    result = read_result(measured)
    if not out.is_file():
        raise DataError(f"{out}: found no such file, wanted a document with places for tables")
    document = replace_tables(out.read_text(encoding="utf-8"), tables(result))
    draw_roofline(result, plot)
    with onnx_file.staged(out) as path:
        path.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    try:
        typer.run(main)
    except FgqError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
