"""The tables of docs/accuracy.md: what conversion costs on the bundled network and on MiniLM.

::

    python -m fgq.eval.characters.render --split test --count 50000 --out test50000.npz
    python -m fgq.eval.tables --out docs/accuracy.md --images test50000.npz

Its tables are replaced (`fgq.eval.markdown`). MiniLM needs the extra ``text``, and the recipe
``reconstruct`` the extra ``train``.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from fgq.config import Activations, ConversionConfig, Recipe
from fgq.conversion.pipeline import convert_file
from fgq.converters.self_check import onnxruntime_session
from fgq.converters.survey import inspect
from fgq.data.array_checks import LABELS
from fgq.data.inputs import input_specs
from fgq.data.samples import Samples, as_samples
from fgq.errors import DataError
from fgq.eval import characters
from fgq.eval.accuracy import top1
from fgq.eval.command import run_command
from fgq.eval.datasets import CHARACTERS, DOCSTRINGS, calibration_data, open_dataset
from fgq.eval.docstrings import docstring_pairs
from fgq.eval.markdown import check_places, markdown_table, rewrite
from fgq.eval.minilm import export_minilm
from fgq.eval.retrieval import evaluate
from fgq.eval.torch_export import save_onnx
from fgq.format import onnx_file
from fgq.quantization.scheme import Codes
from fgq.report import Report
from fgq.runtime import Session
from fgq.support.progress import Progress
from fgq.support.temporary import temporary_folder


def _config(
    recipe: Recipe, group_size: int, codes: Codes | None = None, activations: Activations = Activations.INT8
) -> ConversionConfig:
    return ConversionConfig(recipe=recipe, group_size=group_size, weights=codes, activations=activations)


CONFIGS = (
    _config(Recipe.FGQ, 4),
    _config(Recipe.CALIBRATED, 4),
    _config(Recipe.FGQ, 64),
    _config(Recipe.CALIBRATED, 64),
    _config(Recipe.RECONSTRUCT, 64),
    _config(Recipe.CALIBRATED, 64, Codes.TIED),
    ConversionConfig(recipe=Recipe.CALIBRATED, group_size=64, target_bits=3),
    _config(Recipe.CALIBRATED, 64, Codes.INT4),
    _config(Recipe.OMSE, 64),
    ConversionConfig(recipe=Recipe.OMSE, group_size=64, smooth=True),
    _config(Recipe.FGQ, 64, Codes.INT8),  # the control: what all but the low bits costs
    _config(Recipe.CALIBRATED, 4, activations=Activations.INT4),
    _config(Recipe.OMSE, 64, activations=Activations.INT4),
)
"""What each network is converted to."""

DESCRIPTION = ("recipe", "weights", "activations", "bits a weight", "file, kB", "multiplications removed")
"""The columns that describe a file, see `Converted.cells`."""

TABLES = ("environment", "characters", "engines", "minilm")
"""The tables' names in the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A converted file.

    Parameters
    ----------
    config : ConversionConfig
    path : Path
    report : Report
    """

    config: ConversionConfig
    path: Path
    report: Report

    @property
    def cells(self) -> list[str]:
        """The cells of a table that describe the file."""
        return [
            *_setting(self.config),
            f"{self.report.bits_per_weight:.2f}",
            _kilobytes(self.path),
            f"{100 * (self.report.multiplications_removed or 0):.1f} %",
        ]


def convert_all(
    model: Path, configs: Sequence[ConversionConfig], data: str, folder: Path, progress: Progress
) -> list[Converted]:
    """Convert a model in several ways; what the folder holds already is taken as it is.

    Parameters
    ----------
    model : Path
    configs : sequence of ConversionConfig
    data : str
        The data set whose calibration part is taken (`fgq.eval.datasets.calibration_data`).
    folder : Path
        Where the files are written.
    progress : callable
        Called as ``progress(stage, done, total)``.
    """
    samples = calibration_data(data, model)
    converted = []
    for config in configs:
        path = folder / f"{model.stem}-{'-'.join(_setting(config)).replace(' ', '-')}.onnx"
        if not path.exists():
            convert_file(model, path, config, samples, partial(_prefixed, progress, path.stem))
        converted.append(Converted(config=config, path=path, report=inspect(path, config)))
    return converted


def _prefixed(progress: Progress, name: str, stage: str, done: int, total: int | None) -> None:
    progress(f"{name}: {stage}", done, total)


def environment() -> str:
    """Say what the tables were made with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "onnx", "numpy", "numba"))
    return f"fgq {version('fgq')}, Python {platform.python_version()}, {packages}, {platform.machine()}."


