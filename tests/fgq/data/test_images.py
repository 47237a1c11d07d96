"""Image preprocessing against PyTorch's resampling, and images that cannot be used."""

import os
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fgq.data.images import IMAGENET_MEAN, IMAGENET_STD, read_image
from fgq.errors import DataError


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


PALETTE = Image.new("P", (40, 36), 1)
PALETTE.putpalette([0, 0, 0, 124, 116, 104])

SAME = {
    "palette": PALETTE,
    "alpha": Image.new("RGBA", (40, 36), (124, 116, 104, 3)),
    "turned": Image.new("RGB", (36, 40), (124, 116, 104)),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_every_mode_has_the_same_colours(tmp_path, name, suffix):
    path = tmp_path / f"a.{suffix}"
    SAME[name].convert("RGB" if suffix == "webp" else None).save(path, lossless=True)
    found = read_image(path, 32, 32)
    for channel, value in enumerate((124, 116, 104)):
        wanted = (value / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        np.testing.assert_allclose(found[channel], wanted, atol=1e-6)


def test_sixteen_bits_of_grey_are_not_cut_off(tmp_path):
    grey = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(grey).save(tmp_path / "16.png")
    Image.fromarray(np.round(grey / 257).astype(np.uint8)).save(tmp_path / "8.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "16.png", 32, 32), read_image(tmp_path / "8.png", 32, 32)
    )


@pytest.mark.parametrize(
    ("orientation", "turn"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)]
)
def test_images_are_turned_upright(tmp_path, orientation, turn):
    upright = Image.open(save_image(tmp_path / "upright.png"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(turn).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        read_image(tmp_path / "turned.png", 32, 32), read_image(tmp_path / "upright.png", 32, 32)
    )


def test_only_what_this_process_decodes_is_opened(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **options: pytest.fail("started a program"))
    with pytest.raises(DataError, match=r"a.png: found no readable image \(cannot identify"):
        read_image(path, 32, 32)
    for format_ in ("GIF", "TIFF", "PPM", "ICO"):
        Image.new("RGB", (40, 40)).save(path, format_)
        with pytest.raises(DataError, match=r"a.png: found no readable image \(cannot identify"):
            read_image(path, 32, 32)
    Image.new("RGB", (40, 40)).save(path, "JPEG")  # named otherwise, and as good
    assert read_image(path, 32, 32).shape == (3, 32, 32)


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    path = save_image(tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    content[16:24] = (9000).to_bytes(4, "big") + (9000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: found 9000 x 9000 pixels, wanted at most 67108864"):
        read_image(path, 32, 32)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_images_that_move(tmp_path, suffix):
    first, second = Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), "white")
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(DataError, match=f"a.{suffix}: found 2 images, wanted one that does not move"):
        read_image(tmp_path / f"a.{suffix}", 32, 32)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nothing")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "link", "zero"):
        with pytest.raises(DataError, match=rf"{name}.png: found no file but a folder, device or pipe"):
            read_image(tmp_path / f"{name}.png", 32, 32)
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", 1 << 29)
    with pytest.raises(DataError, match=r"large\.png: found 536870912 bytes, wanted at most"):
        read_image(tmp_path / "large.png", 32, 32)


def test_a_target_too_large_for_a_long_image(tmp_path):
    Image.new("L", (4900, 100)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="too many when resized"):
        read_image(tmp_path / "a.png", 4000, 4000)


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"fgq\[images\]"):
        read_image(tmp_path / "a.png", 32, 32)
