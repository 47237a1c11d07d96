"""The command `fgq pareto`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from fgq.cli.options import expands_groups
from fgq.errors import ConfigError

if TYPE_CHECKING:
    from fgq.eval.pareto.points import Plan

T = TypeVar("T", int, float)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Which networks are trained."""

    widths: Annotated[
        str, typer.Option(metavar="W,W,...", help="Widths of networks of the bundled depth.")
    ] = "0.25,0.5,1,2"
    depths: Annotated[
        str,
        typer.Option(metavar="D,D,...", help="Further bottlenecks a stage, of networks of one width."),
    ] = "2"
    depth_width: Annotated[float, typer.Option(metavar="W", help="That width.")] = 0.5
    precisions: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Which precisions.  [default: all]")
    ] = None
    seeds: Annotated[int, typer.Option(metavar="COUNT", min=1, help="Trainings of each network.")] = 3


@dataclass(frozen=True, kw_only=True)
class Training:
    """How each is trained."""

    steps: Annotated[int, typer.Option(metavar="COUNT", help="Training steps.")] = 1500
    batch: Annotated[int, typer.Option(metavar="COUNT", help="Images a step.")] = 128
    rate: Annotated[float, typer.Option(metavar="RATE", help="Peak learning rate.")] = 2e-2
    images: Annotated[int, typer.Option(metavar="COUNT", help="Training images.")] = 65536
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the quantizers; needs a C++ compiler.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where they are trained."""

    jobs: Annotated[int, typer.Option(metavar="COUNT", min=1, help="Trainings at a time.")] = 1
    backend: Annotated[
        str, typer.Option(help="loky, processes of this machine; or dask, a cluster's workers.")
    ] = "loky"
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of the Dask cluster, such as tcp://host:8786.")
    ] = None


@expands_groups
def pareto(
    output: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="For images, models, the table and plots.")
    ] = Path("pareto"),
    *,
    family: Family,
    training: Training,
    workers: Workers,
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing: write what is finished.")
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="At the end time the networks; nothing else should run.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Train a family of networks at several precisions, and find what each gives for its cost.

    Finished points in the folder are taken as they are, and an unfinished one goes on from its checkpoint.
    Needs the extras `train`, `report` and `scale`, and the fonts of the bundled images.

    Example: `fgq pareto --widths 0.25,0.5 --precisions float,w8a8,w4a4 --jobs 2 -o pareto`
    """
    from fgq.cli import display
    from fgq.eval.pareto import latency as timing
    from fgq.eval.pareto import study, sweep, table
    from fgq.eval.study.plot import matplotlib

    matplotlib()  # refused before the work
    if workers.backend not in list(sweep.Backend):
        raise ConfigError(f"backend: found {workers.backend!r}, wanted {' or '.join(sweep.Backend)}")
    plan = _plan(family, training)
    with display.progress_bar(sweep.OVERALL) as advance:
        if not finished:
            sweep.run(
                plan,
                output,
                advance,
                workers=workers.jobs,
                backend=sweep.Backend(workers.backend),
                scheduler=workers.scheduler,
            )
        if latency:
            timing.measure(sweep.jobs_of(plan, output), output, advance)
    result = study.collect(plan, output)
    written = study.write(result, output)
    if json:
        display.print_json(result.to_dict() | {"statements": table.statements(result.dominance)})
        return
    display.out.print(display.simple_table(*table.summary(result.networks)))
    for sentence in table.statements(result.dominance):
        display.print_line(sentence)
    if result.missing:
        display.print_line(f"not finished: {len(result.missing)} points, the first {result.missing[0]}")
    for path in written:
        display.print_line(f"wrote {path}")


def _plan(family: Family, training: Training) -> Plan:
    from fgq.eval.pareto.points import PRECISIONS, Plan, Recipe

    return Plan(
        widths=_numbers("widths", family.widths, float),
        depths=_numbers("depths", family.depths, int),
        depth_width=family.depth_width,
        precisions=tuple(PRECISIONS) if family.precisions is None else tuple(family.precisions.split(",")),
        seeds=family.seeds,
        recipe=Recipe(
            steps=training.steps,
            batch=training.batch,
            rate=training.rate,
            images=training.images,
            compile=training.compiled,
        ),
    )


def _numbers(name: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part)
    except ValueError:
        raise ConfigError(f"{name}: found {text!r}, wanted numbers with commas, such as 1,2") from None