def characters_table(converted: Sequence[Converted], samples: Samples, progress: Progress) -> str:
    """Return accuracy in onnxruntime beside what each file saves."""
    paths = {"float": characters.MODEL} | {entry.path.stem: entry.path for entry in converted}
    sessions = {name: onnxruntime_session(path, name) for name, path in paths.items()}
    exact, *results = top1(sessions, samples, progress).values()
    columns = [*DESCRIPTION, "top-1", "less float"]
    rows = [["", "float", "float", "32", _kilobytes(characters.MODEL), "0 %", exact.top1.percent(2), ""]]
    for entry, result in zip(converted, results, strict=True):
        assert result.difference is not None
        rows.append([*entry.cells, result.top1.percent(2), result.difference.percent(2)])
    return markdown_table(columns, rows) + f"\n\n{exact.samples:,} images."


def engines_table(converted: Sequence[Converted], samples: Samples, progress: Progress) -> str:
    """Return accuracy in both engines, and how often they name another class."""
    rows = []
    for entry in converted:
        path = entry.path
        ours, theirs = top1(
            {
                f"{path.stem} (fgq)": Session(path, allow_float=True),
                path.stem: onnxruntime_session(path, path.stem),
            },
            samples,
            progress,
        ).values()
        disagreements = int(np.count_nonzero(ours.predictions != theirs.predictions))
        percents = [f"{100 * result.top1.value:.2f} %" for result in (theirs, ours)]
        rows.append([*_setting(entry.config), *percents, f"{disagreements} of {ours.samples}"])
    return markdown_table([*DESCRIPTION[:3], "onnxruntime", "fgq", "predictions that differ"], rows)


def minilm_table(folder: Path, progress: Progress) -> str:
    """Return how well all-MiniLM-L6-v2 still retrieves, in onnxruntime."""
    model = folder / "minilm.onnx"
    if not model.exists():
        save_onnx(export_minilm(), model)
    converted = convert_all(model, CONFIGS, DOCSTRINGS, folder, progress)
    paths = {"float": model} | {entry.path.stem: entry.path for entry in converted}
    corpus = docstring_pairs()
    sessions = {name: onnxruntime_session(path, name) for name, path in paths.items()}
    exact, *results = evaluate(sessions, corpus.test).values()
    columns = [*DESCRIPTION, "reciprocal rank", "of float", "less float", "cosine to float"]
    whole = exact.reciprocal_rank
    rows = [["", "float", "float", "32", _kilobytes(model), "0 %", str(whole), "1", "", ""]]
    for entry, result in zip(converted, results, strict=True):
        rank = result.reciprocal_rank
        share = f"{rank.value / whole.value:.3f}"
        rows.append([*entry.cells, str(rank), share, str(result.difference), str(result.cosine)])
    return (
        markdown_table(columns, rows) + f"\n\n{len(corpus.test)} pairs; corpus sha256 {corpus.sha256[:16]}..."
    )


def _setting(config: ConversionConfig) -> list[str]:
    mixed = config.target_bits is not None
    weights = f"{config.target_bits:g} bits N={config.group_size}" if mixed else str(config.weight_scheme)
    activations = f"{config.activations} smooth" if config.smooth else str(config.activations)
    return [str(config.recipe), weights, activations]


def _kilobytes(path: Path) -> str:
    return f"{path.stat().st_size / 1000:,.0f}"


def _images(path: Path) -> Samples:
    split = characters.read(path)
    inputs = input_specs(onnx_file.load(characters.MODEL))
    return as_samples({inputs[0].name: split.images, LABELS: split.labels}, inputs)


def main(
    out: Annotated[Path, typer.Option(help="The document whose tables to replace.")],
    images: Annotated[
        Path | None, typer.Option(help="Images to measure on in place of the committed 10,240.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep the converted models in this folder, and take those that it holds."),
    ] = None,
    tables: Annotated[
        list[str] | None, typer.Option("--table", help=f"Only this one of {', '.join(TABLES)}.")
    ] = None,
) -> None:
    """Measure, and replace the tables of a document."""
    wanted = tables or TABLES
    for name in wanted:
        if name not in TABLES:
            raise DataError(f"table {name!r}: not known, wanted one of {', '.join(TABLES)}")
    check_places(out, wanted)
    found = {}
    with temporary_folder() as scratch, Console(stderr=True).status("") as status:
        folder = scratch if keep is None else keep
        folder.mkdir(parents=True, exist_ok=True)

        def progress(stage: str, done: int, total: int | None) -> None:
            status.update(stage if total is None else f"{stage} {done}/{total}")

        if "environment" in wanted:
            found["environment"] = environment()
        if {"characters", "engines"} & set(wanted):
            committed = open_dataset(CHARACTERS, characters.MODEL, "test")
            converted = convert_all(characters.MODEL, CONFIGS, CHARACTERS, folder, progress)
        if "characters" in wanted:
            samples = committed if images is None else _images(images)
            found["characters"] = characters_table(converted, samples, progress)
        if "engines" in wanted:
            found["engines"] = engines_table(converted, committed, progress)
        if "minilm" in wanted:
            found["minilm"] = minilm_table(folder, progress)
    rewrite(out, found)


if __name__ == "__main__":
    run_command(main)
