"""The command `fgq compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgq.cli.options import Json


def compare(
    float_model: Annotated[
        Path, typer.Argument(metavar="FLOAT", help="The float model.", show_default=False)
    ],
    converted: Annotated[
        Path,
        typer.Argument(metavar="CONVERTED", help="The model that was converted from it.", show_default=False),
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help="Real samples, as for fgq eval.")],
    limit: Annotated[int, typer.Option(metavar="COUNT", min=1, help="Only the first samples.")] = 64,
    json: Json = False,
) -> None:
    """Show the error of every layer, and of the output, on real activations.

    Example: `fgq compare float.onnx ternary.onnx --data characters`
    """
    from fgq.cli import display
    from fgq.eval.compare import compare as compare_models
    from fgq.eval.datasets import open_dataset

    samples = open_dataset(data, float_model, "test").first(limit)
    with display.progress_bar() as advance:
        errors = compare_models(
            float_model, converted, samples, lambda done: advance("compare", done, len(samples))
        )
    if json:
        display.print_json([error.to_dict() for error in errors])
        return
    rows = [
        [error.layer, error.operator, f"{error.signal_to_noise_db:.1f}", f"{error.cosine:.4f}"]
        for error in errors
    ]
    display.out.print(display.simple_table(["layer", "operator", "SNR dB", "cosine"], rows, right=2))
