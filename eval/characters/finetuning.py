"""The bundled network and its images for `fgq finetune`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from torch.utils.data import Dataset

from fgq.eval.characters import MODEL, load
from fgq.eval.characters.network import CharacterNet
from fgq.eval.characters.render import SEEDS, GlyphAtlas, chunk
from fgq.train.trainer import Data

CHUNKS = 64
"""Chunks of freshly rendered training images."""


class Images(Dataset[tuple[Tensor, int]]):
    """Grey images [n, 1, 32, 32] with their labels; uint8 values are scaled to 0..1."""

    def __init__(self, images: NDArray[Any], labels: NDArray[Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes here
            self._images, self._labels = torch.from_numpy(images), labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = self._images[row]
        return (image.float() / 255 if image.dtype == torch.uint8 else image), int(self._labels[row])


def network() -> CharacterNet:
    """Return the bundled network with its trained weights."""
    module = CharacterNet()
    arrays = {array.name: numpy_helper.to_array(array).copy() for array in onnx.load(MODEL).graph.initializer}
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return module.eval()


def images() -> Data:
    """Render training images of the training fonts, after those that trained the float network.

    Raises
    ------
    fgq.errors.DataError
        If a font is not installed.
    """
    atlas = GlyphAtlas.draw("train")
    rendered = [chunk(atlas, SEEDS["train"], (1 << 20) + number) for number in range(CHUNKS)]
    train = Images(
        np.concatenate([part[0] for part in rendered])[:, None],
        np.concatenate([part[1] for part in rendered]),
    )
    test = load("calibration")
    return Data(train, Images(test.images, test.labels))
