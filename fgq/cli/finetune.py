"""The command `fgq finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgq.cli.options import Json, expands_groups
from fgq.config import Activations, ConversionConfig
from fgq.errors import ConfigError
from fgq.quantization.scheme import Codes

if TYPE_CHECKING:
    from fgq.train.finetune import Finetuned


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What is quantized, and how."""

    weights: Annotated[Codes, typer.Option(help="Codes of the weights.")] = Codes.TERNARY
    group_size: Annotated[int, typer.Option(metavar="N", help="Weights that share one scale.")] = 64
    activations: Annotated[Activations, typer.Option(help="8- or 4-bit activations, or float ones.")] = (
        Activations.INT8
    )
    learned_ranges: Annotated[
        bool, typer.Option("--learned-ranges", help="Learn the scales of activations.")
    ] = False
    learned_scales: Annotated[bool, typer.Option("--learned-scales", help="Learn the scales of weights.")] = (
        False
    )
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Layers' schemes, as of convert --save-plan.")
    ] = None
    exclude: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Layers to leave float, by their names.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the network is trained for."""

    objective: Annotated[
        str, typer.Option(metavar="NAME", help="logits, embeddings, or MODULE:FUNCTION that gives one.")
    ] = "logits"
    match: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Layers, with *, to give the float ones' results. Repeatable."),
    ] = None
    match_weight: Annotated[
        float, typer.Option(metavar="WEIGHT", help="Of these layers' distance in the loss.")
    ] = 1.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the training begins, if not at the float network."""

    start: Annotated[
        Path | None, typer.Option("--from", metavar="CONVERTED", help="Start from the codes of a conversion.")
    ] = None
    start_float: Annotated[
        Path | None, typer.Option("--from-float", metavar="MODEL", help="The model that was converted.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how to train."""

    steps: Annotated[int, typer.Option(metavar="COUNT", help="Training steps.")] = 1000
    batch: Annotated[int, typer.Option(metavar="COUNT", help="Samples a step, over all processes.")] = 128
    rate: Annotated[float, typer.Option(metavar="RATE", help="Peak learning rate.")] = 2e-4
    warm_up: Annotated[int, typer.Option(metavar="STEPS", help="Of the learning rate.")] = 50
    distillation: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the float network in the loss, 0 to 1.")
    ] = 0.7
    ema: Annotated[float, typer.Option(metavar="DECAY", help="Of the averaged weights, 0 for none.")] = 0.99
    gradual: Annotated[int, typer.Option(metavar="STEPS", help="From float to quantized weights.")] = 0
    seed: Annotated[int, typer.Option(help="Of the order of the data.")] = 0
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Train under bfloat16 autocast.")] = False
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the quantizers; needs a C++ compiler.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept of a training."""

    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets checkpoints and metrics.csv.")] = Path(
        "runs/finetune"
    )
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard.")
    ] = False


@expands_groups
def finetune(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The .onnx file to write.")],
    model: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="Gives the trained float torch.nn.Module.")
    ] = "fgq.eval.characters.finetuning:network",
    data: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="Gives data sets to train and to judge by.")
    ] = "fgq.eval.characters.finetuning:images",
    *,
    quantization: Quantization,
    goal: Goal,
    start: Start,
    training: Training,
    record: Record,
    json: Json = False,
) -> None:
    """Fine-tune a PyTorch module with ternary weights and write it as a converted model.

    Example: `fgq finetune -o tuned.onnx --model mine:network --data mine:images --steps 500`
    """
    from fgq.cli import display
    from fgq.eval.torch_export import require
    from fgq.plan.plan_file import read_plan

    require("torch", "train")
    from fgq.train import finetune as tuning
    from fgq.train.quantizer import Ranges
    from fgq.train.scales import Scales
    from fgq.train.trainer import Schedule

    config = _config(quantization)
    schedule = Schedule(**vars(training), match=tuple(goal.match or ()), match_weight=goal.match_weight)
    with tuning.processes() as reports, display.progress_bar() as advance:
        result = tuning.finetune(
            tuning.load_function(model)(),
            tuning.load_function(data)(),
            output,
            scheme=config.weight_scheme,
            activations=config.activation_scheme,
            ranges=Ranges.LEARNED if quantization.learned_ranges else Ranges.STATISTICAL,
            scales=Scales.LEARNED if quantization.learned_scales else Scales.REFITTED,
            plan=None if quantization.plan is None else read_plan(quantization.plan),
            exclude=quantization.exclude,
            objective=tuning.objective_of(goal.objective, schedule),
            schedule=schedule,
            folder=record.folder,
            start=start.start,
            start_float=start.start_float,
            resume=record.resume,
            tensorboard=record.tensorboard,
            progress=advance if reports else None,
        )
    if not reports:
        return
    if json:
        display.print_json({"output": str(output)} | result._asdict())
    else:
        _show(result, output)


def _config(quantization: Quantization) -> ConversionConfig:
    activations = quantization.activations
    if activations in (Activations.INT8_DYNAMIC, Activations.INT8_DYNAMIC_TOKEN):
        raise ConfigError(f"activations: found {activations}, wanted int8, int4 or none to train with")
    return ConversionConfig(
        weights=quantization.weights, group_size=quantization.group_size, activations=activations
    )


def _show(result: Finetuned, output: Path) -> None:
    from fgq.cli import display

    rows = [
        ["float", f"{result.float_score:.4f}"],
        ["quantized", f"{result.start_score:.4f}"],
        ["fine-tuned", f"{result.score:.4f}"],
    ]
    display.out.print(display.simple_table(["network", result.measure], rows, right=1))
    for name in result.left_float:
        display.print_line(f"{name}: computed in float, as its operator is not converted")
    display.print_line(f"wrote {output}")
