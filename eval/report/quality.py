"""What a model is worth before and after: on labelled data its accuracy, else how alike the outputs are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.converters.self_check import onnxruntime_session
from fgq.data.inputs import input_specs
from fgq.data.samples import Samples
from fgq.data.sources import as_batches
from fgq.errors import DataError, first_line
from fgq.eval.accuracy import BATCH
from fgq.eval.datasets import DOCSTRINGS
from fgq.eval.evaluation import evaluate
from fgq.format import onnx_file
from fgq.quantization.statistics import Estimate, bootstrap_interval, wilson_interval
from fgq.support.progress import Progress

SHARES = {"top1", "agreement"}
"""The measures that are shares of samples; all others are means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One quality of both models, with 95 % intervals.

    Parameters
    ----------
    name : str
        ``top1``, ``reciprocal_rank`` or ``cosine`` as in `fgq.eval.evaluation`; without labels ``agreement``
        (the share of samples for which the largest score is of the same class as the float model's),
        ``cosine`` and ``relative_error`` (``|y' - y| / |y|`` of a sample's first output, the mean).
    before : Estimate or None
        Of the float model; None where the measure compares both.
    after : Estimate
        Of the converted one.
    difference : Estimate or None
        Of the two on the same samples, where it was measured.
    """

    name: str
    before: Estimate | None
    after: Estimate
    difference: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The measures of both models.

    Parameters
    ----------
    samples : int
    measures : tuple of Measure
        The first is the one that matters; empty if there was a problem.
    problem : str
        Why nothing could be measured, or an empty string.
    """

    samples: int
    measures: tuple[Measure, ...]
    problem: str = ""


def measure_quality(
    models: tuple[Path, Path], data: str, samples: Samples, limit: int | None, progress: Progress
) -> Quality:
    """Measure the float and the converted model in onnxruntime, on the same samples.

    Parameters
    ----------
    models : tuple of Path
        The float model and the converted one.
    data : str
        As for `fgq.eval.datasets.open_dataset`.
    samples : Samples
        What it holds.
    limit : int or None
        Only so many samples, the first ones.
    progress : callable
        Called as ``progress(name, done, total)``.

    Raises
    ------
    ModelError
        If a model cannot be read.
    """
    try:
        if samples.labels is None and (data != DOCSTRINGS or Path(data).exists()):
            return _likeness(models, samples if limit is None else samples.first(limit), progress)
        before, after = evaluate(models, data, ["onnxruntime"], limit, progress)
    except DataError as error:  # outputs that are no numbers: what the rest of the report explains
        return Quality(samples=0, measures=(), problem=str(error))
    first = next(iter(after.measures))
    return Quality(
        samples=after.samples,
        measures=tuple(
            Measure(
                name=name,
                # Each is compared with the float model, which is no news of the float model itself.
                before=None if name == "cosine" else before.measures[name],
                after=estimate,
                difference=after.difference if name == first else None,
            )
            for name, estimate in after.measures.items()
        ),
    )


def _likeness(models: tuple[Path, Path], samples: Samples, progress: Progress) -> Quality:
    """Compare the first outputs of two models sample by sample."""
    inputs = input_specs(onnx_file.load(models[0]))
    sessions = [onnxruntime_session(path, str(path)) for path in models]
    parts: list[NDArray[np.float64]] = []
    alike: list[NDArray[np.bool_]] = []
    done = 0
    for feed in as_batches(samples, inputs, BATCH):
        length = len(next(iter(feed.values())))
        f, c = _outputs(models, sessions, feed, length)
        if f.ndim == 2 and f.shape[1] > 1:
            alike.append(f.argmax(axis=1) == c.argmax(axis=1))
        f, c = f.reshape(length, -1), c.reshape(length, -1)
        dot = (f * c).sum(axis=1)
        parts.append(np.stack([np.linalg.norm(f, axis=1), np.linalg.norm(c, axis=1), dot,
                               np.linalg.norm(f - c, axis=1)]))  # fmt: skip
        done += length
        progress("compare outputs", done, len(samples))
    exact, found, dot, error = np.concatenate(parts, axis=1)
    known = exact > 0  # an output of zeros has no direction, and nothing to be relative to
    if not known.any():
        raise DataError("float model: found nothing but zeros in its first output, wanted something else")
    length_product = np.where(known & (found > 0), exact * found, np.inf)
    return Quality(
        samples=done,
        measures=(
            *_agreement(alike),
            _mean("cosine", (dot / length_product)[known]),
            _mean("relative_error", error[known] / exact[known]),
        ),
    )


def _outputs(
    models: tuple[Path, Path], sessions: Sequence[Any], feed: dict[str, NDArray[Any]], length: int
) -> Iterator[NDArray[np.float64]]:
    """Yield the first output of each model as float64, its first axis the samples."""
    shapes = set()
    for path, session in zip(models, sessions, strict=True):
        try:
            output = session.run(None, feed)[0]
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise DataError(f"{path}: cannot run on the data ({first_line(error)})") from None
        is_numeric = isinstance(output, np.ndarray) and output.dtype.kind in "fiu"
        if not is_numeric or output.shape[:1] != (length,) or not output.size:
            raise DataError(f"{path}: found a first output that has no numbers for each sample, wanted some")
        if not np.isfinite(output).all():
            raise DataError(f"{path}: found NaN or infinity in its first output, wanted finite numbers")
        shapes.add(output.shape)
        if len(shapes) > 1:
            raise DataError(f"{path}: found a first output {list(output.shape)}, unlike the float model's")
        yield output.astype(np.float64)


def _agreement(alike: Sequence[NDArray[np.bool_]]) -> Iterator[Measure]:
    if alike:
        hits = np.concatenate(alike)
        agreeing = int(hits.sum())
        share = Estimate(agreeing / hits.size, *wilson_interval(agreeing, hits.size))
        yield Measure(name="agreement", before=None, after=share, difference=None)


def _mean(name: str, values: NDArray[np.float64]) -> Measure:
    estimate = Estimate(float(values.mean()), *bootstrap_interval(values))
    return Measure(name=name, before=None, after=estimate, difference=None)
