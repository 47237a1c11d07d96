"""What is fed to a model at once: arrays by the names of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import DataError

Feed = dict[str, NDArray[Any]]
"""One batch: an array for each of the model's inputs, by name. Arrays without axes hold for every sample."""


def count_samples(feed: Feed) -> int:
    """Return how long the first axis is; 1 where no array has one."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def cut_feed(feed: Feed, start: int, stop: int) -> Feed:
    """Return some of the samples."""
    return {name: array[start:stop] if array.ndim else array for name, array in feed.items()}


def joinable(feed: Feed) -> dict[str, Any]:
    """Return what feeds have in common that may be joined: shapes of samples, and the values without axes."""
    return {name: array.shape[1:] if array.ndim else array.item() for name, array in feed.items()}


def join_feeds(feeds: Sequence[Feed]) -> Feed:
    """Return the samples of all as one feed."""
    if len(feeds) == 1:
        return feeds[0]
    return {
        name: np.concatenate([feed[name] for feed in feeds]) if array.ndim else array
        for name, array in feeds[0].items()
    }


def refuse_not_finite(feed: Mapping[str, NDArray[Any]], where: str | Path) -> None:
    """Refuse NaN and infinity.

    Minus infinity stands in attention masks: it passes here, and is refused where a layer reads it.

    Raises
    ------
    DataError
        Naming the array and how many of its values are such.
    """
    for name, array in feed.items():
        if np.issubdtype(array.dtype, np.floating):
            bad = array.size - np.count_nonzero(np.isfinite(array) | np.isneginf(array))
            if bad:
                raise DataError(f"{where}: found {bad} NaN or infinite values in {name!r}, wanted none")


def with_text(feed: Feed) -> Feed:
    """Return the same, with NumPy's own text as the objects that onnxruntime reads."""
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in feed.items()}
