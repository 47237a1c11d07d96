"""Batches that fit a model, from any source of data that a caller may have."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fgq.data.array_checks import check_arrays, check_header
from fgq.data.feed import Feed, count_samples, refuse_not_finite, with_text
from fgq.data.inputs import InputSpec
from fgq.data.npz import Header
from fgq.data.samples import Samples, as_samples
from fgq.errors import DataError


@runtime_checkable
class CalibrationReader(Protocol):
    """What onnxruntime's ``CalibrationDataReader`` promises."""

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the next feed, or None after the last."""


_FeedSource = CalibrationReader | Iterable[Mapping[str, NDArray[Any]]]

Source = Samples | Mapping[str, NDArray[Any]] | _FeedSource
"""What calibration accepts: samples, a reader, arrays with a leading sample axis, or feeds one by one."""


def as_batches(source: Source, inputs: Sequence[InputSpec], batch_size: int) -> Iterator[Feed]:
    """Turn any source of data into checked batches that fit a model.

    Samples and arrays are cut into batches of `batch_size`, or of the model's own batch size where that
    is fixed; then a shorter batch cannot be run and is dropped with a warning. Feeds from a reader or an
    iterable are checked and passed on as they are.

    Parameters
    ----------
    source : Samples, reader with ``get_next``, mapping of arrays, or iterable of feeds
        Where the data come from.
    inputs : sequence of InputSpec
        The model's inputs.
    batch_size : int
        Samples in a batch, where the model leaves the choice.

    Yields
    ------
    dict of str to ndarray
        An array for each input.

    Raises
    ------
    DataError
        If data do not fit the inputs, hold NaN or infinity, or make no batch at all.
    """
    return (feed for feed, _ in labelled_batches(source, inputs, batch_size))


def labelled_batches(
    source: Source, inputs: Sequence[InputSpec], batch_size: int
) -> Iterator[tuple[Feed, NDArray[np.int64] | None]]:
    """Yield the batches of `as_batches` with the classes of their samples, where these are known."""
    if isinstance(source, Mapping):
        source = as_samples(source, inputs)
    if isinstance(source, Samples):
        yield from _sample_batches(source, inputs, batch_size)
    else:
        yield from ((feed, None) for feed in _checked_feeds(source, inputs))


def _sample_batches(
    samples: Samples, inputs: Sequence[InputSpec], batch_size: int
) -> Iterator[tuple[Feed, NDArray[np.int64] | None]]:
    fixed = {spec.name: spec.fixed_batch for spec in inputs if spec.fixed_batch is not None}
    if len(set(fixed.values())) > 1:
        raise DataError(
            f"model inputs: found fixed first axes {fixed}, wanted one batch size; give feeds from a reader"
        )
    size = next(iter(fixed.values()), batch_size)
    done = dropped = 0
    if samples.whole:
        yield from ((feed, None) for feed in samples.batches(1))
        return
    for feed in samples.batches(size):
        start, done = done, done + count_samples(feed)
        if fixed and count_samples(feed) < size:
            dropped += count_samples(feed)
        else:
            yield feed, None if samples.labels is None else samples.labels[start:done]
    if dropped == len(samples):
        raise DataError(f"data source: found {dropped} samples, wanted the model's fixed batch of {size}")
    if dropped:
        warnings.warn(
            f"{dropped} of {len(samples)} samples do not fill the model's fixed batch of {size}: not used",
            stacklevel=2,
        )


def _checked_feeds(source: _FeedSource, inputs: Sequence[InputSpec]) -> Iterator[Feed]:
    wanted = [spec.name for spec in inputs]
    count = 0
    for feed in _feeds(source):
        count += 1
        where = f"feed {count}"
        check_arrays(feed, where)
        if set(feed) != set(wanted):
            raise DataError(f"{where}: found the keys {list(feed)}, wanted {wanted} (the model's inputs)")
        for spec in inputs:
            array = feed[spec.name]
            check_header(Header(array.shape, array.dtype), spec, spec.shape, where)
        refuse_not_finite(feed, where)
        yield with_text(dict(feed))
    if count == 0:
        raise DataError("data source: found no feeds, wanted at least one")


def _feeds(source: _FeedSource) -> Iterator[Mapping[str, NDArray[Any]]]:
    if isinstance(source, CalibrationReader):
        while (feed := source.get_next()) is not None:
            yield feed
    else:
        yield from source
