"""The command `fgq finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgq.config import Activations, ConversionConfig
from fgq.errors import ConfigError
from fgq.quantization.scheme import Codes


def finetune(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The .onnx file to write.")],
    model: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="Gives the trained float torch.nn.Module.")
    ] = "fgq.eval.characters.finetuning:network",
    data: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="Gives data sets to train and to judge by.")
    ] = "fgq.eval.characters.finetuning:images",
    weights: Annotated[Codes, typer.Option(help="Codes of the weights.")] = Codes.TERNARY,
    group_size: Annotated[int, typer.Option(metavar="N", help="Weights that share one scale.")] = 64,
    activations: Annotated[Activations, typer.Option(help="8- or 4-bit activations, or float ones.")] = (
        Activations.INT8
    ),
    learned_ranges: Annotated[
        bool, typer.Option("--learned-ranges", help="Learn the scales of activations.")
    ] = False,
    learned_scales: Annotated[
        bool, typer.Option("--learned-scales", help="Learn the scales of weights.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Layers' schemes, as of convert --save-plan.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Layers to leave float, by their names.")
    ] = None,
    objective: Annotated[
        str, typer.Option(metavar="NAME", help="logits, embeddings, or MODULE:FUNCTION that gives one.")
    ] = "logits",
    match: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Layers, with *, to give the float ones' results. Repeatable."),
    ] = None,
    match_weight: Annotated[
        float, typer.Option(metavar="WEIGHT", help="Of these layers' distance in the loss.")
    ] = 1.0,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="CONVERTED", help="Start from the codes of a conversion.")
    ] = None,
    start_float: Annotated[
        Path | None, typer.Option("--from-float", metavar="MODEL", help="The model that was converted.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="COUNT", help="Training steps.")] = 1000,
    batch: Annotated[int, typer.Option(metavar="COUNT", help="Samples a step, over all processes.")] = 128,
    rate: Annotated[float, typer.Option(metavar="RATE", help="Peak learning rate.")] = 2e-4,
    warm_up: Annotated[int, typer.Option(metavar="STEPS", help="Of the learning rate.")] = 50,
    distillation: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the float network in the loss, 0 to 1.")
    ] = 0.7,
    ema: Annotated[float, typer.Option(metavar="DECAY", help="Of the averaged weights, 0 for none.")] = 0.99,
    gradual: Annotated[int, typer.Option(metavar="STEPS", help="From float to quantized weights.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the order of the data.")] = 0,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Train under bfloat16 autocast.")] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the quantizers; needs a C++ compiler.")
    ] = False,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets checkpoints and metrics.csv.")] = Path(
        "runs/finetune"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
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

    if activations in (Activations.INT8_DYNAMIC, Activations.INT8_DYNAMIC_TOKEN):
        raise ConfigError(f"activations: found {activations}, wanted int8, int4 or none to train with")
    config = ConversionConfig(weights=weights, group_size=group_size, activations=activations)
    schedule = Schedule(
        steps=steps,
        batch=batch,
        rate=rate,
        warm_up=warm_up,
        distillation=distillation,
        ema=ema,
        gradual=gradual,
        seed=seed,
        bfloat16=bfloat16,
        match=tuple(match or ()),
        match_weight=match_weight,
        compile=compile_,
    )
    with tuning.processes() as reports, display.progress_bar() as advance:
        result = tuning.finetune(
            tuning.load_function(model)(),
            tuning.load_function(data)(),
            output,
            scheme=config.weight_scheme,
            activations=config.activation_scheme,
            ranges=Ranges.LEARNED if learned_ranges else Ranges.STATISTICAL,
            scales=Scales.LEARNED if learned_scales else Scales.REFITTED,
            plan=None if plan is None else read_plan(plan),
            exclude=exclude,
            objective=tuning.objective_of(objective, schedule),
            schedule=schedule,
            folder=folder,
            start=start,
            start_float=start_float,
            resume=resume,
            tensorboard=tensorboard,
            progress=advance if reports else None,
        )
    if not reports:
        return
    if json:
        display.print_json({"output": str(output)} | result._asdict())
        return
    rows = [
        ["float", f"{result.float_score:.4f}"],
        ["quantized", f"{result.start_score:.4f}"],
        ["fine-tuned", f"{result.score:.4f}"],
    ]
    display.out.print(display.simple_table(["network", result.measure], rows, right=1))
    for name in result.left_float:
        display.print_line(f"{name}: computed in float, as its operator is not converted")
    display.print_line(f"wrote {output}")
