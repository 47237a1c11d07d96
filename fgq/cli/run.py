"""The command `fgq run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgq.cli.options import Engine, Json, ModelPath
from fgq.errors import ConfigError


def run(
    model: ModelPath,
    source: Annotated[Path, typer.Option("--input", metavar="X.npz", help="An array for each input.")],
    output: Annotated[Path, typer.Option(metavar="Y.npz", help="Written with an array for each output.")],
    engine: Annotated[Engine, typer.Option(help="What runs the model.")] = Engine.FGQ,
    kernels: Annotated[
        str, typer.Option(metavar="WISH", help="For fgq: auto, multiplication-free, dot or reference.")
    ] = "auto",
    memory: Annotated[
        str, typer.Option(metavar="WISH", help="For fgq: weights held fast, compact, or auto.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="T", min=1, help="For fgq: how many.  [default: one a processor]")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="For fgq: time every step.")] = False,
    json: Json = False,
) -> None:
    """Run a model on arrays and write its outputs.

    Example: `fgq run ternary.onnx --input x.npz --output y.npz --profile`
    """
    from fgq.cli import display
    from fgq.conversion import files

    if engine is Engine.BOTH:
        raise ConfigError("engine: found both, wanted fgq or onnxruntime")
    if profile and engine is not Engine.FGQ:
        raise ConfigError(f"--profile: found the engine {engine.value}, wanted fgq")
    options = {} if engine is not Engine.FGQ else {"kernels": kernels, "memory": memory, "threads": threads}
    done = files.run_file(model, source, output, engine=engine.value, profile=profile, **options)
    if json:
        display.print_json(
            {"output": str(output), "arrays": done.shapes}
            | ({"profile": [display.step_fields(time) for time in done.times]} if profile else {})
        )
        return
    rows = [[name, str(shape)] for name, shape in done.shapes.items()]
    display.out.print(display.simple_table(["output", "shape"], rows, right=2))
    if profile:
        display.print_profile(done.times)
