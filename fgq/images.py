"""Images as arrays, decoded and preprocessed as ImageNet classifiers expect them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgq.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of RGB values between 0 and 1 that torchvision's models were trained with."""

MAX_ASPECT = 50
"""An image longer than so many times its width would take too much memory to resize."""


def read_image(path: str | Path, height: int, width: int) -> NDArray[np.float32]:
    """Decode an image and preprocess it the usual ImageNet way.

    The shorter side is resized to ``round(max(height, width) * 256 / 224)`` with antialiased bilinear
    interpolation, the centre cut out, and RGB values between 0 and 1 normalised by IMAGENET_MEAN and
    IMAGENET_STD: what torchvision's reference evaluation does for 224 x 224.

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
        If Pillow is not installed, or the file is no image it can read or extremely narrow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError(
            f"{path}: found no Pillow to read images with, wanted it installed: pip install 'fgq[images]'"
        ) from None
    shorter = round(max(height, width) * 256 / 224)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = file.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path}: found no readable image ({reason}), wanted a whole one") from None
    wide, high = image.size
    if max(wide, high) > MAX_ASPECT * min(wide, high):
        raise DataError(f"{path}: found {wide} x {high} pixels, wanted sides within {MAX_ASPECT} to 1")
    size = (shorter, shorter * high // wide) if wide <= high else (shorter * wide // high, shorter)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    normalised = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))
