"""What the study found: a line for each network, which precision dominates, CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from fgq.eval.pareto.costs import Costs
from fgq.eval.pareto.front import front, shares
from fgq.eval.pareto.latency import Latencies
from fgq.format import onnx_file

if TYPE_CHECKING:
    from fgq.eval.pareto.job import Result

COSTS = {
    "quadratic": "quadratic cost",
    "linear": "linear cost",
    "memory": "memory, bits",
    "multiplications": "multiplications left",
    "additions": "additions",
    "milliseconds": "latency, ms",
}
"""The costs with their titles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network, over its seeds.

    Parameters
    ----------
    width : float
    depth : int
    precision : str
    seeds : int
        How many were trained.
    train, test : float
        Mean top-1 accuracies, 0 to 1.
    deviation : float or None
        The standard deviation of test accuracy over seeds; None of one seed.
    costs : Costs
        Of the first seed; they differ by nothing but the sizes of files.
    milliseconds : float or None
        None where it was not measured.
    """

    width: float
    depth: int
    precision: str
    seeds: int
    train: float
    test: float
    deviation: float | None
    costs: Costs
    milliseconds: float | None

    @property
    def gap(self) -> float:
        """The generalization gap: training less test accuracy."""
        return self.train - self.test

    def cost(self, name: str) -> float | None:
        """Return a cost by its name in `COSTS`."""
        value: float | None = self.milliseconds if name == "milliseconds" else getattr(self.costs, name)
        return value


def networks(results: Sequence[Result], latencies: Latencies) -> list[Network]:
    """Join the seeds of each network, in the order in which the networks come first.

    Parameters
    ----------
    results : sequence of Result
    latencies : Latencies
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.point.network, []).append(result)
    return [
        Network(
            width=group[0].point.width,
            depth=group[0].point.depth,
            precision=group[0].point.precision,
            seeds=len(group),
            train=fmean(result.train for result in group),
            test=fmean(result.test for result in group),
            deviation=stdev(result.test for result in group) if len(group) > 1 else None,
            costs=group[0].costs,
            milliseconds=latencies.milliseconds.get(name),
        )
        for name, group in groups.items()
    ]


def known(found: Sequence[Network], cost: str) -> list[tuple[Network, float]]:
    """Return the networks of which a cost is known, with it."""
    costs = ((network, network.cost(cost)) for network in found)
    return [(network, value) for network, value in costs if value is not None]


def dominance(found: Sequence[Network]) -> dict[str, dict[str, float]]:
    """Return by cost, then by precision, the share of the range of costs in which it is the most accurate.

    `fgq.eval.pareto.front.shares` says how; costs that no network has are left out.
    """
    result = {}
    for cost in COSTS:
        curves: dict[str, list[tuple[float, float]]] = {}
        for network, value in known(found, cost):
            curves.setdefault(network.precision, []).append((value, network.test))
        if curves:
            result[cost] = shares(curves)
    return result


def write_csv(found: Sequence[Network], path: Path) -> None:
    """Write a line for each network: accuracies, costs, and in which fronts it is.

    Parameters
    ----------
    found : sequence of Network
    path : Path

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    lines = [_cells(network) for network in found]
    for cost in COSTS:
        pairs = known(found, cost)
        kept = front([value for _, value in pairs], [network.test for network, _ in pairs])
        best = {id(pairs[index][0]) for index in kept}
        for line, network in zip(lines, found, strict=True):
            line[f"{cost}_front"] = "yes" if id(network) in best else "no"
    with onnx_file.staged(path) as staged, staged.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def summary(found: Sequence[Network]) -> tuple[list[str], list[list[str]]]:
    """Return column names and a line for each network, accuracies in percent.

    Parameters
    ----------
    found : sequence of Network
    """
    columns = ["precision", "width", "depth", "seeds", "test", "+-", "gap", *COSTS.values()]
    return columns, [
        [
            network.precision,
            f"{network.width:g}",
            str(network.depth),
            str(network.seeds),
            f"{100 * network.test:.2f}",
            "" if network.deviation is None else f"{100 * network.deviation:.2f}",
            f"{100 * network.gap:.2f}",
            *("" if value is None else f"{value:.4g}" for value in map(network.cost, COSTS)),
        ]
        for network in found
    ]


def statements(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Say for each cost which precision dominates, and what the others hold.

    Parameters
    ----------
    found : mapping
        As `dominance` returns it.
    """
    sentences = []
    for cost, held in found.items():
        (first, share), *others = sorted(held.items(), key=lambda item: -item[1])
        rest = ", ".join(f"{name} {100 * part:.0f} %" for name, part in others if part >= 0.005)
        tail = f"; then {rest}" if rest else ""
        sentences.append(f"{COSTS[cost]}: {first} dominates with {100 * share:.0f} % of the range{tail}")
    return sentences


def _cells(network: Network) -> dict[str, Any]:
    cells = asdict(network)
    cells |= cells.pop("costs")
    cells["gap"] = network.gap
    return {
        name: "" if cell is None else f"{cell:.8g}" if isinstance(cell, float) else cell
        for name, cell in cells.items()
    }
