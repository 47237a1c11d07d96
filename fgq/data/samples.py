"""Samples for a model's inputs: parts that are read one after the other, or arrays in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fgq.data.array_checks import (
    LABELS,
    check_arrays,
    check_headers,
    checked_labels,
    has_labels,
    is_one_sample,
)
from fgq.data.feed import Feed, count_samples, cut_feed, join_feeds, joinable, refuse_not_finite, with_text
from fgq.data.inputs import InputSpec
from fgq.data.npz import Header
from fgq.errors import ConfigError


class Part(Protocol):
    """Samples that are read together: an .npz file, an image, or arrays already in memory."""

    def __len__(self) -> int: ...

    def read(self) -> Feed:
        """Return the samples."""


class Samples:
    """Samples for a model's inputs, read part by part while batches are drawn.

    At most two parts (files) and one batch are in memory; the samples can be gone through many times.

    Parameters
    ----------
    parts : sequence of parts
        Where the samples come from, in order.
    labels : ndarray of int64, shape (len(self),), optional
        The class of each sample.
    limit : int, optional
        Only so many samples, the first ones.
    whole : bool
        Whether each part is one sample, which is never cut: the model's inputs have no batch axis in common.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        labels: NDArray[np.int64] | None = None,
        limit: int | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._parts, self.whole = parts, whole
        self._limit = limit
        self.labels = None if labels is None else labels[:limit]

    def __len__(self) -> int:
        length = sum(len(part) for part in self._parts)
        return length if self._limit is None else min(length, self._limit)

    def first(self, count: int) -> Samples:
        """Return the first `count` samples, or all where there are fewer."""
        return Samples(self._parts, self.labels, min(count, len(self)), whole=self.whole)

    def batches(self, size: int) -> Iterator[Feed]:
        """Yield the samples in order, `size` at a time.

        Parameters
        ----------
        size : int
            Samples in a batch. A batch is shorter at the end, and where the next file's samples have
            another shape (a model with axes of any length): samples are never padded.

        Yields
        ------
        dict of str to ndarray
            An array with a leading batch axis for each input.

        Raises
        ------
        ConfigError
            If `size` is below 1.
        DataError
            If a file cannot be read after all or a float array holds NaN or infinity.
        """
        if size < 1:
            raise ConfigError(f"batch size: found {size}, wanted a whole number of at least 1")
        pending: list[Feed] = []
        left = len(self)
        for part in self._parts:
            if left == 0:
                break
            if self.whole:
                yield part.read()
                left -= 1
                continue
            feed = cut_feed(part.read(), 0, left)
            left -= count_samples(feed)
            if pending and joinable(feed) != joinable(pending[0]):
                yield join_feeds(pending)
                pending = []
            start, length = 0, count_samples(feed)
            while start < length:
                taken = min(size - sum(map(count_samples, pending)), length - start)
                pending.append(cut_feed(feed, start, start + taken))
                start += taken
                if sum(map(count_samples, pending)) == size:
                    yield join_feeds(pending)
                    pending = []
        if pending:
            yield join_feeds(pending)


def as_samples(
    arrays: Mapping[str, NDArray[Any]], inputs: Sequence[InputSpec], *, where: str = "arrays"
) -> Samples:
    """Check arrays in memory against a model's inputs.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        One array for each input with a leading sample axis, and optionally ``labels``.
    inputs : sequence of InputSpec
        The model's inputs.
    where : str
        What errors call the arrays.

    Returns
    -------
    Samples

    Raises
    ------
    DataError
        As `load_samples`, naming the array.
    """
    check_arrays(arrays, where)
    headers = {name: Header(array.shape, array.dtype) for name, array in arrays.items()}
    whole = is_one_sample(headers, inputs)
    length = check_headers(headers, inputs, where, whole=whole)
    labels = checked_labels(arrays[LABELS], where) if has_labels(headers, inputs) else None
    given = {spec.name: arrays[spec.name] for spec in inputs}
    return Samples([_Arrays(given, length)], labels, whole=whole)


@dataclass(frozen=True, slots=True)
class _Arrays:
    arrays: Feed
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self) -> Feed:
        refuse_not_finite(self.arrays, "arrays")
        return with_text(self.arrays)
