"""The command `fgq eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgq.cli.options import Engine, Json


def evaluate(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="ONNX models; differences are to the first.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="An .npz with inputs and labels, a folder of images by class, characters or docstrings.",
        ),
    ],
    engine: Annotated[Engine, typer.Option(help="What runs the models.")] = Engine.ONNXRUNTIME,
    limit: Annotated[int | None, typer.Option(metavar="COUNT", min=1, help="Only the first samples.")] = None,
    json: Json = False,
) -> None:
    """Measure the accuracy of models side by side, with 95 % intervals.

    Example: `fgq eval float.onnx ternary.onnx --data characters --engine both`
    """
    from fgq.cli import display
    from fgq.eval import evaluation

    engines = ["onnxruntime", "fgq"] if engine is Engine.BOTH else [engine.value]
    with display.progress_bar() as advance:
        result = evaluation.evaluate(models, data, engines, limit, advance)
    if json:
        display.print_json([row.to_dict() for row in result])
    else:
        display.out.print(display.simple_table(*evaluation.table(result), right=2))
