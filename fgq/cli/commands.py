"""The commands: parse, call, print."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from enum import StrEnum
from functools import partial
from importlib.metadata import version as package_version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from fgq.cli.bench import bench
from fgq.cli.finetune import finetune
from fgq.cli.pareto import pareto
from fgq.cli.report import report
from fgq.cli.study import study
from fgq.config import Activations, ConversionConfig, ExportForm, Form, Misfit, Recipe, Step, read_config
from fgq.errors import ConfigError, FgqError, OutputError, printable, unexpected
from fgq.quantization.scheme import Codes, Granularity
from fgq.support import stopping

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


app.add_typer(bench, name="bench")
app.add_typer(study, name="study")


class Engine(StrEnum):
    """What runs a model."""

    FGQ = "fgq"
    ONNXRUNTIME = "onnxruntime"
    BOTH = "both"


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
            help="How weights become integers: the paper's way, calibrated on data, calibrated and then "
            "trained block by block (extra train), or INT4 of least squared error.  "
            "[default: calibrated with calibration data, else fgq]"
        ),
    ] = None,
    without: Annotated[
        list[Step] | None,
        typer.Option(
            metavar="STEP", help="Leave a step of the recipe out (docs/recipes.md); may be repeated."
        ),
    ] = None,
    granularity: Annotated[
        Granularity | None,
        typer.Option(
            help="With omse-int4: which weights share a scale.  [default: group; filter for int8 weights]"
        ),
    ] = None,
    dual_weights: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="With omse-int4: a second INT4 tensor for layers that lose more than this share of the "
            "squared sum of their weights.  [default: 0.02]",
        ),
    ] = None,
    dual_activations: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="With 4-bit activations: a second 4-bit tensor for layers that lose more than this share of "
            "the squared sum of their input.  [default: 0.05 with omse-int4, else none]",
        ),
    ] = None,
    smooth: Annotated[
        bool | None,
        typer.Option(
            "--smooth/--no-smooth",
            help="Scale channels of activations, and weights against them, where data say that this "
            "lowers the error.  [default: with 4-bit activations]",
        ),
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(
            metavar="B",
            help="Choose ternary, tied, int4, int8 or float for each layer: at most B bits a weight.",
        ),
    ] = None,
    target_multiplications: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="The same, for at most this share of float's multiplications."),
    ] = None,
    target_latency: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="The same, for this share of float's time, estimated by timing each layer."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Plan for the fewest bits whose loss on held-out samples is at most so many points.",
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Give each layer the scheme that a plan says (JSON).")
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan, for --plan to take back.")
    ] = None,
    activations: Annotated[
        Activations | None,
        typer.Option(
            help="8- or 4-bit activations with ranges from calibration data; 8-bit ones of MatMul and Gemm "
            "with ranges found at run time, of each tensor or of each row; or float ones.  [default: int8]"
        ),
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples of the model's input: an .npz with an array per input, a folder of .npz files or "
            "of images, or the name of a data set (characters, docstrings).",
        ),
    ] = None,
    held_out_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples to measure the result on, with labels if there are any.  [default for plans: a "
            "fifth of the calibration data, which is then not calibrated on]",
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the layers that an interrupted conversion has finished."),
    ] = False,
    json: Json = False,
) -> None:
    """Convert a float model to ternary weights, run the result, and say what was done.

    Example: `fgq convert resnet50.onnx -o resnet50.ternary.onnx --calibration-data images/`
    """
    given = {
        "group_size": group_size,
        "weights": weights,
        "recipe": recipe,
        "without": without or None,
        "granularity": granularity,
        "dual_weights": dual_weights,
        "dual_activations": dual_activations,
        "smooth": smooth,
        "target_bits": target_bits,
        "target_multiplications": target_multiplications,
        "target_latency": target_latency,
        "max_drop": max_drop,
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

    from fgq.cli import display
    from fgq.conversion import files, pipeline
    from fgq.converters import survey
    from fgq.plan import read_plan

    if dry_run and (plan is not None or save_plan is not None):
        raise ConfigError(
            "--dry-run: found --plan or --save-plan with it, wanted none of them; it plans nothing"
        )
    if dry_run:
        _show_survey(survey.survey(model, chosen), json=json)
        return
    if output is None:
        raise OutputError("output: found none, wanted -o OUT, or --dry-run to write nothing")
    samples = None
    if calibration_data is not None:
        samples = _calibration_data(model, calibration_data)
        files.refuse_same_file(calibration_data, output)
    held_out = None if held_out_data is None else _open_data(model, held_out_data, "test")
    given_plan = None if plan is None else read_plan(plan)
    if save_plan is not None and given_plan is None and not chosen.is_planned:
        raise ConfigError("--save-plan: found no plan to save, wanted --target-bits or another target")
    read = (model, output, calibration_data, held_out_data, config, plan)
    for written, others in ((report, read), (save_plan, (*read, report)), (output, (held_out_data, plan))):
        for other in others:
            if written is not None and other is not None:
                files.refuse_same_file(other, written)
    # Staged before the conversion: what cannot be written is refused before the work.
    with _staged(report) as report_path, _staged(save_plan) as plan_path:
        with _unfinished(pipeline.unfinished_folder(output)), display.progress_bar() as advance:
            result = pipeline.convert_file(
                model, output, chosen, samples, advance, held_out=held_out, plan=given_plan, resume=resume
            )
        for path, value in ((report_path, result.to_dict()), (plan_path, result.plan)):
            if path is not None:
                path.write_text(display.as_json(value) + "\n", encoding="utf-8")
    if json:
        display.print_json(result.to_dict())
    else:
        display.print_report(result, str(output))


def _staged(path: Path | None) -> AbstractContextManager[Path | None]:
    from fgq.format import onnx_file

    return nullcontext() if path is None else onnx_file.staged(path)


@contextmanager
def _unfinished(folder: Path) -> Iterator[None]:
    """Say where a conversion that ends early has left its finished layers."""
    from fgq.recipes.checkpoint import tidied

    def say_what_is_kept(say: Callable[[str], None]) -> None:
        with suppress(OSError):  # where there can be no such folder
            if finished := tidied(folder):
                note = f"{finished} finished layers are kept in {folder}; --resume goes on from them"
                say(f"fgq: {printable(note)}")

    with stopping.at_stop(lambda: say_what_is_kept(stopping.say)):
        try:
            yield
        except FgqError:
            say_what_is_kept(partial(print, file=sys.stderr))
            raise


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
    from fgq.converters import survey

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
    from fgq.cli import display
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
    from fgq.cli import display
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


app.command()(report)
app.command()(finetune)
app.command()(pareto)


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
    from fgq.cli import display
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
    from fgq.cli import display
    from fgq.conversion import files

    exported = files.export_file(converted, output, form)
    if json:
        display.print_json({"output": str(output), "form": form.value, **exported._asdict()})
    else:
        display.print_line(f"runs on onnxruntime {exported.minimum_onnxruntime} or newer")
        display.print_line(f"wrote {output} ({exported.bytes} bytes)")


def _show_survey(result: Any, *, json: bool) -> None:
    from fgq.cli import display

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


_LONGEST_MESSAGE = 4000


def execute() -> int:
    """Run the command of this process's arguments, and return its exit code.

    A refusal is one line on standard error, and 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may lack the letters of a layer's name
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    logging.getLogger().addHandler(logging.NullHandler())  # what libraries log is in our errors, or no matter
    try:
        try:
            app()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except FgqError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # whoever reads the output has seen enough
        return 1
    except OSError as error:  # the machine's, of what no module foresees: standard output, above all
        where = "standard output: cannot be written" if error.filename is None else error.filename
        return _refuse(f"{where} ({error.strerror or error})")
    except MemoryError as error:
        return _refuse(
            f"memory: found too little ({str(error) or 'none left'}), wanted more for this command"
        )
    except Exception as error:  # of what no module foresees: whatever a file is, it ends in one line
        return _refuse(str(unexpected(" ".join(sys.argv[1:2]) or "fgq", error)))
    return code if isinstance(code, int) else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"fgq: warning: {printable(str(message))}", file=sys.stderr)


def _refuse(message: str) -> int:
    if len(message) > _LONGEST_MESSAGE:  # a file's names may be as long as the file
        message = f"{message[:_LONGEST_MESSAGE]} ... ({len(message)} characters)"
    print(f"fgq: error: {printable(message)}", file=sys.stderr)
    return 2
