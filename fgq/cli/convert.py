"""The command `fgq convert`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fgq.cli.options import Json, ModelPath, takes_conversion_options
from fgq.config import ConversionConfig, read_config
from fgq.errors import ConfigError, FgqError, OutputError, printable
from fgq.support import stopping

Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT", help="File to write.")]
PlanFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Give each layer the scheme that a plan says (JSON).")
]
PlanOut = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the plan, for --plan to take back.")
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Samples of the model's input: an .npz with an array per input, a folder of .npz files or "
        "of images, or the name of a data set (characters, docstrings).",
    ),
]
HeldOutData = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Samples to measure the result on, with labels if there are any.  [default for plans: a "
        "fifth of the calibration data, which is then not calibrated on]",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="These options, from a TOML or JSON file.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")]
ReportOut = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the report as JSON.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the layers that an interrupted conversion has finished."),
]


@takes_conversion_options(
    before={"activations": ("plan", "save_plan"), "form": ("calibration_data", "held_out_data")}
)
def convert(
    model: ModelPath,
    output: Output = None,
    *,
    plan: PlanFile = None,
    save_plan: PlanOut = None,
    calibration_data: CalibrationData = None,
    held_out_data: HeldOutData = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    report: ReportOut = None,
    resume: Resume = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Convert a float model to ternary weights, run the result, and say what was done.

    Example: `fgq convert resnet50.onnx -o resnet50.ternary.onnx --calibration-data images/`
    """
    chosen = ConversionConfig(**({} if config is None else read_config(config)) | options)

    from fgq.cli import display
    from fgq.conversion import files, pipeline
    from fgq.eval import datasets
    from fgq.plan import read_plan

    if dry_run:
        _survey(model, chosen, planned=plan is not None or save_plan is not None, json=json)
        return
    if output is None:
        raise OutputError("output: found none, wanted -o OUT, or --dry-run to write nothing")
    samples = None
    if calibration_data is not None:
        samples = datasets.calibration_data(calibration_data, model)
        files.refuse_same_file(calibration_data, output)
    held_out = None if held_out_data is None else datasets.open_dataset(held_out_data, model, "test")
    given_plan = None if plan is None else read_plan(plan)
    if save_plan is not None and given_plan is None and not chosen.is_planned:
        raise ConfigError("--save-plan: found no plan to save, wanted --target-bits or another target")
    read = (model, output, calibration_data, held_out_data, config, plan)
    _refuse_same((report, read), (save_plan, (*read, report)), (output, (held_out_data, plan)))
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


def _survey(model: Path, config: ConversionConfig, *, planned: bool, json: bool) -> None:
    """Say what would be done."""
    from fgq.cli.inspect import show_survey
    from fgq.converters import survey

    if planned:
        raise ConfigError(
            "--dry-run: found --plan or --save-plan with it, wanted none of them; it plans nothing"
        )
    show_survey(survey.survey(model, config), json=json)


def _refuse_same(*pairs: tuple[Path | None, Sequence[Path | str | None]]) -> None:
    """Refuse to write a file over another of the same command: of each pair, the first over the others."""
    from fgq.conversion.files import refuse_same_file

    for written, others in pairs:
        for other in others:
            if written is not None and other is not None:
                refuse_same_file(other, written)


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
