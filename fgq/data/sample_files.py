"""Samples from .npz files, images, and folders of them. No pickle is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgq.data import npz
from fgq.data.array_checks import LABELS, check_headers, checked_labels, has_labels, is_one_sample
from fgq.data.feed import Feed, refuse_not_finite, with_text
from fgq.data.images import IMAGE_SUFFIXES, MAX_PIXELS, read_image
from fgq.data.inputs import InputSpec
from fgq.data.npz import Header
from fgq.data.samples import Samples
from fgq.errors import DataError


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
    whole = all(is_one_sample(headers, inputs) for headers in every)
    for path, headers in zip(files, every, strict=True):
        length = check_headers(headers, inputs, path, whole=whole)
        parts.append(_NpzFile(path, length, {spec.name: headers[spec.name] for spec in inputs}))
        if has_labels(headers, inputs):
            labels.append(checked_labels(npz.read_array(path, LABELS, headers[LABELS]), path))
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
