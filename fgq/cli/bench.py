"""The commands `fgq bench`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgq.cli.options import recipe_option
from fgq.config import ConversionConfig, Recipe
from fgq.errors import ConfigError

if TYPE_CHECKING:
    from fgq.eval.bench.whole_models import Trial

bench = typer.Typer(no_args_is_help=True, help="Measure speed beside other engines and the machine's limits.")


class Shapes(StrEnum):
    """The layers to time."""

    LLM = "llm"
    RESNET50 = "resnet50"
    ALL = "all"


class Wish(StrEnum):
    """What is asked of the kernels that are timed."""

    MULTIPLICATION_FREE = "multiplication-free"
    DOT = "dot"
    AUTO = "auto"


class Integers(StrEnum):
    """Quantized activations."""

    INT8 = "int8"
    INT4 = "int4"


@bench.command("kernels")
def bench_kernels(
    shapes: Annotated[
        Shapes | None,
        typer.Option(help="Projections of a language model, convolutions of ResNet-50, or both."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(metavar="T", min=1, help="How many to use; may be repeated.")
    ] = None,
    group_size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Weights that share one scale; may be repeated."),
    ] = None,
    activations: Annotated[
        list[Integers] | None, typer.Option(help="Bits of the activations; may be repeated.")
    ] = None,
    kernel: Annotated[
        list[Wish] | None, typer.Option(help="Time only kernels of this kind; may be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short sitting for each layer, to try it out.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write all rows and the machine as JSON.")
    ] = None,
) -> None:
    """Time the kernels in turns with onnxruntime and OpenVINO, beside what the machine can do at most.

    Without options that say what to time, all that the project promises is measured, in some minutes; else
    what is not said is both sets of layers, one thread, N=64 and 8-bit activations.

    Example: `fgq bench kernels --shapes llm --group-size 64 --json bench.json`
    """
    from fgq.cli import display
    from fgq.eval.bench import kernels
    from fgq.eval.bench.shapes import LLM, RESNET50
    from fgq.format import onnx_file

    plan = kernels.FULL_PLAN
    if shapes or threads or group_size or activations:
        layers = {Shapes.LLM: LLM, Shapes.RESNET50: RESNET50}.get(shapes or Shapes.ALL, LLM + RESNET50)
        bits = [int(each.removeprefix("int")) for each in activations or [Integers.INT8]]
        plan = kernels.plan_of(layers, group_size or [64], bits, threads or [1])
    with nullcontext() if json is None else onnx_file.staged(json) as path:
        with display.progress_bar() as advance:
            result = kernels.bench_kernels(plan, advance, wishes=kernel or list(Wish), quick=quick)
        if path is not None:
            path.write_text(display.as_json(result.to_dict()) + "\n", encoding="utf-8")
    display.print_benchmark(result)


@bench.command("model")
def bench_model(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A float or converted ONNX model, or resnet50 (random weights), cnn (bundled) or minilm.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples of its input, as for fgq convert; built-in models bring their own. The first ones "
            "are timed.",
        ),
    ] = None,
    group_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", min=1, help="Weights that share one scale; may be repeated.  [default: 64]"
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(metavar="B", min=1, help="Samples in a call; may be repeated.  [default: 1]"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(metavar="T", min=1, help="How many to use; may be repeated.  [default: 1]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short sitting, to try it out.")] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write all rows and the machine as JSON.")
    ] = None,
) -> None:
    """Time a whole model in turns with onnxruntime and OpenVINO, float and int8.

    Without a model, all that the project promises of whole models is measured, in some minutes.

    Example: `fgq bench model resnet50 --group-size 64 --group-size 4 --json models.json`
    """
    from fgq.cli import display
    from fgq.eval.bench import model_report, whole_models
    from fgq.format import onnx_file

    plan = _trials(model, calibration, batches=batch, threads=threads, group_sizes=group_size)
    with nullcontext() if json is None else onnx_file.staged(json) as path:
        with display.progress_bar() as advance:
            result = whole_models.bench_models(plan, advance, quick=quick)
        if path is not None:
            path.write_text(display.as_json(result.to_dict()) + "\n", encoding="utf-8")
    for title, (table, right) in model_report.titled_tables(result).items():
        display.out.print()
        display.print_line(title)
        display.out.print(display.simple_table(*table, right=right))


def _trials(model: str | None, data: str | None, **sizes: list[int] | None) -> Sequence[Trial]:
    """Return what is to be timed: a model with these options, or all that the project promises."""
    from fgq.eval.bench import whole_models

    given: dict[str, Any] = {name: tuple(dict.fromkeys(each)) for name, each in sizes.items() if each}
    if model is not None:
        return [whole_models.Trial(model=model, data=data, **given)]
    if data or given:
        raise ConfigError("model: found none, wanted one for these options; without any all is measured")
    return whole_models.FULL_PLAN


@bench.command("conversion")
def bench_conversion(
    layers: Annotated[
        int, typer.Option(metavar="L", min=1, help="Of the encoder; 7 million weights each.")
    ] = 12,
    samples: Annotated[int, typer.Option(metavar="COUNT", min=1, help="Texts to calibrate on.")] = 256,
    group_size: Annotated[int, typer.Option(metavar="N", min=1, help="Weights that share one scale.")] = 64,
    recipe: Annotated[Recipe, recipe_option("How weights become integers.")] = Recipe.CALIBRATED,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Time the conversion of a transformer encoder of random weights, and measure its memory.

    Example: `fgq bench conversion --layers 2`
    """
    from fgq.cli import display
    from fgq.eval.bench import conversion

    chosen = ConversionConfig(group_size=group_size, recipe=recipe)
    with display.progress_bar() as advance:
        measured = conversion.measure(layers, samples, chosen, advance)
    if json:
        display.print_json(measured.to_dict())
    else:
        display.out.print(display.simple_table(*conversion.table(measured), right=1))
