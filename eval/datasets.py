"""Data by name, file or folder, for calibration and for evaluation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from fgq import onnx_file
from fgq.data import LABELS, Samples, as_samples, input_specs, load_samples
from fgq.errors import DataError
from fgq.eval import characters

CHARACTERS = "characters"
"""The name of the bundled images."""

DOCSTRINGS = "docstrings"
"""The name of the docstring retrieval of `fgq.eval.retrieval`, which needs the extra ``text``."""

Split = Literal["calibration", "test"]


def open_dataset(data: str, model: str | os.PathLike[str], split: Split) -> Samples:
    """Open a data set.

    Parameters
    ----------
    data : str
        ``characters``, ``docstrings`` (for calibration), an ``.npz`` file, or a folder of ``.npz`` files
        or images (`fgq.data.load_samples`). A file or folder is taken before a data set of that name.
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
        return as_samples({inputs[0].name: images.images, LABELS: images.labels}, inputs)
    if data == DOCSTRINGS and split == "calibration":
        from fgq.eval.retrieval import calibration_feeds

        feeds = calibration_feeds()
        return as_samples({spec.name: feeds[spec.name] for spec in inputs if spec.name in feeds}, inputs)
    raise DataError(
        f"{data}: found no such file or folder, wanted one, or the name of a data set "
        f"({CHARACTERS}, {DOCSTRINGS})"
    )
