"""What a study of the group size found, as values and as CSV."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fgq.config import Recipe
from fgq.eval.evaluation import as_text
from fgq.format import onnx_file
from fgq.quantization.statistics import Estimate
from fgq.report import LayerReport, Report

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a model takes.

    Parameters
    ----------
    weights_per_scale : float or None
        Mean over the layers whose additions replace multiplications; below N where a layer has fewer input
        channels or a shorter last group. None where there is no such layer.
    bits_per_weight : float
        As stored, scales counted, over all layers.
    multiplications_left : float or None
        The share that additions do not replace; None where it is unknown.
    bytes : int
        Of the file, external data counted.
    layers : str
        How many layers got what, and why where it is not what was asked for.
    engines_equal : bool or None
        Whether onnxruntime and fgq gave equal outputs; None where this was not run.
    """

    weights_per_scale: float | None
    bits_per_weight: float
    multiplications_left: float | None
    bytes: int
    layers: str
    engines_equal: bool | None

    @classmethod
    def of(cls, report: Report) -> Costs:
        """Return what a conversion's report says of its file."""
        removed, check = report.multiplications_removed, report.self_check
        return cls(
            weights_per_scale=_weights_per_scale(report.layers),
            bits_per_weight=report.bits_per_weight,
            multiplications_left=None if removed is None else 1 - removed,
            bytes=report.converted_bytes,
            layers=_described(report.layers),
            engines_equal=None if check is None else all(output.engines_equal for output in check.outputs),
        )

    @classmethod
    def of_float(cls, size: int) -> Costs:
        """Return those of a float model of so many bytes."""
        return cls(
            weights_per_scale=None,
            bits_per_weight=32.0,
            multiplications_left=1.0,
            bytes=size,
            layers="",
            engines_equal=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a model does.

    Parameters
    ----------
    samples : int
    measures : dict of str to Estimate
        As in `fgq.eval.evaluation.Row`.
    difference : Estimate or None
        Of the first measure, from the float model; None for that itself.
    """

    samples: int
    measures: Mapping[str, Estimate]
    difference: Estimate | None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Quality:
        """Return what `dataclasses.asdict` was called on."""
        difference = plain["difference"]
        return cls(
            samples=plain["samples"],
            measures={name: Estimate(**values) for name, values in plain["measures"].items()},
            difference=None if difference is None else Estimate(**difference),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualities:
    """How well a converted model does, and its float model on the same samples.

    Parameters
    ----------
    exact, converted : Quality
    """

    exact: Quality
    converted: Quality

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Qualities:
        """Return what `dataclasses.asdict` was called on."""
        return cls(**{name: Quality.from_dict(quality) for name, quality in plain.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model of a study.

    Parameters
    ----------
    recipe : Recipe or None
        None for the float model.
    group_size : int or None
        N, as asked for.
    costs : Costs
    quality : Quality
    milliseconds : dict of str to float
        The median time of a call, by engine.
    """

    recipe: Recipe | None
    group_size: int | None
    costs: Costs
    quality: Quality
    milliseconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All that a study found.

    Parameters
    ----------
    model, data : str
    activations : str
    threads, batch : int
        Of the timings.
    engines : tuple of str
        What was timed.
    busy : bool or None
        Whether other processes were at work during the timings; None where this is not known.
    rows : tuple of Row
        The float model first, then each recipe's sizes in rising order.
    """

    model: str
    data: str
    activations: str
    threads: int
    batch: int
    engines: tuple[str, ...]
    busy: bool | None
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the study as plain values."""
        return asdict(self)

    @property
    def measures(self) -> list[str]:
        """The names of what was measured, that which counts first."""
        return list(self.rows[0].quality.measures)

    def csv_table(self) -> tuple[list[str], list[list[Cell]]]:
        """Return column names and a line for each row, as they stand in the CSV file."""
        lines = [self._cells(row) for row in self.rows]
        return list(lines[0]), [list(line.values()) for line in lines]

    def _cells(self, row: Row) -> dict[str, Cell]:
        first = self.measures[0]
        estimates: dict[str, Estimate | None] = {**row.quality.measures}
        estimates[f"{first}_less_float"] = row.quality.difference
        costs, times = asdict(row.costs), row.milliseconds
        layers, equal = costs.pop("layers"), costs.pop("engines_equal")
        return {
            "recipe": "float" if row.recipe is None else row.recipe.value,
            "group_size": row.group_size,
            **costs,
            "samples": row.quality.samples,
            **{
                f"{name}{end}": None if estimate is None else getattr(estimate, field)
                for name, estimate in estimates.items()
                for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
            **{f"{engine}_ms": times.get(engine) for engine in self.engines},
            "timings_disturbed": self.busy,
            "engines_equal": equal,
            "layers": layers,
        }


def write_csv(study: Study, path: Path) -> None:
    """Write the table of a study; what is not known or not to be had is an empty cell.

    Parameters
    ----------
    study : Study
    path : Path

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    columns, lines = study.csv_table()
    with (
        onnx_file.staged(path) as staged,
        staged.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_plain(cell) for cell in line] for line in lines])


def summary(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return column names and cells for a reader; shares are in percent, times in milliseconds.

    Parameters
    ----------
    study : Study
    """
    first = study.measures[0]
    columns = ["recipe", "N", "weights a scale", "bits a weight", "kB", "multiplications left"]
    columns += [*study.measures, f"{first} less float", *(f"{_spaced(name)}, ms" for name in study.engines)]
    return columns, [_summary_cells(study, row) for row in study.rows]


def _summary_cells(study: Study, row: Row) -> list[str]:
    costs, quality = row.costs, row.quality
    return [
        "float" if row.recipe is None else row.recipe.value,
        "" if row.group_size is None else str(row.group_size),
        "" if costs.weights_per_scale is None else f"{costs.weights_per_scale:.4g}",
        f"{costs.bits_per_weight:.2f}",
        f"{costs.bytes / 1e3:,.0f}",
        "" if costs.multiplications_left is None else f"{100 * costs.multiplications_left:.1f} %",
        *(as_text(name, estimate) for name, estimate in quality.measures.items()),
        "" if quality.difference is None else as_text(study.measures[0], quality.difference),
        *(f"{row.milliseconds[name]:.3f}" if name in row.milliseconds else "" for name in study.engines),
    ]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _plain(cell: Cell) -> Cell:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.6g}" if isinstance(cell, float) else cell


def _weights_per_scale(layers: Sequence[LayerReport]) -> float | None:
    """Return weights over scales: one multiplication remains for each scale."""
    grouped = [layer for layer in layers if layer.scheme.startswith(("ternary", "tied"))]
    scales = sum(layer.weights * (1 - layer.multiplications_removed) for layer in grouped)
    return sum(layer.weights for layer in grouped) / scales if scales else None


def _described(layers: Sequence[LayerReport]) -> str:
    counts = Counter(f"{layer.scheme} ({layer.reason})" if layer.reason else layer.scheme for layer in layers)
    return "; ".join(f"{count} x {what}" for what, count in counts.items())
