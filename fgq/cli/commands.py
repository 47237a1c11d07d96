"""All commands of `fgq`, and how their errors reach the terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from importlib.metadata import version as package_version
from io import TextIOWrapper
from typing import Annotated, TextIO

import typer

from fgq.cli.bench import bench
from fgq.cli.compare import compare
from fgq.cli.convert import convert
from fgq.cli.evaluate import evaluate
from fgq.cli.export import export
from fgq.cli.finetune import finetune
from fgq.cli.inspect import inspect
from fgq.cli.pareto import pareto
from fgq.cli.report import report
from fgq.cli.run import run
from fgq.cli.study import study
from fgq.cli.warmup import warmup
from fgq.errors import FgqError, printable, unexpected

app = typer.Typer(
    name="fgq",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (convert, inspect):
    app.command()(command)
app.command("eval")(evaluate)
for command in (compare, report, finetune, pareto, run, warmup, export):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")


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
