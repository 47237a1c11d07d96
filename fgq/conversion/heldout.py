"""Samples that a conversion never sees, and what the converted model loses on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from fgq.converters.self_check import onnxruntime_session
from fgq.data.feed import Feed
from fgq.errors import DataError, first_line
from fgq.format.outputs import Float, class_scores, classifier_output
from fgq.quantization.statistics import Estimate, bootstrap_interval, paired_bootstrap, wilson_interval
from fgq.report import HeldOutCheck

Labelled = tuple[Feed, NDArray[np.int64] | None]
"""A batch, and the classes of its samples where they are known."""

SHARE = 5
"""One sample of so many is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Samples to measure on.

    Parameters
    ----------
    batches : sequence of (feed, labels)
    scores : str or None
        The output that scores classes, if there is one.
    """

    batches: Sequence[Labelled]
    scores: str | None


def held_out(model: ir.Model, batches: Sequence[Labelled]) -> HeldOut:
    """Say how samples measure a model: by the classes that it names, or by its outputs as they are.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    batches : sequence of (feed, labels)
        At least one.
    """
    labelled = all(labels is not None for _, labels in batches)
    return HeldOut(batches=batches, scores=classifier_output(model, labelled=labelled))


def set_aside(batches: Sequence[Labelled], free_batch: bool) -> tuple[list[Labelled], list[Labelled]]:
    """Part data into those to calibrate on and a fifth to measure on, drawn at random with a fixed seed.

    Parameters
    ----------
    batches : sequence of (feed, labels)
    free_batch : bool
        Whether batches may be cut; otherwise whole ones are held out.

    Returns
    -------
    kept, aside : list of (feed, labels)
        `aside` is empty where there are too few.
    """
    sizes = [_samples(feed) for feed, _ in batches]
    cut = free_batch and None not in sizes
    units = [size or 0 for size in sizes] if cut else [1] * len(sizes)
    taken = np.zeros(sum(units), bool)
    taken[np.random.default_rng(0).permutation(taken.size)[: taken.size // SHARE]] = True
    parts = np.split(taken, np.cumsum(units)[:-1])
    kept: list[Labelled] = []
    aside: list[Labelled] = []
    for batch, rows in zip(batches, parts, strict=True):
        for target, mask in ((kept, ~rows), (aside, rows)):
            if mask.any():
                target.append(_rows(batch, mask) if cut else batch)
    return kept, aside


def measure(original: onnxruntime.InferenceSession, converted: Path, data: HeldOut) -> HeldOutCheck:
    """Run both models on samples held out, batch by batch, and compare.

    Parameters
    ----------
    original : onnxruntime.InferenceSession
        The model that came in.
    converted : Path
    data : HeldOut

    Returns
    -------
    HeldOutCheck

    Raises
    ------
    FgqError
        If a model cannot run on the samples, or labels do not fit its classes.
    """
    runs = _runs(original, converted, data.batches)
    if data.scores is None:
        noise, power = (
            np.concatenate(parts) for parts in zip(*(_energies(run) for run in runs), strict=True)
        )
        mean = power.mean(axis=0)
        losses = (noise[:, mean > 0] / mean[mean > 0]).sum(axis=1)
        return _check("relative squared error", losses.mean(), bootstrap_interval(losses), len(losses))
    place = [output.name for output in original.get_outputs()].index(data.scores)
    first, second, true = [], [], []
    for run in runs:
        exact = class_scores(run.exact[place])
        first.append(exact.argmax(axis=1))
        second.append(class_scores(run.found[place]).argmax(axis=1))
        if run.labels is not None:
            true.append(_fitting(run.labels, exact))
    mine, theirs = np.concatenate(first), np.concatenate(second)
    if len(true) < len(first):
        moved = int(np.count_nonzero(mine != theirs))
        return _check("top-1 agreement", moved / mine.size, wilson_interval(moved, mine.size), mine.size)
    labels = np.concatenate(true)
    loss = paired_bootstrap(mine == labels, theirs == labels)
    return _check("top-1", loss.value, (loss.low, loss.high), mine.size)


class _Run(NamedTuple):
    """The outputs of both models for one batch."""

    exact: Sequence[NDArray[Any]]
    found: Sequence[NDArray[Any]]
    labels: NDArray[np.int64] | None
    samples: int | None


def _runs(
    original: onnxruntime.InferenceSession, converted: Path, batches: Sequence[Labelled]
) -> Iterator[_Run]:
    found = onnxruntime_session(converted, "converted model")
    names = [output.name for output in original.get_outputs()]
    for feed, labels in batches:
        exact, outputs = (
            _outputs(session, name, names, feed)
            for session, name in ((original, "the model"), (found, "the converted model"))
        )
        yield _Run(exact, outputs, labels, _samples(feed))


def _outputs(
    session: onnxruntime.InferenceSession, name: str, names: Sequence[str], feed: Feed
) -> Sequence[NDArray[Any]]:
    try:
        outputs: Sequence[NDArray[Any]] = session.run(names, feed)
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise DataError(f"held-out data: {name} cannot run on them ({first_line(error)})") from None
    return outputs


def _energies(run: _Run) -> tuple[Float, Float]:
    """Return what of each float output was lost, and had been there: (samples, outputs), or (1, outputs)."""
    pairs = [
        (mine.astype(np.float64), theirs)
        for mine, theirs in zip(run.exact, run.found, strict=True)
        if mine.dtype.kind == "f"
    ]
    by_sample = all(mine.shape[:1] == (run.samples,) for mine, _ in pairs)
    rows = run.samples if by_sample and run.samples else 1
    noise = [np.square(theirs - mine).reshape(rows, -1).sum(axis=1) for mine, theirs in pairs]
    power = [np.square(mine).reshape(rows, -1).sum(axis=1) for mine, _ in pairs]
    return np.stack(noise, axis=1), np.stack(power, axis=1)


def _check(measure: str, loss: float, interval: tuple[float, float], samples: int) -> HeldOutCheck:
    points = (100 * float(value) for value in (loss, *interval))
    return HeldOutCheck(measure=measure, samples=samples, loss=Estimate(*points))


def _fitting(labels: NDArray[np.int64], scores: Float) -> NDArray[np.int64]:
    if labels.max() >= scores.shape[1]:
        raise DataError(
            f"held-out data: found label {labels.max()}, wanted a class of the model's {scores.shape[1]}"
        )
    return labels


def _samples(feed: Feed) -> int | None:
    """Return how many samples a batch holds; None where its arrays share no first axis."""
    lengths = {len(array) for array in feed.values() if array.ndim}
    return lengths.pop() if len(lengths) == 1 else None


def _rows(batch: Labelled, mask: NDArray[np.bool_]) -> Labelled:
    feed, labels = batch
    rows = {name: array[mask] if array.ndim else array for name, array in feed.items()}
    return rows, None if labels is None else labels[mask]
