"""The plots of the study: accuracy against each cost with the Pareto front, and the generalization gap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgq.eval.pareto.front import front
from fgq.eval.pareto.points import FLOAT, PRECISIONS
from fgq.eval.pareto.table import COSTS, Network, known
from fgq.eval.study.plot import finish, matplotlib

_STYLES = dict(
    zip(
        PRECISIONS,
        (
            ("#000000", "o"),
            ("#0072b2", "s"),
            ("#56b4e9", "D"),
            ("#009e73", "^"),
            ("#d55e00", "v"),
            ("#e69f00", "v"),
            ("#cc79a7", "P"),
            ("#8c5c7e", "P"),
            ("#b8a800", "X"),
        ),
        strict=True,
    )
)
"""Colours after Okabe and Ito, which the colour-blind can tell apart, and markers."""


_WIDE = 1000
"""A range of costs that has enough powers of ten to label them alone."""


def draw(found: Sequence[Network], paths: Sequence[Path]) -> None:
    """Draw accuracy against each known cost, and training less test accuracy by precision.

    Parameters
    ----------
    found : sequence of Network
        At least one.
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

    costs = [cost for cost in COSTS if known(found, cost)]
    lines = -(-(len(costs) + 1) // 2)
    figure = Figure(figsize=(11, 4 * lines + 0.6), layout="constrained")
    places = list(figure.subplots(lines, 2, squeeze=False).flat)
    for axes, cost in zip(places, costs, strict=False):
        _draw_cost(axes, found, cost)
    _draw_gap(places[len(costs)], found)
    for axes in places[len(costs) + 1 :]:
        axes.set_visible(False)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    finish(figure, paths, dpi=130)


def _draw_cost(axes: Any, found: Sequence[Network], cost: str) -> None:
    pairs = known(found, cost)
    for precision, (colour, marker) in _STYLES.items():
        own = sorted(
            ((value, network) for network, value in pairs if network.precision == precision),
            key=lambda pair: pair[0],
        )
        if not own:
            continue
        values, tests = [value for value, _ in own], [100 * network.test for _, network in own]
        kept = front(values, tests)
        axes.plot([values[i] for i in kept], [tests[i] for i in kept], color=colour, linewidth=1.1)
        axes.errorbar(
            values, tests, yerr=[100 * (network.deviation or 0.0) for _, network in own],
            color=colour, marker=marker, markersize=5, linestyle="none", elinewidth=0.8, label=precision,
        )  # fmt: skip
    values, tests = [value for _, value in pairs], [100 * network.test for network, _ in pairs]
    kept = front(values, tests)
    axes.step([values[i] for i in kept], [tests[i] for i in kept], where="post", color="#999999",
              linewidth=4, alpha=0.45, zorder=0, label="Pareto front")  # fmt: skip
    _scale(axes.xaxis, wide=max(values) > _WIDE * min(values), whole=cost != "milliseconds")
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel("test top-1, %")


def _scale(axis: Any, *, wide: bool, whole: bool) -> None:
    """Make an axis logarithmic, counts as 20 M; on a narrow one also label values between powers of ten."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(EngFormatter() if whole else StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_gap(axes: Any, found: Sequence[Network]) -> None:
    sizes = sorted({(network.width, network.depth) for network in found})
    for precision, (colour, marker) in _STYLES.items():
        own = {(n.width, n.depth): 100 * n.gap for n in found if n.precision == precision}
        at = [place for place, size in enumerate(sizes) if size in own]
        line = "--" if precision == FLOAT else "-"
        axes.plot(at, [own[sizes[place]] for place in at], color=colour, marker=marker, markersize=5,
                  linewidth=1.1, linestyle=line)  # fmt: skip
    names = [f"width {width:g}" + (f",\n+{depth} blocks" if depth else "") for width, depth in sizes]
    axes.set_xticks(range(len(sizes)), names, fontsize=9)
    axes.set_ylabel("generalization gap, points")
