"""The command `fgq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgq.cli.options import Json
from fgq.config import ExportForm


def export(
    converted: Annotated[
        Path, typer.Argument(metavar="CONVERTED", help="A model that fgq has converted.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="File to write.")],
    form: Annotated[ExportForm, typer.Option(help="Plain int8, packed without a function, or float.")],
    json: Json = False,
) -> None:
    """Write a converted model in another form, for other tools.

    Example: `fgq export ternary.onnx -o int8.onnx --form int8`
    """
    from fgq.cli import display
    from fgq.conversion import files

    exported = files.export_file(converted, output, form)
    if json:
        display.print_json({"output": str(output), "form": form.value, **exported._asdict()})
    else:
        display.print_line(f"runs on onnxruntime {exported.minimum_onnxruntime} or newer")
        display.print_line(f"wrote {output} ({exported.bytes} bytes)")
