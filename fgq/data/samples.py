"""Calibration and evaluation data: read from files, checked against the model's inputs, fed in batches.

Data are untrusted. Nothing is cast, renamed or guessed: an array fits the input it is named for or is
refused with its file, what was found and what was wanted. No pickle is loaded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fgq.data import npz
from fgq.data.feed import Feed as Feed
from fgq.data.feed import count_samples, cut_feed, join_feeds, joinable, refuse_not_finite, with_text
from fgq.data.images import IMAGE_SUFFIXES, MAX_PIXELS, read_image
from fgq.data.npz import Header
from fgq.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

_LARGEST_LABEL = 2**31 - 1

LABELS = "labels"
"""The key of class labels in an .npz file, unless the model has an input of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What a model says about one of its inputs.

    Parameters
    ----------
    name : str
        The input's name.
    dtype : numpy.dtype
        Its element type.
    shape : tuple of int, str or None
        One entry an axis, the batch first where there is one; a str or None is an axis of any length.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    @property
    def fixed_batch(self) -> int | None:
        """The length of the batch axis, or None where it may have any."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None


@runtime_checkable
class CalibrationReader(Protocol):
    """What onnxruntime's ``CalibrationDataReader`` promises."""

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the next feed, or None after the last."""


class _Part(Protocol):
    """Samples that are read together: an .npz file, an image, or arrays already in memory."""

    def __len__(self) -> int: ...

    def read(self) -> Feed: ...


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
        parts: Sequence[_Part],
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


_FeedSource = CalibrationReader | Iterable[Mapping[str, NDArray[Any]]]

Source = Samples | Mapping[str, NDArray[Any]] | _FeedSource
"""What calibration accepts: samples, a reader, arrays with a leading sample axis, or feeds one by one."""


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return what a model says about the inputs that must be fed.

    Parameters
    ----------
    model : onnx_ir.Model
        Inputs that have an initializer of the same name have a default and are left out.

    Returns
    -------
    tuple of InputSpec

    Raises
    ------
    ModelError
        If an input is no tensor or the model states no type or shape for it.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or value.shape is None:
            raise ModelError(f"model input {value.name!r}: found no tensor type and shape, wanted both")
        axes = tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)
        specs.append(InputSpec(name=str(value.name), dtype=value.dtype.numpy(), shape=axes))
    return tuple(specs)


def has_open_batch(inputs: Sequence[InputSpec]) -> bool:
    """Tell whether a model's inputs have a first axis of any length in common, along which feeds can be cut.

    Inputs without axes do not count. A first axis whose name later axes have too is no batch axis.

    Parameters
    ----------
    inputs : sequence of InputSpec
    """
    return all(spec.fixed_batch is None for spec in inputs) and not _elsewhere(inputs)


def load_samples(path: str | Path, inputs: Sequence[InputSpec]) -> Samples:
    """Open calibration or evaluation data from a file or folder.

    Parameters
    ----------
    path : str or Path
        One of

        - a ``.npz`` file with one array for each input, under the input's name, with a leading sample
          axis, and optionally ``labels``, a whole number of 0 or more for each sample. An input without
          axes has one value for all samples of a file. Where the inputs have no batch axis in common (the
          name of a first axis is that of a later one, too), a file is one sample;
        - a folder of such files, read in order of name, one at a time;
        - a folder of images, or of one subfolder of images for each class. The class is the subfolder's
          place in order of name, or the name itself where all are whole numbers. Images get the usual
          ImageNet preprocessing (`fgq.data.images.read_image`), so the model must have one input,
          float32[?, 3, H, W].
    inputs : sequence of InputSpec
        The model's inputs (`input_specs`).

    Returns
    -------
    Samples
        Names, types, shapes and lengths are checked now, from the files' headers; values when read.

    Raises
    ------
    DataError
        Naming the file, what was found and what was wanted.
    """
    path = Path(path)
    try:
        return _open_samples(path, inputs)
    except (OSError, ValueError) as error:  # a name too long, a ring of links, a folder that may not be read
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _open_samples(path: Path, inputs: Sequence[InputSpec]) -> Samples:
    if not path.exists():
        raise DataError(f"{path}: found no such file, wanted a .npz file, or a folder of them or of images")
    if not path.is_dir():
        return _npz_samples([path], inputs)
    entries = _entries(path)
    if not entries:
        raise DataError(f"{path}: found an empty folder, wanted .npz files or images")
    if not any(entry.suffix == ".npz" for entry in entries):
        return _image_samples(path, entries, inputs)
    for entry in entries:
        if entry.suffix != ".npz":
            raise DataError(f"{entry}: found another file among .npz files, wanted .npz files only")
    return _npz_samples(entries, inputs)


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
    _check_arrays(arrays, where)
    headers = {name: Header(array.shape, array.dtype) for name, array in arrays.items()}
    whole = _is_one(headers, inputs)
    length = _check_headers(headers, inputs, where, whole=whole)
    labels = _checked_labels(arrays[LABELS], where) if _has_labels(headers, inputs) else None
    given = {spec.name: arrays[spec.name] for spec in inputs}
    return Samples([_Arrays(given, length)], labels, whole=whole)


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


@dataclass(frozen=True, slots=True)
class _Arrays:
    arrays: Feed
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self) -> Feed:
        refuse_not_finite(self.arrays, "arrays")
        return with_text(self.arrays)


@dataclass(frozen=True, slots=True)
class _NpzFile:
    path: Path
    length: int
    headers: Mapping[str, Header]

    def __len__(self) -> int:
        return self.length

    def read(self) -> Feed:
        feed = {name: npz.read_array(self.path, name, header) for name, header in self.headers.items()}
        refuse_not_finite(feed, self.path)
        return with_text(feed)


@dataclass(frozen=True, slots=True)
class _ImageInput:
    name: str
    dtype: np.dtype[Any]
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class _Image:
    path: Path
    target: _ImageInput

    def __len__(self) -> int:
        return 1

    def read(self) -> Feed:
        image = read_image(self.path, self.target.height, self.target.width)
        return {self.target.name: image[None].astype(self.target.dtype)}


def _npz_samples(files: Sequence[Path], inputs: Sequence[InputSpec]) -> Samples:
    parts, labels = [], []
    every = [npz.read_headers(path) for path in files]
    whole = all(_is_one(headers, inputs) for headers in every)
    for path, headers in zip(files, every, strict=True):
        length = _check_headers(headers, inputs, path, whole=whole)
        parts.append(_NpzFile(path, length, {spec.name: headers[spec.name] for spec in inputs}))
        if _has_labels(headers, inputs):
            labels.append(_checked_labels(npz.read_array(path, LABELS, headers[LABELS]), path))
        if len(labels) not in (0, len(parts)):
            found, before = ("no labels", "some") if LABELS not in headers else ("labels", "none")
            raise DataError(f"{path}: found {found} but {before} in {files[0]}, wanted them in all or none")
    return Samples(parts, np.concatenate(labels) if labels else None, whole=whole)


def _image_samples(folder: Path, entries: Sequence[Path], inputs: Sequence[InputSpec]) -> Samples:
    target = _image_input(folder, inputs)
    classes = [entry for entry in entries if entry.is_dir()]
    if not classes:
        return Samples(_images(entries, target))
    for entry in entries:
        if not entry.is_dir():
            raise DataError(f"{entry}: found a file beside class folders, wanted folders of images only")
    numbered = all(re.fullmatch("[0-9]{1,9}", entry.name) for entry in classes)
    images: list[_Image] = []
    labels: list[int] = []
    for place, entry in enumerate(classes):
        members = _images(_entries(entry), target)
        images += members
        labels += [int(entry.name) if numbered else place] * len(members)
    if not images:
        raise DataError(f"{folder}: found no images in {len(classes)} class folders, wanted at least one")
    return Samples(images, np.array(labels, np.int64))


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds in order of name, hidden files left out."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _images(paths: Sequence[Path], target: _ImageInput) -> list[_Image]:
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{path}: found no image by its name, wanted {', '.join(IMAGE_SUFFIXES)}")
    return [_Image(path, target) for path in paths]


def _image_input(folder: Path, inputs: Sequence[InputSpec]) -> _ImageInput:
    match [(spec, spec.shape) for spec in inputs]:
        case [(spec, (_, 3 | str() | None, int(height), int(width)))] if spec.dtype in (
            np.float16,
            np.float32,
        ):
            if not 0 < height * width <= MAX_PIXELS:
                raise DataError(
                    f"{folder}: found the input {spec}, wanted images of at most {MAX_PIXELS} pixels; "
                    "prepare anything else as .npz files"
                )
            return _ImageInput(spec.name, spec.dtype, height, width)
    raise DataError(
        f"{folder}: found images for the inputs {'; '.join(map(str, inputs))}, wanted a model with one input "
        "float32[?, 3, H, W] of fixed H and W; prepare anything else as .npz files"
    )


def _has_labels(names: Iterable[str], inputs: Sequence[InputSpec]) -> bool:
    return LABELS in names and all(spec.name != LABELS for spec in inputs)


def _is_one(headers: Mapping[str, Header], inputs: Sequence[InputSpec]) -> bool:
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
    return bool(_elsewhere(inputs)) and all(len(found) == 1 for found in sizes.values())


def _elsewhere(inputs: Sequence[InputSpec]) -> set[str]:
    """Return the names of first axes that later axes have, too."""
    first = {spec.shape[0] for spec in inputs if spec.shape}
    return {axis for spec in inputs for axis in spec.shape[1:] if isinstance(axis, str) and axis in first}


def _check_headers(
    headers: Mapping[str, Header], inputs: Sequence[InputSpec], where: str | Path, *, whole: bool
) -> int:
    """Return how many samples the arrays hold, if they fit the inputs."""
    wanted = [spec.name for spec in inputs]
    allowed = [*wanted, LABELS] if _has_labels(headers, inputs) else wanted
    if set(headers) != set(allowed):
        raise DataError(
            f"{where}: found the keys {list(headers)}, wanted {wanted} (the model's inputs) "
            f"and perhaps {LABELS!r}"
        )
    for spec in inputs:
        axes = ("samples", *spec.shape[1:]) if spec.shape and not whole else spec.shape
        _check_header(headers[spec.name], spec, axes, where)
    if whole:
        return 1
    lengths = {name: header.shape[0] for name, header in headers.items() if header.shape}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: found unequal numbers of samples {lengths}, wanted one number")
    length = min(lengths.values(), default=1)  # inputs without axes alone
    if length < 1:
        raise DataError(f"{where}: found no samples, wanted at least one")
    return length


def _check_header(
    found: Header, spec: InputSpec, axes: tuple[int | str | None, ...], where: str | Path
) -> None:
    same = found.dtype == spec.dtype or (found.dtype.kind == "U" and spec.dtype == object)
    if not same or not _fits(found.shape, axes):
        wanted = InputSpec(name=spec.name, dtype=spec.dtype, shape=axes)
        hint = "" if same else "; data are not cast: save them in the wanted type"
        raise DataError(f"{where}: found {spec.name}: {found}, wanted {wanted}{hint}")


def _fits(shape: Sequence[int], axes: Sequence[int | str | None]) -> bool:
    return len(shape) == len(axes) and all(
        not isinstance(wanted, int) or wanted == found for found, wanted in zip(shape, axes, strict=True)
    )


def _checked_labels(labels: NDArray[Any], where: str | Path) -> NDArray[np.int64]:
    wanted = "wanted one whole number of 0 or more for each sample"
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(f"{where}: found labels {labels.dtype}{list(labels.shape)}, {wanted}")
    for label in (labels.min(), labels.max()):
        if not 0 <= label <= _LARGEST_LABEL:
            raise DataError(f"{where}: found the label {label}, {wanted}")
    return labels.astype(np.int64)


def _check_arrays(feed: Any, where: str) -> None:
    if not isinstance(feed, Mapping):
        raise DataError(f"{where}: found {type(feed).__name__}, wanted a dict of arrays by input name")
    for name, array in feed.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where}: found {type(array).__name__} in {name!r}, wanted a numpy array")


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
        _check_arrays(feed, where)
        if set(feed) != set(wanted):
            raise DataError(f"{where}: found the keys {list(feed)}, wanted {wanted} (the model's inputs)")
        for spec in inputs:
            array = feed[spec.name]
            _check_header(Header(array.shape, array.dtype), spec, spec.shape, where)
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
