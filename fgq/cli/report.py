"""The command `fgq report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    float_model: Annotated[
        Path, typer.Argument(metavar="FLOAT", help="The float model.", show_default=False)
    ],
    converted: Annotated[
        Path,
        typer.Argument(metavar="CONVERTED", help="The model that was converted from it.", show_default=False),
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help="Samples as for fgq eval; labels are optional.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="HTML file to write.")] = Path(
        "report.html"
    ),
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the pictures as PNG there.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="COUNT", min=1, help="Only the first samples.")] = None,
) -> None:
    """Write what a conversion did as one HTML file: accuracy, size, every layer's share, and what to try.

    Example: `fgq report float.onnx ternary.onnx --data characters -o report.html`
    """
    from fgq.cli import display
    from fgq.eval.report import advice
    from fgq.eval.report.written import write_report

    with display.progress_bar() as advance:
        written = write_report(
            float_model, converted, data, output, plots=plots, limit=limit, progress=advance
        )
    for sentence in advice.summary(written.findings):
        display.print_line(sentence)
    for suggestion in advice.suggestions(written.findings):
        display.print_line(f"{suggestion.options}: {suggestion.reason}", label="try ")
    for file in written.files:
        display.print_line(f"wrote {file}")
