"""The tables and the plot of docs/benchmarks.md, from what `fgq bench kernels` measured.

::

    fgq bench kernels --json build/bench.json
    python -m fgq.eval.bench.kernel_report build/bench.json --out docs/benchmarks.md --plot docs/roofline.svg

Its tables are replaced (`fgq.eval.markdown`). The plot needs the extra ``report``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fgq.errors import DataError
from fgq.eval.bench import report
from fgq.eval.bench.kernels import Result
from fgq.eval.bench.roofline import draw_roofline
from fgq.eval.command import run_command
from fgq.eval.markdown import check_places, markdown_table, rewrite
from fgq.support.schema import LARGEST_JSON, read_text


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
        "machine": markdown_table(["", ""], [[name, fact] for name, fact in facts.items()]),
        "claims": markdown_table(*report.claims_table(result.rows)),
        "llm": markdown_table(*report.kernels_table(products)),
        "llm-times": markdown_table(*report.times_table(products)),
        "resnet50": markdown_table(*report.means_table(convolutions)),
        "resnet50-times": markdown_table(*report.times_table(convolutions)),
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
        return Result.from_dict(json.loads(read_text(path, DataError, LARGEST_JSON)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; wanted what fgq bench kernels --json wrote"
        ) from None


def main(
    measured: Annotated[Path, typer.Argument(metavar="BENCH.json", help="What fgq bench kernels wrote.")],
    out: Annotated[Path, typer.Option(help="The document whose tables to replace.")],
    plot: Annotated[Path, typer.Option(help="The image to write, .svg or .png.")],
) -> None:
    """Replace the tables of a document and draw its plot."""
    result = read_result(measured)
    found = tables(result)
    check_places(out, found)
    draw_roofline(result, plot)
    rewrite(out, found)


if __name__ == "__main__":
    run_command(main)
