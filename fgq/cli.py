"""The command line: parse, call, print."""

from __future__ import annotations

import logging
import signal
import sys
import time
import warnings
from contextlib import nullcontext
from enum import StrEnum
from importlib.metadata import version as package_version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from fgq.config import Activations, ConversionConfig, ExportForm, Form, Misfit, Recipe, read_config
from fgq.errors import ConfigError, FgqError, OutputError
from fgq.printable import printable
from fgq.scheme import Codes

app = typer.Typer(
    name="fgq",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]
Include = Annotated[str | None, typer.Option(metavar="REGEX", help="Convert only layers whose name matches.")]
Exclude = Annotated[str | None, typer.Option(metavar="REGEX", help="Leave layers whose name matches float.")]


bench = typer.Typer(no_args_is_help=True, help="Measure speed beside other engines and the machine's limits.")
app.add_typer(bench, name="bench")


class Engine(StrEnum):
    """What runs a model."""

    FGQ = "fgq"
    ONNXRUNTIME = "onnxruntime"
    BOTH = "both"


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


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fgq {package_version('fgq')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Convert pretrained ONNX models to ternary weights with fine-grained scales, and run them."""


@app.command()
def convert(
    model: ModelPath,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="File to write.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(metavar="N", help="Weights that share one scale.  [default: 64]")
    ] = None,
    weights: Annotated[
        Codes | None,
        typer.Option(
            help="Codes of the weights: -1..1, two tied ternary planes, or integers.  "
            "[default: ternary; int4 with omse-int4]"
        ),
    ] = None,
    recipe: Annotated[
        Recipe | None,
        typer.Option(
            help="How weights become integers: the paper's way, calibrated on data, or INT4 of least squared "
            "error.  [default: calibrated with calibration data, else fgq]"
        ),
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(
            metavar="B",
            help="Give each layer ternary, tied or 8-bit codes, for at most B bits a weight in memory.",
        ),
    ] = None,
    activations: Annotated[
        Activations | None,
        typer.Option(help="Static 8- or 4-bit activations, or float ones.  [default: int8]"),
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples of the model's input: an .npz with an array per input, a folder of .npz files or "
            "of images, or the name of a data set (characters, docstrings).",
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            help="Several codes a byte, plain int8, or packed without a function.  [default: packed]"
        ),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    group_size_fallback: Annotated[
        Misfit | None,
        typer.Option(
            help="For layers whose input channels are no multiple of the group size: refuse, a shorter last "
            "group, or a smaller group size that fits.  [default: ragged]"
        ),
    ] = None,
    first_last_int8: Annotated[
        bool | None,
        typer.Option(
            "--first-last-int8/--first-last-ternary",
            help="The first convolution and the last matrix product at 8 bits.  [default: int8]",
        ),
    ] = None,
    x86_without_vnni: Annotated[
        bool | None,
        typer.Option(
            "--x86-without-vnni",
            help="Halve the range of scales, for onnxruntime on x86 processors without VNNI.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="These options, from a TOML or JSON file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Also write the report as JSON.")
    ] = None,
    json: Json = False,
) -> None:
    """Convert a float model to ternary weights, run the result, and say what was done.

    Example: `fgq convert resnet50.onnx -o resnet50.ternary.onnx --calibration-data images/`
    """
    given = {
        "group_size": group_size,
        "weights": weights,
        "recipe": recipe,
        "target_bits": target_bits,
        "activations": activations,
        "form": form,
        "include": include,
        "exclude": exclude,
        "group_size_fallback": group_size_fallback,
        "first_last_int8": first_last_int8,
        "x86_without_vnni": x86_without_vnni,
    }
    options = {} if config is None else read_config(config)
    chosen = ConversionConfig(**options | {name: value for name, value in given.items() if value is not None})

    from fgq import display, files, onnx_file, pipeline, survey

    if dry_run:
        _show_survey(survey.survey(model, chosen), json=json)
        return
    if output is None:
        raise OutputError("output: found none, wanted -o OUT, or --dry-run to write nothing")
    samples = None
    if calibration_data is not None:
        samples = _calibration_data(model, calibration_data)
        files.refuse_same_file(calibration_data, output)
    for read in (model, output, calibration_data, config):
        if report is not None and read is not None:
            files.refuse_same_file(read, report)
    # Staged before the conversion: a report that cannot be written is refused before the work.
    with nullcontext() if report is None else onnx_file.staged(report) as report_path:
        with display.progress_bar() as advance:
            result = pipeline.convert_file(model, output, chosen, samples, advance)
        if report_path is not None:
            report_path.write_text(display.as_json(result.to_dict()) + "\n", encoding="utf-8")
    if json:
        display.print_json(result.to_dict())
    else:
        display.print_report(result, str(output))


@app.command()
def inspect(
    model: ModelPath,
    group_size: Annotated[int, typer.Option(metavar="N", help="Weights that share one scale.")] = 64,
    include: Include = None,
    exclude: Exclude = None,
    json: Json = False,
) -> None:
    """List the layers of a converted model, or what would become of a float model's layers, and why.

    Example: `fgq inspect resnet50.onnx`
    """
    from fgq import survey

    config = ConversionConfig(group_size=group_size, include=include, exclude=exclude)
    _show_survey(survey.inspect(model, config), json=json)


@app.command("eval")
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
    from fgq import display
    from fgq.eval import evaluation

    engines = ["onnxruntime", "fgq"] if engine is Engine.BOTH else [engine.value]
    with display.progress_bar() as advance:
        result = evaluation.evaluate(models, data, engines, limit, advance)
    if json:
        display.print_json([row.to_dict() for row in result])
    else:
        display.out.print(display.simple_table(*evaluation.table(result), right=2))


@app.command()
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
    from fgq import display
    from fgq.eval.compare import compare as compare_models

    samples = _open_data(float_model, data, "test").first(limit)
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


@app.command()
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
    from fgq import display, files

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


@app.command()
def warmup(
    group_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Group sizes to compile for; may be given several times.  [default: 4, 8, 16, 32, 64]",
        ),
    ] = None,
    all_tiers: Annotated[
        bool,
        typer.Option("--all-tiers", help="For every instruction set of this machine, not the best alone."),
    ] = False,
) -> None:
    """Compile the kernels for this machine and keep them on disk, so that later starts need not.

    Example: `fgq warmup --group-size 64`
    """
    from fgq import display
    from fgq.kernels.warmup import GROUP_SIZES, warm_up

    begin = time.perf_counter()
    with display.progress_bar() as advance:
        count = warm_up(
            group_size or GROUP_SIZES,
            every_tier=all_tiers,
            progress=lambda done, total: advance("compile", done, total),
        )
    display.print_line(f"kernels ready: {count} kinds of layers in {time.perf_counter() - begin:.1f} s")


@app.command()
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
    from fgq import display, files

    exported = files.export_file(converted, output, form)
    if json:
        display.print_json({"output": str(output), "form": form.value, **exported._asdict()})
    else:
        display.print_line(f"runs on onnxruntime {exported.minimum_onnxruntime} or newer")
        display.print_line(f"wrote {output} ({exported.bytes} bytes)")


@app.command()
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
    start: Annotated[
        Path | None, typer.Option("--from", metavar="CONVERTED", help="Start from the codes of a conversion.")
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
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets checkpoints and metrics.csv.")] = Path(
        "runs/finetune"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard.")
    ] = False,
    json: Json = False,
) -> None:
    """Fine-tune a PyTorch module with ternary weights and write it as a converted model.

    Example: `fgq finetune -o tuned.onnx --model mine:network --data mine:images --steps 500`
    """
    from fgq import display
    from fgq.eval.torch_export import require

    require("torch", "train")
    from fgq.train import finetune as tuning
    from fgq.train.quantizer import Ranges
    from fgq.train.trainer import Schedule

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
    )
    with tuning.processes() as reports, display.progress_bar() as advance:
        result = tuning.finetune(
            tuning.load_function(model)(),
            tuning.load_function(data)(),
            output,
            scheme=config.weight_scheme,
            activations=config.activation_scheme,
            ranges=Ranges.LEARNED if learned_ranges else Ranges.STATISTICAL,
            schedule=schedule,
            folder=folder,
            start=start,
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
        ["float", f"{result.float_accuracy:.4f}"],
        ["quantized", f"{result.start_accuracy:.4f}"],
        ["fine-tuned", f"{result.accuracy:.4f}"],
    ]
    display.out.print(display.simple_table(["network", "top-1"], rows, right=1))
    for name in result.left_float:
        display.print_line(f"{name}: computed in float, as its operator is not converted")
    display.print_line(f"wrote {output}")


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
    from fgq import display, onnx_file
    from fgq.eval.bench import kernels
    from fgq.eval.bench.shapes import LLM, RESNET50

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
    from fgq import display, onnx_file
    from fgq.eval.bench import model_report, whole_models

    plan = whole_models.FULL_PLAN
    if model is not None:
        sizes = {"batches": batch, "threads": threads, "group_sizes": group_size}
        given: dict[str, Any] = {name: tuple(dict.fromkeys(found)) for name, found in sizes.items() if found}
        plan = (whole_models.Trial(model=model, data=calibration, **given),)
    elif calibration or group_size or batch or threads:
        raise ConfigError("model: found none, wanted one for these options; without any all is measured")
    with nullcontext() if json is None else onnx_file.staged(json) as path:
        with display.progress_bar() as advance:
            result = whole_models.bench_models(plan, advance, quick=quick)
        if path is not None:
            path.write_text(display.as_json(result.to_dict()) + "\n", encoding="utf-8")
    for title, (table, right) in model_report.titled_tables(result).items():
        display.out.print()
        display.print_line(title)
        display.out.print(display.simple_table(*table, right=right))


def _show_survey(result: Any, *, json: bool) -> None:
    from fgq import display

    if json:
        display.print_json(result.to_dict())
        return
    converted = result.converted_bytes > 0
    display.print_layers(result.layers, converted=converted)
    count = sum(layer.is_converted for layer in result.layers)
    verb = "are quantized" if converted else "would be converted"
    display.out.print(f"\n{count} of {len(result.layers)} layers with weights {verb}")


def _open_data(model: Path, data: str, split: Any) -> Any:
    from fgq.eval.datasets import open_dataset

    return open_dataset(data, model, split)


def _calibration_data(model: Path, data: str) -> Any:
    from fgq.eval.datasets import calibration_data

    return calibration_data(data, model)


class _Stopped(BaseException):
    """A signal asked the program to end; no handler of errors on the way up takes it for one."""


def main() -> None:
    """Run the command line; a refusal is one line and exit code 2, a signal one line and 128 + its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may lack the letters of a layer's name
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, _stop)
    warnings.showwarning = _show_warning
    logging.getLogger().addHandler(logging.NullHandler())  # what libraries log is in our errors, or no matter
    try:
        app()
    except FgqError as error:
        _fail(str(error), 2)
    except _Stopped as stopped:
        number = stopped.args[0]
        _fail(f"stopped by {number.name}", 128 + number)


def _stop(number: int, frame: object) -> NoReturn:
    raise _Stopped(signal.Signals(number))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"fgq: warning: {printable(str(message))}", file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    print(f"fgq: error: {printable(message)}", file=sys.stderr)
    sys.exit(code)
