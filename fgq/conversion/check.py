"""The samples on which a conversion is checked, and what the model that came in gives for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.original import Original, Outputs, check_prepared, run
from fgq.converters.self_check import few_samples
from fgq.data.feed import Feed
from fgq.data.inputs import InputSpec, has_open_batch
from fgq.errors import DataError, ModelError, first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckData:
    """A few samples, and what the model that came in gives for them.

    Parameters
    ----------
    feed : mapping of str to ndarray
    outputs : mapping of str to ndarray, or None
        By the names of the outputs; None where the model does not run on random data.
    data : str
        What the samples are, for the report.
    warnings : tuple of str
        What the prepared float graph does otherwise than the model (`fgq.converters.original`).
    divisible : bool
        Whether the model runs on some of the samples of a feed.
    """

    feed: Feed
    outputs: Outputs | None
    data: str
    warnings: tuple[str, ...]
    divisible: bool


def check_data(
    original: Original, model: ir.Model, specs: Sequence[InputSpec], feeds: Iterator[Feed] | None
) -> tuple[CheckData, Iterator[Feed] | None]:
    """Set aside a few samples, of the calibration data or else random ones, and run both models on them.

    Parameters
    ----------
    original : Original
    model : onnx_ir.Model
        The prepared float model.
    specs : sequence of InputSpec
    feeds : iterator of feed, or None
        The calibration data.

    Returns
    -------
    CheckData, iterator of feed or None
        The calibration data again, from the first.

    Raises
    ------
    ModelError
        If onnxruntime refuses the model, or the prepared one: the message says which.
    DataError
        If the model cannot run on the calibration data.
    """
    if feeds is None:
        feed = {spec.name: _random_input(spec) for spec in specs}
        tries = [feed]
    else:
        first = next(feeds)
        feeds = chain([first], feeds)
        # where the first axis is none of samples, the model may refuse a part of it
        tries = [few_samples(first, has_open_batch(specs)), first]
    session, note = original.open()
    outputs = None
    for feed in tries:
        try:
            outputs = run(session, feed)
            break
        except Exception as error:  # onnxruntime's exceptions share no other base
            reason = first_line(error)
    no_run = "calibration data: the model cannot run on them"
    if outputs is None and feeds is not None:  # the model may well not run on random data
        raise DataError(f"{no_run} ({reason})")
    del session  # two large models need not be in memory at once
    found: list[str] = []
    try:
        found = list(check_prepared(original, model, feed, outputs))
    except ModelError:
        refusal = "" if outputs is None else original.refuses(feed)
        if not refusal:
            raise
        if feeds is not None:
            raise DataError(f"{no_run} ({refusal})") from None
        outputs = None
    warnings = (*filter(None, [note]), *found)
    data = "random data" if feeds is None else "calibration data"
    divisible = has_open_batch(specs) and feed is tries[0]
    return CheckData(feed=feed, outputs=outputs, data=data, warnings=warnings, divisible=divisible), feeds


def _random_input(spec: InputSpec) -> NDArray[np.generic]:
    rng = np.random.default_rng(0)
    shape = tuple(size if isinstance(size, int) else 2 for size in spec.shape)
    if spec.dtype == object:
        return np.full(shape, "", object)
    if spec.dtype.kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return np.ones(shape, spec.dtype)
