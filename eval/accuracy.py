"""Top-1 accuracy of classifiers on the same samples, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fgq.data.inputs import InputSpec
from fgq.data.samples import Samples
from fgq.data.sources import as_batches
from fgq.errors import DataError, first_line
from fgq.quantization.statistics import Estimate, paired_bootstrap, wilson_interval

BATCH = 64
"""Samples that are run together, where the model leaves the batch size open."""


class Runner(Protocol):
    """What evaluation needs of a runtime: onnxruntime's InferenceSession and `fgq.Session` have it."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Compute outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The top-1 accuracy of one model.

    Parameters
    ----------
    samples : int
    top1 : Estimate
        With its 95 % Wilson interval.
    difference : Estimate or None
        From the first model, with the 95 % interval of the paired bootstrap; None for the first itself.
    predictions : ndarray of int64, shape (samples,)
    """

    samples: int
    top1: Estimate
    difference: Estimate | None
    predictions: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the predictions, as plain values."""
        return {
            "samples": self.samples,
            "top1": asdict(self.top1),
            "difference": None if self.difference is None else asdict(self.difference),
        }


def top1(
    sessions: Mapping[str, Runner],
    samples: Samples,
    progress: Callable[[str, int, int | None], None] | None = None,
    inputs: Sequence[InputSpec] = (),
) -> dict[str, Accuracy]:
    """Measure classifiers on the same samples.

    Parameters
    ----------
    sessions : mapping of str to session
        The classifiers by name; the first output of each holds a score per class on its last axis.
    samples : Samples
        With labels. Those that do not fill a fixed batch are left out, with a warning.
    progress : callable, optional
        Called as ``progress(name, done, total)``.
    inputs : sequence of InputSpec
        The inputs of the models (`fgq.data.inputs.input_specs`), where their batch size may be fixed.

    Returns
    -------
    dict of str to Accuracy
        In the order of `sessions`.

    Raises
    ------
    DataError
        If the samples have no labels, or more classes than a model, or a model cannot run on them, or
        gives something else than a score per class.
    """
    if samples.labels is None:
        raise DataError("evaluation data: found no labels, wanted a class for each sample (key 'labels')")
    results: dict[str, Accuracy] = {}
    first: NDArray[np.bool_] | None = None
    for name, session in sessions.items():
        predictions = _predict(name, session, samples, progress, inputs)
        hits = predictions == samples.labels[: len(predictions)]
        correct = int(hits.sum())
        estimate = Estimate(correct / hits.size, *wilson_interval(correct, hits.size))
        results[name] = Accuracy(
            samples=hits.size,
            top1=estimate,
            difference=None if first is None else paired_bootstrap(hits, first),
            predictions=predictions,
        )
        first = hits if first is None else first
    return results


def _predict(
    name: str,
    session: Runner,
    samples: Samples,
    progress: Callable[[str, int, int | None], None] | None,
    inputs: Sequence[InputSpec],
) -> NDArray[np.int64]:
    predictions: list[NDArray[np.int64]] = []
    done = 0
    for feed in as_batches(samples, inputs, BATCH):
        length = len(next(iter(feed.values())))
        scores = _scores(name, session, feed, length)
        highest = 0 if samples.labels is None else int(samples.labels.max())
        if highest >= scores.shape[1]:
            raise DataError(f"{name}: found label {highest} for a model of {scores.shape[1]} classes")
        predictions.append(scores.argmax(axis=1))
        done += length
        if progress is not None:
            progress(name, done, len(samples))
    return np.concatenate(predictions).astype(np.int64)


def _scores(name: str, session: Runner, feed: Mapping[str, NDArray[Any]], length: int) -> NDArray[Any]:
    """Return the first output, [length, classes]."""
    try:
        scores = session.run(None, feed)[0]
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise DataError(f"{name}: cannot run on the samples ({first_line(error)})") from None
    found = f"shape {list(scores.shape)}" if isinstance(scores, np.ndarray) else type(scores).__name__
    if not isinstance(scores, np.ndarray) or scores.ndim < 2 or scores.shape[0] != length:
        raise DataError(
            f"{name}: found a first output of {found} for {length} samples, "
            "wanted a score per class for each sample"
        )
    if scores.dtype.kind not in "fiu" or np.isnan(scores).any():
        raise DataError(f"{name}: found {scores.dtype} scores that are no numbers, wanted numbers")
    return scores.reshape(length, -1)
