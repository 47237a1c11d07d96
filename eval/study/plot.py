"""The plot of a study of the group size: what N costs above, what it saves below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fgq.config import Recipe
from fgq.errors import ConfigError
from fgq.eval.study.latency import ONNXRUNTIME
from fgq.eval.study.rows import Row, Study
from fgq.format import onnx_file
from fgq.quantization.statistics import Estimate

_RECIPES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"))
"""Colours that stay apart for the colour-blind (Okabe and Ito), and markers."""

_GREY = "#555555"

_DODGE = 1.07
"""By what the marks of two recipes at one N stand apart, so that their intervals can be told."""

_COSTS = {
    "bits": ("bits a weight", "#000000", "o"),
    "multiplications": ("multiplications left", "#cc79a7", "s"),
    "onnxruntime": ("time, onnxruntime", "#56b4e9", "v"),
    "fgq": ("time, fgq", "#009e73", "^"),
    "fgq_multiplication_free": ("time, fgq without multiplications", "#e69f00", "D"),
}


def draw_group_size(study: Study, paths: Sequence[Path]) -> None:
    """Draw accuracy with its intervals, and costs in percent of the float model's, over N.

    Parameters
    ----------
    study : Study
    paths : sequence of Path
        Images to write, .svg or .png.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    OutputError
        If an image cannot be written.
    """
    matplotlib()  # or say how to install it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.1))
    _draw_quality(above, study)
    _draw_costs(below, study)
    sizes = sorted({row.group_size for row in study.rows if row.group_size is not None})
    below.set_xscale("log", base=2)
    below.set_xticks(sizes, [str(size) for size in sizes])
    below.set_xticks([], minor=True)
    below.set_xlabel("group size N: weights that share one scale")
    finish(figure, paths, dpi=150)


def finish(figure: Any, paths: Sequence[Path], *, dpi: int) -> None:
    """Give all axes of a figure the look of the studies, and write it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    paths : sequence of Path
        Images to write, .svg or .png.
    dpi : int
        Dots an inch of pixel images.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    OutputError
        If an image cannot be written.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    for path in paths:
        svg = path.suffix == ".svg"
        # The same figures give the same file.
        with onnx_file.staged(path) as staged, matplotlib().rc_context({"svg.hashsalt": "fgq"}):
            figure.savefig(staged, dpi=dpi, metadata={"Date": None} if svg else None)


def matplotlib() -> Any:
    """Return the module matplotlib.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("plot: found no matplotlib, wanted it: pip install 'fgq[report]'") from None
    return mpl


def _draw_quality(axes: Any, study: Study) -> None:
    measure = study.measures[0]
    factor, unit = (100, ", %") if measure == "top1" else (1, "")
    exact = study.rows[0].quality.measures[measure]
    axes.axhspan(factor * exact.low, factor * exact.high, color=_GREY, alpha=0.12, linewidth=0)
    axes.axhline(factor * exact.value, color=_GREY, linewidth=1.2, label="float")
    recipes = _recipes(study)
    for place, (recipe, rows) in enumerate(recipes.items()):
        colour, marker = _RECIPES[place % len(_RECIPES)]
        found = [row.quality.measures[measure] for row in rows]
        shift = _DODGE ** (place - (len(recipes) - 1) / 2)
        axes.errorbar(
            [shift * size for size in _sizes(rows)],
            [factor * estimate.value for estimate in found],
            yerr=_arms(found, factor),
            color=colour, marker=marker, markersize=5, capsize=3, linewidth=1.3, label=recipe.value,
        )  # fmt: skip
    axes.set_ylabel(f"{measure.replace('_', ' ')}{unit}")
    samples = study.rows[0].quality.samples
    title = f"{study.model}: {samples:,} samples of {Path(study.data).name}, {study.activations} activations"
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, title="95 % intervals", title_fontsize=9, alignment="left")


def _draw_costs(axes: Any, study: Study) -> None:
    exact = study.rows[0]
    axes.set_yscale("log", subs=(1, 2, 5))
    distinct: dict[tuple[float | None, ...], list[Recipe]] = {}
    recipes = _recipes(study)
    for recipe, rows in recipes.items():
        costs = tuple(x for row in rows for x in (row.costs.bits_per_weight, row.costs.multiplications_left))
        distinct.setdefault(costs, []).append(recipe)
    for (first, *_), dashes in zip(distinct.values(), ("-", "--", ":"), strict=False):
        rows = recipes[first]
        suffix = f" ({first.value})" if len(distinct) > 1 else ""
        for key, (label, colour, marker) in _COSTS.items():
            shares = [(row.group_size, _share(row, exact, key)) for row in rows]
            known = [(size, 100 * share) for size, share in shares if share is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=5,
                          linewidth=1.3, linestyle=dashes, label=label + suffix)  # fmt: skip
    axes.axhline(100, color=_GREY, linewidth=1.2)
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.set_ylabel("% of the float model's")
    threads = f"{study.threads} thread{'s' if study.threads > 1 else ''}"
    disturbed = ", other processes at work" if study.busy else ""
    axes.set_title(f"costs; times: {threads}, batch {study.batch}{disturbed}", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _share(row: Row, exact: Row, key: str) -> float | None:
    """Return a cost as a share of the float model's; None where it is not known."""
    if key == "bits":
        return row.costs.bits_per_weight / exact.costs.bits_per_weight
    if key == "multiplications":
        return row.costs.multiplications_left
    taken = row.milliseconds.get(key)
    return None if taken is None else taken / exact.milliseconds[ONNXRUNTIME]


def _recipes(study: Study) -> dict[Recipe, list[Row]]:
    found: dict[Recipe, list[Row]] = {}
    for row in study.rows:
        if row.recipe is not None:
            found.setdefault(row.recipe, []).append(row)
    return found


def _sizes(rows: Iterable[Row]) -> list[int]:
    return [row.group_size for row in rows if row.group_size is not None]


def _arms(estimates: Sequence[Estimate], factor: float) -> list[list[float]]:
    """Return the lengths of the error bars below and above the values."""
    return [
        [factor * (estimate.value - estimate.low) for estimate in estimates],
        [factor * (estimate.high - estimate.value) for estimate in estimates],
    ]
