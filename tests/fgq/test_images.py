"""Image preprocessing against PyTorch's resampling, and images that cannot be used."""

import sys

import numpy as np
import pytest
from PIL import Image

from fgq.errors import DataError
from fgq.images import IMAGENET_MEAN, IMAGENET_STD, read_image


def save_image(path, size=(40, 36), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    path = save_image(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), mode=mode)
    assert read_image(path, 32, 32).shape == (3, 32, 32)


@pytest.mark.parametrize(("size", "target"), [((50, 40), (32, 32)), ((31, 77), (32, 24)), ((9, 9), (16, 16))])
def test_against_torch(tmp_path, size, target):
    torch = pytest.importorskip("torch")
    path = save_image(tmp_path / "a.png", size)
    shorter = round(max(target) * 256 / 224)
    wide, high = size
    resized = (int(shorter * high / wide), shorter) if wide <= high else (shorter, int(shorter * wide / high))
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(
        pixels.float(), resized, mode="bilinear", antialias=True, align_corners=False
    )
    top, left = round((resized[0] - target[0]) / 2), round((resized[1] - target[1]) / 2)
    cut = pixels[0, :, top : top + target[0], left : left + target[1]].numpy() / 255
    wanted = (cut - np.array(IMAGENET_MEAN)[:, None, None]) / np.array(IMAGENET_STD)[:, None, None]
    # Pillow rounds to whole pixel values after each of its two passes: 1/255 at most, over the
    # smallest deviation.
    np.testing.assert_allclose(read_image(path, *target), wanted, atol=1.0 / 255 / 0.224 + 1e-5)


def test_a_constant_image_is_exact(tmp_path):
    Image.new("RGB", (70, 50), (124, 116, 104)).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 32, 32)
    for channel, value in enumerate((124, 116, 104)):
        wanted = (value / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        np.testing.assert_allclose(found[channel], wanted, atol=1e-6)  # float32 near 0.5, over 0.22


def test_truncated_and_narrow_images(tmp_path):
    path = save_image(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a.png: found no readable image"):
        read_image(path, 32, 32)
    Image.new("L", (1, 10_000)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="found 1 x 10000 pixels"):
        read_image(tmp_path / "b.png", 32, 32)


def test_an_image_of_too_many_pixels(tmp_path, monkeypatch):
    path = save_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # warned of, and refused beyond twice
    with pytest.raises(DataError, match="exceeds limit"):
        read_image(path, 32, 32)


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"fgq\[images\]"):
        read_image(tmp_path / "a.png", 32, 32)
