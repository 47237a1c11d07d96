"""A small pretrained network that recognises printed characters, and the images to judge it by.

The network is a residual CNN with batch normalization, trained from scratch on renderings of freely
licensed fonts. The test images come from font families that neither the training nor the calibration
images show (``data/FONTS.md``). Loading the data needs NumPy alone; rendering new images needs Pillow and
the fonts (``render.py``), training needs PyTorch (``train.py``).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fgq.data.npz import read_array, read_headers
from fgq.errors import DataError
from fgq.eval.characters.classes import CLASSES

__all__ = ["CLASSES", "DATA", "MODEL", "Split", "load", "read"]

DATA = Path(__file__).parent / "data"
"""The folder of the committed network and images."""

MODEL = DATA / "characters.onnx"
"""The trained network: ``image`` float32 [batch, 1, 32, 32] in 0..1 to ``logits`` float32 [batch, 128]."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images with their classes.

    Attributes
    ----------
    images
        float32 [n, 1, 32, 32], grey values in 0..1.
    labels
        int64 [n], indices into `CLASSES`.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def load(split: Literal["calibration", "test"]) -> Split:
    """Read one of the two committed sets.

    Parameters
    ----------
    split
        ``"calibration"``: 1,024 images of the training families; ``"test"``: 10,240 images of families seen
        nowhere else. Every 128 consecutive images show each class once.

    Returns
    -------
    Split
        The images, scaled to 0..1, and their labels.

    Raises
    ------
    DataError
        If the split has another name, or its file is missing or is not what `render.write` wrote.
    """
    if split not in ("calibration", "test"):
        raise DataError(f"character images: found split {split!r}, wanted 'calibration' or 'test'")
    return read(DATA / f"{split}.npz")


def read(path: Path) -> Split:
    """Read a file of images that ``python -m fgq.eval.characters.render`` wrote.

    Raises
    ------
    DataError
        If the file is missing or damaged, or holds other arrays than uint8 images [n, 32, 32] and int64
        labels [n].
    """
    headers = read_headers(path)
    images, labels = headers.get("images"), headers.get("labels")
    if (
        images is None
        or labels is None
        or images.dtype != np.uint8
        or labels.dtype != np.int64
        or len(labels.shape) != 1
        or images.shape != (*labels.shape, 32, 32)
    ):
        found = ", ".join(f"{name} {header}" for name, header in headers.items()) or "no arrays"
        raise DataError(f"{path}: found {found}, wanted images uint8[n, 32, 32] and labels int64[n]")
    classes = read_array(path, "labels")
    if not np.all((0 <= classes) & (classes < len(CLASSES))):
        raise DataError(f"{path}: found a label outside 0..{len(CLASSES) - 1}, wanted the index of a class")
    return Split(read_array(path, "images")[:, None].astype(np.float32) / np.float32(255), classes)
