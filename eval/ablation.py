"""What each step of the recipe `calibrated` brings: the tables of docs/recipes.md.

::

    python -m fgq.eval.ablation --out docs/recipes.md --keep build/ablation

Networks are converted with all steps, and with each left out, on three draws of calibration samples; they
are measured on test data that no conversion sees. MiniLM needs the extra ``text``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from fgq.config import ConversionConfig, Recipe, Step
from fgq.conversion.pipeline import convert_file
from fgq.converters.self_check import onnxruntime_session
from fgq.data.feed import Feed
from fgq.data.inputs import input_specs
from fgq.data.sources import as_batches
from fgq.errors import DataError
from fgq.eval import characters
from fgq.eval.accuracy import top1
from fgq.eval.command import run_command
from fgq.eval.datasets import CHARACTERS, DOCSTRINGS, FEED, calibration_data, open_dataset
from fgq.eval.docstrings import docstring_pairs
from fgq.eval.markdown import check_places, markdown_table, rewrite
from fgq.eval.minilm import export_minilm
from fgq.eval.retrieval import evaluate
from fgq.eval.torch_export import save_onnx
from fgq.format import onnx_file

NETWORKS = (CHARACTERS, "minilm")

GROUP_SIZE = 64
SEEDS = 3

VARIANTS = {
    "nearest groups (`fgq`)": ConversionConfig(recipe=Recipe.FGQ, group_size=GROUP_SIZE),
    "all steps": ConversionConfig(recipe=Recipe.CALIBRATED, group_size=GROUP_SIZE),
} | {
    f"without {step}": ConversionConfig(recipe=Recipe.CALIBRATED, group_size=GROUP_SIZE, without=(step,))
    for step in Step
}
"""What is compared."""

_IMAGES = 512
_TEXTS = 200


class Measured(NamedTuple):
    """What a converted network reaches: one number for each column of its table."""

    first: float
    second: float


class Network(NamedTuple):
    """A network to convert and to measure.

    Parameters
    ----------
    model : Path
    draws : list of lists of feed
        Calibration data by seed.
    measure : callable
        Takes the converted files.
    columns : tuple of str
        What is measured, with its unit.
    """

    model: Path
    draws: list[list[Feed]]
    measure: Callable[[Sequence[Path]], list[Measured]]
    columns: tuple[str, str]


def characters_network() -> Network:
    """Return the bundled network, with draws of 512 of its 1,024 calibration images."""
    model = characters.MODEL
    samples = open_dataset(CHARACTERS, model, "calibration")
    (whole,) = samples.batches(len(samples))
    draws: list[list[Feed]] = []
    for seed in range(SEEDS):
        places = np.random.default_rng(seed).choice(len(samples), _IMAGES, replace=False)
        draws.append(
            [{name: array[few] for name, array in whole.items()} for few in np.split(places, _IMAGES // FEED)]
        )

    def measure(paths: Sequence[Path]) -> list[Measured]:
        test = open_dataset(CHARACTERS, model, "test")
        sessions = {str(path): onnxruntime_session(path, path.name) for path in (model, *paths)}
        exact, *others = top1(sessions, test).values()
        wanted = exact.predictions
        return [
            Measured(
                100 * (exact.top1.value - other.top1.value),
                100 * float(np.mean(other.predictions != wanted)),
            )
            for other in others
        ]

    return Network(model, draws, measure, ("top-1 points lost", "other predictions than float, %"))


def minilm_network(folder: Path) -> Network:
    """Return all-MiniLM-L6-v2, with draws of about 200 of its 851 calibration texts."""
    model = folder / "minilm.onnx"
    if not model.exists():
        save_onnx(export_minilm(), model)
    feeds = list(as_batches(calibration_data(DOCSTRINGS, model), input_specs(onnx_file.load(model)), FEED))
    draws: list[list[Feed]] = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(feeds))
        sizes = np.array([len(next(iter(feeds[place].values()))) for place in order])
        draws.append([feeds[place] for place in order[: 1 + np.searchsorted(np.cumsum(sizes), _TEXTS)]])

    def measure(paths: Sequence[Path]) -> list[Measured]:
        sessions = {str(path): onnxruntime_session(path, path.name) for path in (model, *paths)}
        exact, *others = evaluate(sessions, docstring_pairs().test).values()
        whole = exact.reciprocal_rank.value
        return [Measured(other.reciprocal_rank.value / whole, other.cosine.value) for other in others]

    return Network(model, draws, measure, ("reciprocal rank, of float", "cosine to float"))


def ablation_table(network: Network, name: str, folder: Path, progress: Callable[[str], None]) -> str:
    """Convert a network in all variants on all draws, and return the table.

    Parameters
    ----------
    network : Network
    name : str
        Begins the names of the converted files.
    folder : Path
        Where they are written; what it holds already is taken as it is.
    progress : callable
        Told what is being done.
    """
    paths = {}
    for seed, draw in enumerate(network.draws):
        for place, (variant, config) in enumerate(VARIANTS.items()):
            path = folder / f"{name}-{place}-{seed}.onnx"
            progress(f"{name}, draw {seed + 1}: {variant}")
            if not path.exists():
                convert_file(network.model, path, config, draw)
            paths[variant, seed] = path
    progress(f"{name}: measuring")
    found = dict(zip(paths, network.measure(list(paths.values())), strict=True))
    rows = []
    for variant in VARIANTS:
        values = np.array([found[variant, seed] for seed in range(SEEDS)])
        full = np.array([found["all steps", seed] for seed in range(SEEDS)])
        rows.append(
            [variant, *(_spread(column) for column in values.T), *map(_signed, (values - full).mean(0))]
        )
    return markdown_table(["", *network.columns, *(f"{each}: change" for each in network.columns)], rows)


def _spread(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.3f} ({values.min():.3f} .. {values.max():.3f})"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if value else ""


def main(
    out: Annotated[Path, typer.Option(help="The document whose tables to replace.")],
    keep: Annotated[Path, typer.Option(help="Keep converted models here, and take those that it holds.")],
    networks: Annotated[
        list[str] | None, typer.Option("--network", help=f"Only this one of {', '.join(NETWORKS)}.")
    ] = None,
) -> None:
    """Measure, and replace the tables of a document."""
    keep.mkdir(parents=True, exist_ok=True)
    wanted = networks or NETWORKS
    for name in wanted:
        if name not in NETWORKS:
            raise DataError(f"network {name!r}: not known, wanted one of {', '.join(NETWORKS)}")
    tables = {f"ablation {name}": "" for name in wanted}
    check_places(out, tables)
    with Console(stderr=True).status("") as status:
        for name in wanted:
            network = characters_network() if name == CHARACTERS else minilm_network(keep)
            tables[f"ablation {name}"] = ablation_table(network, name, keep, status.update)
    rewrite(out, tables)


if __name__ == "__main__":
    run_command(main)
