"""The commands `fgq study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgq.cli.options import recipe_option
from fgq.config import Activations, Recipe
from fgq.errors import ConfigError

study = typer.Typer(no_args_is_help=True, help="Vary one option of a conversion and measure what it changes.")


@study.command("group-size")
def study_group_size(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="DATA", help="What to measure on, as for fgq eval.")],
    calibration_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="What to calibrate with, as for fgq convert.  [default: --data]"),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Group sizes, with commas.  [default: powers of 2 from 1 to 256]"
        ),
    ] = None,
    recipe: Annotated[
        list[Recipe] | None,
        recipe_option("How weights become integers; may be repeated.  [default: calibrated]"),
    ] = None,
    activations: Annotated[
        Activations, typer.Option(help="Static 8- or 4-bit activations, or float ones.")
    ] = Activations.INT8,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="For the table, the plot and the models.")
    ] = Path("group-size"),
    limit: Annotated[int | None, typer.Option(metavar="COUNT", min=1, help="Only the first samples.")] = None,
    threads: Annotated[int, typer.Option(metavar="T", min=1, help="Of the timings.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Convert at every group size, and measure accuracy, multiplications, bits and time: a table and a plot.

    What the folder holds of the same study is taken as it is, so that a study that was stopped goes on. The
    plot needs the extra `report`.

    Example: `fgq study group-size model.onnx --data characters --recipe fgq --recipe calibrated -o study`
    """
    from fgq.cli import display
    from fgq.eval.study import group_size, plot, rows

    plot.matplotlib()  # refused before the work
    plan = group_size.Plan(
        model=model,
        data=data,
        calibration=calibration_data,
        sizes=group_size.SIZES if sizes is None else _whole_numbers("sizes", sizes),
        recipes=tuple(recipe or [Recipe.CALIBRATED]),
        activations=activations,
        limit=limit,
        threads=threads,
    )
    with display.progress_bar(group_size.OVERALL) as advance:
        result = group_size.study_group_size(plan, output, advance)
    written = group_size.write(result, output)
    if json:
        display.print_json(result.to_dict())
        return
    display.out.print(display.simple_table(*rows.summary(result)))
    for path in written:
        display.print_line(f"wrote {path}")


def _whole_numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{name}: found {text!r}, wanted whole numbers with commas, such as 4,64") from None
