"""`fgq eval`: models side by side on one data set, whatever it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgq.converters.self_check import onnxruntime_session
from fgq.converters.survey import model_bytes
from fgq.data.inputs import input_specs
from fgq.errors import DataError, FgqError, first_line
from fgq.eval.accuracy import top1
from fgq.eval.datasets import DOCSTRINGS, open_dataset
from fgq.format import onnx_file
from fgq.quantization.statistics import Estimate
from fgq.runtime import Session
from fgq.support.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one model in one engine reached.

    Parameters
    ----------
    model, engine : str
    bytes : int
        The size of the model, external data counted.
    samples : int
    measures : dict of str to Estimate
        What was measured, each with its 95 % interval: ``top1`` as a share, or ``reciprocal_rank``,
        ``top1`` and ``cosine``.
    difference : Estimate or None
        Of the first measure, from the first row; None in the first row.
    """

    model: str
    engine: str
    bytes: int
    samples: int
    measures: Mapping[str, Estimate]
    difference: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)


def evaluate(
    models: Sequence[Path], data: str, engines: Sequence[str], limit: int | None, progress: Progress
) -> list[Row]:
    """Measure each model in each engine on the same samples.

    Parameters
    ----------
    models : sequence of Path
    data : str
        As for `fgq.eval.datasets.open_dataset`; ``docstrings`` measures retrieval, all else top-1.
    engines : sequence of str
        ``fgq`` and ``onnxruntime``.
    limit : int or None
        Only so many samples, the first ones.
    progress : callable
        Called as ``progress(name, done, total)``.

    Raises
    ------
    FgqError
        If a model or the data cannot be used.
    """
    # Read by fgq first: it says more of a damaged file than onnxruntime, and refuses data from elsewhere.
    sizes = {str(path): model_bytes(path, onnx_file.load(path)) for path in models}
    sessions = {(path, engine): _session(path, engine) for path in sizes for engine in engines}
    named = {f"{model} ({engine})": session for (model, engine), session in sessions.items()}
    if data == DOCSTRINGS and not Path(data).exists():
        measured = _retrieval(named, limit)
    else:
        measured = _classification(named, models[0], data, limit, progress)
    return [
        Row(
            model=model,
            engine=engine,
            bytes=sizes[model],
            samples=samples,
            measures=measures,
            difference=difference,
        )
        for (model, engine), (samples, measures, difference) in zip(sessions, measured, strict=True)
    ]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return column names and cells; shares are in percent."""
    measures = list(rows[0].measures)
    columns = ["model", "engine", "MB", *measures, f"{measures[0]} less first"]
    cells = []
    for row in rows:
        figures = [as_text(name, estimate) for name, estimate in row.measures.items()]
        difference = "" if row.difference is None else as_text(measures[0], row.difference)
        cells.append([row.model, row.engine, f"{row.bytes / 1e6:.2f}", *figures, difference])
    return columns, cells


_Measured = tuple[int, Mapping[str, Estimate], Estimate | None]


def as_text(name: str, estimate: Estimate) -> str:
    """Return what was measured under a name, in the unit that it is told in."""
    return estimate.percent(2) if name == "top1" else str(estimate)


def _session(path: str, engine: str) -> Any:
    return Session(path, allow_float=True) if engine == "fgq" else onnxruntime_session(Path(path), path)


def _classification(
    sessions: Mapping[str, Any], model: Path, data: str, limit: int | None, progress: Progress
) -> list[_Measured]:
    samples, inputs = open_dataset(data, model, "test"), input_specs(onnx_file.load(model))
    if limit is not None:
        samples = samples.first(limit)
    return [
        (result.samples, {"top1": result.top1}, result.difference)
        for result in top1(sessions, samples, progress, inputs).values()
    ]


def _retrieval(sessions: Mapping[str, Any], limit: int | None) -> list[_Measured]:
    from fgq.eval import retrieval
    from fgq.eval.docstrings import docstring_pairs

    pairs = docstring_pairs().test[:limit]
    try:
        found = retrieval.evaluate(sessions, pairs)
    except FgqError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise DataError(f"{DOCSTRINGS}: a model cannot run on it ({first_line(error)})") from None
    return [
        (
            len(pairs),
            {"reciprocal_rank": one.reciprocal_rank, "top1": one.top1, "cosine": one.cosine},
            one.difference if index else None,
        )
        for index, one in enumerate(found.values())
    ]
