"""The study as a whole: what is finished becomes a table, plots and sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgq.errors import DataError
from fgq.eval.pareto import latency, plot, table
from fgq.eval.pareto.points import Plan
from fgq.eval.pareto.sweep import finished, jobs_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is finished of a plan.

    Parameters
    ----------
    networks : tuple of Network
    dominance : dict of str to dict of str to float
        By cost and precision, see `fgq.eval.pareto.table.dominance`.
    missing : tuple of str
        The names of the points that are not finished.
    seconds : float
        Processor time of the finished trainings.
    """

    networks: tuple[table.Network, ...]
    dominance: dict[str, dict[str, float]]
    missing: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the study as plain values."""
        return asdict(self)


def collect(plan: Plan, folder: Path) -> Study:
    """Read what a folder holds of a plan.

    Parameters
    ----------
    plan : Plan
    folder : Path

    Raises
    ------
    DataError
        If no point is finished, or a file of the folder is damaged.
    """
    jobs = jobs_of(plan, folder)
    results = finished(jobs)
    if not results:
        raise DataError(f"{folder}: found no finished point of this plan, wanted at least one")
    found = table.networks(results, latency.read(folder))
    return Study(
        networks=tuple(found),
        dominance=table.dominance(found),
        missing=tuple(job.point.name for job in jobs if not job.is_done),
        seconds=sum(result.seconds for result in results),
    )


def write(study: Study, folder: Path) -> list[Path]:
    """Write ``pareto.csv``, ``pareto.png`` and ``pareto.svg``, and return their paths.

    Parameters
    ----------
    study : Study
    folder : Path

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    OutputError
        If a file cannot be written.
    """
    lines, *images = (folder / f"pareto.{suffix}" for suffix in ("csv", "png", "svg"))
    table.write_csv(study.networks, lines)
    plot.draw(study.networks, images)
    return [lines, *images]
