"""Images as arrays, decoded and preprocessed as ImageNet classifiers expect them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fgq.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of RGB values between 0 and 1 that torchvision's models were trained with."""

_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
"""What is decoded, by Pillow itself, in this process."""

_ANIMATED = ("PNG", "WEBP")
"""Formats in which several images are one that moves; in a JPEG file they are other views of the first."""

MAX_PIXELS = 1 << 26
"""Of an image, as its header has it: 200 MB when it is decoded."""

MAX_BYTES = 1 << 28
"""Of a file."""

MAX_ASPECT = 50
"""An image longer than so many times its width would take too much memory to resize."""


def read_image(path: str | Path, height: int, width: int) -> NDArray[np.float32]:
    """Decode an image and preprocess it the usual ImageNet way.

    The shorter side is resized to ``round(max(height, width) * 256 / 224)`` with antialiased bilinear
    interpolation, the centre cut out, and RGB values between 0 and 1 normalised by IMAGENET_MEAN and
    IMAGENET_STD: what torchvision's reference evaluation does for 224 x 224. Before, images are turned
    upright if their EXIF data say how; grey, palette and CMYK images become RGB, 16 bits 8, and
    transparency is left out.

    Parameters
    ----------
    path : str or Path
        The image.
    height, width : int
        Size of the result in pixels.

    Returns
    -------
    ndarray of float32, shape (3, height, width)

    Raises
    ------
    DataError
        If Pillow is not installed, or the file is not one whole image (BMP, JPEG, PNG or WebP), has too many
        bytes or pixels, moves, or is extremely narrow.
    """
    path = Path(path)
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError(
            f"{path}: found no Pillow to read images with, wanted it installed: pip install 'fgq[images]'"
        ) from None
    try:
        if not path.is_file():
            raise DataError(
                f"{path}: found no file but a folder, device or pipe, or nothing; wanted an image"
            )
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: found {path.stat().st_size} bytes, wanted at most {MAX_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that nobody here reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Whatever the name says: others are decoded by other programs (PostScript) or seldom tested code.
            with Image.open(path, formats=_FORMATS) as file:
                _check_size(path, *file.size)
                frames = getattr(file, "n_frames", 1)
                if frames != 1 and file.format in _ANIMATED:
                    raise DataError(f"{path}: found {frames} images, wanted one that does not move")
                image = _rgb(ImageOps.exif_transpose(file))
    except DataError:
        raise
    except Exception as error:  # whatever decoders raise for hostile bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path}: found no readable image ({reason}), wanted a whole one") from None
    shorter = round(max(height, width) * 256 / 224)
    wide, high = image.size
    size = (shorter, shorter * high // wide) if wide <= high else (shorter * wide // high, shorter)
    if size[0] * size[1] > 4 * MAX_PIXELS:
        raise DataError(
            f"{path}: found {wide} x {high} pixels, too many when resized to {size[0]} x {size[1]}"
        )
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    normalised = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _check_size(path: Path, wide: int, high: int) -> None:
    if wide * high > MAX_PIXELS:
        raise DataError(f"{path}: found {wide} x {high} pixels, wanted at most {MAX_PIXELS}")
    if max(wide, high) > MAX_ASPECT * min(wide, high):
        raise DataError(f"{path}: found {wide} x {high} pixels, wanted sides within {MAX_ASPECT} to 1")


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB of 8 bits."""
    from PIL import Image

    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off at 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    return image.convert("RGB")
