"""Arrays against the inputs that they are named for: nothing is cast, renamed or guessed.

What does not fit is refused with its file, what was found and what was wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.data.inputs import InputSpec, axes_elsewhere, has_open_batch
from fgq.data.npz import Header
from fgq.errors import DataError

_LARGEST_LABEL = 2**31 - 1

LABELS = "labels"
"""The key of class labels in an .npz file, unless the model has an input of that name."""


def has_labels(names: Iterable[str], inputs: Sequence[InputSpec]) -> bool:
    """Tell whether one of the arrays holds class labels."""
    return LABELS in names and all(spec.name != LABELS for spec in inputs)


def is_one_sample(headers: Mapping[str, Header], inputs: Sequence[InputSpec]) -> bool:
    """Tell whether arrays fit the inputs as one sample, which has no batch axis to be cut along."""
    if has_open_batch(inputs) or LABELS in headers:
        return False
    sizes: dict[str, set[int]] = {}
    for spec in inputs:
        header = headers.get(spec.name)
        if header is None or not _fits(header.shape, spec.shape):
            return False
        for axis, size in zip(spec.shape, header.shape, strict=True):
            if isinstance(axis, str):
                sizes.setdefault(axis, set()).add(size)
    return bool(axes_elsewhere(inputs)) and all(len(found) == 1 for found in sizes.values())


def check_headers(
    headers: Mapping[str, Header], inputs: Sequence[InputSpec], where: str | Path, *, whole: bool
) -> int:
    """Return how many samples the arrays hold, if they fit the inputs.

    Parameters
    ----------
    headers : mapping of str to Header
        The types and shapes of the arrays.
    inputs : sequence of InputSpec
    where : str or Path
        What an error calls the data.
    whole : bool
        Whether the arrays are one sample, without a sample axis.

    Raises
    ------
    DataError
        If names, types, shapes or lengths do not fit.
    """
    wanted = [spec.name for spec in inputs]
    allowed = [*wanted, LABELS] if has_labels(headers, inputs) else wanted
    if set(headers) != set(allowed):
        raise DataError(
            f"{where}: found the keys {list(headers)}, wanted {wanted} (the model's inputs) "
            f"and perhaps {LABELS!r}"
        )
    for spec in inputs:
        axes = ("samples", *spec.shape[1:]) if spec.shape and not whole else spec.shape
        check_header(headers[spec.name], spec, axes, where)
    if whole:
        return 1
    lengths = {name: header.shape[0] for name, header in headers.items() if header.shape}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: found unequal numbers of samples {lengths}, wanted one number")
    length = min(lengths.values(), default=1)  # inputs without axes alone
    if length < 1:
        raise DataError(f"{where}: found no samples, wanted at least one")
    return length


def check_header(
    found: Header, spec: InputSpec, axes: tuple[int | str | None, ...], where: str | Path
) -> None:
    """Check the type and shape of an array.

    Parameters
    ----------
    found : Header
    spec : InputSpec
        The input that the array is named for.
    axes : tuple of int, str or None
        The shape that is wanted; a str or None is an axis of any length.
    where : str or Path
        What an error calls the data.

    Raises
    ------
    DataError
        If they are others.
    """
    same = found.dtype == spec.dtype or (found.dtype.kind == "U" and spec.dtype == object)
    if not same or not _fits(found.shape, axes):
        wanted = InputSpec(name=spec.name, dtype=spec.dtype, shape=axes)
        hint = "" if same else "; data are not cast: save them in the wanted type"
        raise DataError(f"{where}: found {spec.name}: {found}, wanted {wanted}{hint}")


def _fits(shape: Sequence[int], axes: Sequence[int | str | None]) -> bool:
    return len(shape) == len(axes) and all(
        not isinstance(wanted, int) or wanted == found for found, wanted in zip(shape, axes, strict=True)
    )


def checked_labels(labels: NDArray[Any], where: str | Path) -> NDArray[np.int64]:
    """Return class labels, int64.

    Raises
    ------
    DataError
        If they are no whole numbers of 0 or more along one axis.
    """
    wanted = "wanted one whole number of 0 or more for each sample"
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(f"{where}: found labels {labels.dtype}{list(labels.shape)}, {wanted}")
    for label in (labels.min(), labels.max()):
        if not 0 <= label <= _LARGEST_LABEL:
            raise DataError(f"{where}: found the label {label}, {wanted}")
    return labels.astype(np.int64)


def check_arrays(feed: Any, where: str) -> None:
    """Check that something is a mapping of names to arrays.

    Raises
    ------
    DataError
        If it is anything else.
    """
    if not isinstance(feed, Mapping):
        raise DataError(f"{where}: found {type(feed).__name__}, wanted a dict of arrays by input name")
    for name, array in feed.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where}: found {type(array).__name__} in {name!r}, wanted a numpy array")
