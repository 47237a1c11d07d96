"""The training images of the study, rendered once and shared by its jobs through a memory map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgq.errors import DataError
from fgq.format import onnx_file
from fgq.support.progress import Progress


def render(folder: Path, count: int, progress: Progress) -> None:
    """Render the first images of the training series into a folder, where they are not there yet.

    Parameters
    ----------
    folder : Path
    count : int
    progress : callable
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    DataError
        If a font is not installed.
    OutputError
        If the folder cannot be written to.
    """
    images_path, labels_path = _paths(folder, count)
    if images_path.exists() and labels_path.exists():
        return
    from fgq.eval.characters.render import CHUNK, SEEDS, GlyphAtlas, chunk

    progress("glyphs", 0, None)
    atlas, parts = GlyphAtlas.draw("train"), []
    chunks = -(-count // CHUNK)
    for number in range(chunks):
        progress("images", number, chunks)
        parts.append(chunk(atlas, SEEDS["train"], number))
    for path, place in ((labels_path, 1), (images_path, 0)):
        with onnx_file.staged(path) as staged, staged.open("wb") as file:
            np.save(file, np.concatenate([part[place] for part in parts])[:count], allow_pickle=False)


def read(folder: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [count, 1, 32, 32] as a memory map and labels [count] that `render` wrote.

    Raises
    ------
    DataError
        If a file is missing or holds something else.
    """
    images_path, labels_path = _paths(folder, count)
    try:
        # Copied when written to, as PyTorch wants arrays that could be.
        images = np.load(images_path, mmap_mode="c", allow_pickle=False)
        labels = np.load(labels_path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{images_path}: found {error}, wanted rendered images: remove the file") from None
    if images.dtype != np.uint8 or images.shape != (count, 32, 32) or labels.shape != (count,):
        found = f"{images.dtype}{list(images.shape)} and {labels.dtype}{list(labels.shape)}"
        raise DataError(f"{images_path}: found {found}, wanted uint8[{count}, 32, 32] and int64[{count}]")
    return images[:, None], labels


def _paths(folder: Path, count: int) -> tuple[Path, Path]:
    return folder / f"images.{count}.npy", folder / f"labels.{count}.npy"
