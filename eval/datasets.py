"""Data by name, file or folder, for calibration and for evaluation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fgq.data.array_checks import LABELS
from fgq.data.inputs import input_specs
from fgq.data.sample_files import load_samples
from fgq.data.samples import Samples, as_samples
from fgq.data.sources import Source
from fgq.errors import DataError
from fgq.eval import characters
from fgq.format import onnx_file

CHARACTERS = "characters"
"""The name of the bundled images."""

DOCSTRINGS = "docstrings"
"""The name of the docstring retrieval of `fgq.eval.retrieval`, which needs the extra ``text``."""

TEXTS = 200
"""How many texts of the docstrings a split has."""

FEED = 8
"""Most texts that are run together in calibration."""

Split = Literal["calibration", "test"]


def open_dataset(data: str, model: str | os.PathLike[str], split: Split) -> Samples:
    """Open a data set.

    Parameters
    ----------
    data : str
        ``characters``, ``docstrings`` (texts for an encoder, without labels), an ``.npz`` file, or a folder
        of ``.npz`` files or images (`fgq.data.sample_files.load_samples`). A file or folder is taken before
        a data set of that name.
    model : path-like
        The model that will read the data.
    split : "calibration" or "test"
        Which part of a data set known by name.

    Raises
    ------
    DataError
        If there is no such data set, or it does not fit the model.
    ModelError
        If the model cannot be read.
    """
    inputs = input_specs(onnx_file.load(model))
    if Path(data).exists():
        return load_samples(data, inputs)
    if data == CHARACTERS:
        images = characters.load(split)
        if len(inputs) != 1:
            raise DataError(f"{CHARACTERS}: found a model of {len(inputs)} inputs, wanted one, of images")
        return as_samples({inputs[0].name: images.images, LABELS: images.labels}, inputs, where=data)
    if data == DOCSTRINGS:
        feeds = _texts(split)
        known = {spec.name: feeds[spec.name] for spec in inputs if spec.name in feeds}
        return as_samples(known, inputs, where=data)
    raise DataError(
        f"{data}: found no such file or folder, wanted one, or the name of a data set "
        f"({CHARACTERS}, {DOCSTRINGS})"
    )


def calibration_data(data: str, model: str | os.PathLike[str]) -> Source:
    """Open data for a conversion.

    Parameters
    ----------
    data : str
        As for `open_dataset`.
    model : path-like
        The model that will read the data.

    Returns
    -------
    Source
        The calibration part as samples; of ``docstrings`` all texts, as feeds of texts of one length: what a
        model computes on padding is no measure of what it must compute well.

    Raises
    ------
    FgqError
        As `open_dataset`.
    """
    samples = open_dataset(data, model, "calibration")
    if data != DOCSTRINGS or Path(data).exists():
        return samples
    inputs = {spec.name for spec in input_specs(onnx_file.load(model))}
    return [{name: feed[name] for name in inputs} for feed in _texts_of_one_length()]


def _texts_of_one_length() -> list[dict[str, NDArray[np.int64]]]:
    from fgq.eval.docstrings import docstring_pairs
    from fgq.eval.minilm import MAX_TOKENS, tokenize

    tokens = tokenize(docstring_pairs().calibration, pad_to=MAX_TOKENS)
    lengths = tokens["attention_mask"].sum(axis=1)
    feeds = []
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        for start in range(0, len(places), FEED):
            few = places[start : start + FEED]
            feeds.append({name: array[few, :length] for name, array in tokens.items()})
    return [feeds[place] for place in np.random.default_rng(0).permutation(len(feeds))]


def _texts(split: Split) -> dict[str, NDArray[np.int64]]:
    from fgq.eval.docstrings import docstring_pairs
    from fgq.eval.minilm import MAX_TOKENS, tokenize

    corpus = docstring_pairs()
    texts = corpus.calibration if split == "calibration" else [document for _, document in corpus.test]
    return tokenize(texts[:TEXTS], pad_to=MAX_TOKENS)
