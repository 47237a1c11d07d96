"""Render seeded images of characters from the installed fonts.

Glyphs are drawn once, large and clean (`GlyphAtlas`). An image shows one glyph under a random affine map,
ink and paper of random brightness with a random slope of light across it, blurred, with noise, in 32 levels
of grey (`distort`). Training draws its images from the same two functions.

The committed sets come from::

    python -m fgq.eval.characters.render --split calibration
    python -m fgq.eval.characters.render --split test
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from fgq.eval.characters import DATA
from fgq.eval.characters.classes import CLASSES
from fgq.eval.characters.fonts import FAMILIES, find

SIZE = 32
"""Height and width of an image in pixels."""

LEVELS = 32
"""Number of grey levels in an image."""

_CANVAS = 48  # height and width of a clean glyph's drawing
_CAP_HEIGHT = 24  # of the letter H in it, so that all faces appear at one size
_BOX = 38  # a wider or taller glyph is drawn smaller, to fit
CHUNK = 8 * len(CLASSES)
"""Number of images drawn from one random stream: 8 of each class."""

SEEDS = {"calibration": 1, "test": 2, "train": 3}
"""The seed of each split's series of images."""

COMMITTED = {"calibration": 1024, "test": 10240}
"""The number of images in each committed set, which are the first of its series."""


@dataclass(frozen=True, slots=True, eq=False)
class GlyphAtlas:
    """Clean drawings of every class in every face that has it.

    Attributes
    ----------
    glyphs
        uint8 [g, 48, 48], ink coverage 0..255, centred by bounding box, sorted by class.
    labels
        int64 [g], the class of each glyph.
    families
        int64 [g], the family of each glyph, an index into `fgq.eval.characters.fonts.FAMILIES`.
    """

    glyphs: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    families: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, split: Literal["train", "test"], progress: bool = False) -> "GlyphAtlas":
        """Draw the glyphs of all families of one split.

        Raises
        ------
        DataError
            If a font is not installed.
        """
        chosen = [index for index, family in enumerate(FAMILIES) if family.split == split]
        faces = [
            (index, path)
            for index, paths in zip(chosen, find([FAMILIES[i] for i in chosen]), strict=True)
            for path in paths
        ]
        rows = [
            (label, family, glyph)
            for family, path in track(faces, f"glyphs ({split})", disable=not progress)
            for label, glyph in _draw_face(path)
        ]
        rows.sort(key=lambda row: row[0])
        return cls(
            np.stack([glyph for _, _, glyph in rows]),
            np.array([label for label, _, _ in rows], np.int64),
            np.array([family for _, family, _ in rows], np.int64),
        )

    def sample(self, labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Choose a glyph for each label: a family first, then one of its faces, each with equal chance.

        Parameters
        ----------
        labels
            int64 [n].

        Returns
        -------
        uint8 [n, 48, 48]
        """
        pair = self.labels * len(FAMILIES) + self.families
        faces = np.bincount(pair)
        weight = 1.0 / faces[pair]
        in_class = np.bincount(self.labels, weight, len(CLASSES))
        # One rising curve over all glyphs, which climbs by 1 in each class.
        curve = np.cumsum(weight / in_class[self.labels])
        index = np.searchsorted(curve, labels + rng.random(len(labels)), side="right")
        first = np.searchsorted(self.labels, labels)
        last = np.searchsorted(self.labels, labels, side="right") - 1
        chosen: npt.NDArray[np.uint8] = self.glyphs[np.clip(index, first, last)]
        return chosen


def _draw_face(path: Path) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Draw each class that a face covers, as (label, uint8 [48, 48])."""

    def at_size(size: float) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)

    def extent(font: ImageFont.FreeTypeFont, character: str) -> tuple[float, float, float, float]:
        return font.getbbox(character, anchor="ls")

    _, top, _, bottom = extent(at_size(100), "H")
    size = 100 * _CAP_HEIGHT / (bottom - top)
    font = at_size(size)
    # A face without a character draws its "missing" glyph, the one of unassigned code points.
    missing = {bytes(font.getmask(unassigned)) for unassigned in "\u0378\uf8f0\U0010fffd"}
    for label, character in enumerate(CLASSES):
        left, top, right, bottom = extent(font, character)
        if right <= left or bottom <= top or bytes(font.getmask(character)) in missing:
            continue
        shrunk = min(1.0, _BOX / max(right - left, bottom - top))
        fitted = font if shrunk == 1.0 else at_size(size * shrunk)
        left, top, right, bottom = extent(fitted, character)
        canvas = Image.new("L", (_CANVAS, _CANVAS))
        corner = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
        ImageDraw.Draw(canvas).text(corner, character, fill=255, font=fitted, anchor="ls")
        yield label, np.asarray(canvas, np.uint8)


def distort(glyphs: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn clean glyphs into images as a poor camera would see them.

    Parameters
    ----------
    glyphs
        uint8 [n, 48, 48], ink coverage.
    rng
        Source of all randomness.

    Returns
    -------
    uint8 [n, 32, 32]
        Grey values round(255 * level / 31) of 32 levels.
    """
    n = len(glyphs)

    def uniform(low: float, high: float) -> npt.NDArray[np.float32]:
        return rng.uniform(low, high, n).astype(np.float32)

    ink = _warp(
        glyphs,
        turn=uniform(-0.26, 0.26),
        slant=uniform(-0.25, 0.25),
        height=uniform(0.6, 0.95),
        stretch=np.exp(uniform(-0.2, 0.2)),
        shift=np.stack([uniform(-3, 3), uniform(-3, 3)]),
    )
    ink = _blur(ink, uniform(0.2, 1.3))
    contrast = uniform(0.25, 0.9)
    paper = uniform(0, 1) * (1 - contrast)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    light = uniform(-0.15, 0.15)[:, None, None] * ramp + uniform(-0.15, 0.15)[:, None, None] * ramp[:, None]
    noise = rng.standard_normal(ink.shape, np.float32) * uniform(0.01, 0.12)[:, None, None]
    image = paper[:, None, None] + contrast[:, None, None] * ink + light + noise
    dark_on_light = rng.random(n) < 0.5
    image = np.where(dark_on_light[:, None, None], 1 - image, image)
    levels = np.rint(np.clip(image, 0, 1) * (LEVELS - 1))
    return np.asarray(np.rint(levels * np.float32(255 / (LEVELS - 1))), np.uint8)


def _warp(
    glyphs: npt.NDArray[np.uint8],
    *,
    turn: npt.NDArray[np.float32],
    slant: npt.NDArray[np.float32],
    height: npt.NDArray[np.float32],
    stretch: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Sample glyphs through affine maps, bilinearly: uint8 [n, 48, 48] to coverage float32 [n, 32, 32].

    `turn` is in radians, `slant` in pixels sideways per pixel upwards, `height` and `stretch` are the
    vertical scale and the width's further scale, `shift` [2, n] is (right, down) in image pixels.
    """
    n = len(glyphs)
    axis = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    x = axis - shift[0, :, None, None]
    y = axis[:, None] - shift[1, :, None, None]
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    down = (cos * y - sin * x) / height[:, None, None]
    right = (cos * x + sin * y) / (height * stretch)[:, None, None] + slant[:, None, None] * down
    # A border of one blank pixel lets points outside the canvas read paper.
    side = _CANVAS + 2
    padded = np.zeros((n, side, side), np.float32)
    padded[:, 1:-1, 1:-1] = glyphs
    flat = padded.reshape(-1)
    centre = np.float32((side - 1) / 2)
    right = np.clip(right + centre, 0, np.float32(side - 1.001))
    down = np.clip(down + centre, 0, np.float32(side - 1.001))
    column, row = right.astype(np.int32), down.astype(np.int32)
    across, along = right - column, down - row
    corner = np.arange(n, dtype=np.int32)[:, None, None] * (side * side) + row * side + column
    upper = flat[corner] * (1 - across) + flat[corner + 1] * across
    lower = flat[corner + side] * (1 - across) + flat[corner + side + 1] * across
    return np.asarray((upper * (1 - along) + lower * along) / 255, np.float32)


def _blur(images: npt.NDArray[np.float32], sigma: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Blur each image [n, 32, 32] by its own Gaussian, `sigma` in pixels, cut off at 3 pixels."""
    offsets = np.arange(-3, 4, dtype=np.float32)
    taps = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    taps /= taps.sum(axis=1, keepdims=True)
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)))
    rows = sum(taps[:, k, None, None] * padded[:, k : k + SIZE] for k in range(7))
    return np.asarray(sum(taps[:, k, None, None] * rows[:, :, k : k + SIZE] for k in range(7)), np.float32)


def chunk(atlas: GlyphAtlas, seed: int, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw one chunk of an endless, seeded series of images.

    Every 128 consecutive images show each class once, in random order.

    Returns
    -------
    images : uint8 [1024, 32, 32]
    labels : int64 [1024]
    """
    rng = np.random.default_rng([seed, number])
    blocks = np.tile(np.arange(len(CLASSES)), (CHUNK // len(CLASSES), 1))
    labels = rng.permuted(blocks, axis=1).reshape(-1)
    return distort(atlas.sample(labels, rng), rng), labels


def write(split: Literal["train", "calibration", "test"], count: int, seed: int, path: Path) -> None:
    """Render `count` images and write them as arrays ``images`` uint8 and ``labels`` int64.

    Raises
    ------
    DataError
        If a font is not installed.
    """
    atlas = GlyphAtlas.draw("test" if split == "test" else "train", progress=True)
    numbers = track(range(-(-count // CHUNK)), f"images ({split})")
    images, labels = zip(*(chunk(atlas, seed, number) for number in numbers), strict=True)
    np.savez_compressed(path, images=np.concatenate(images)[:count], labels=np.concatenate(labels)[:count])


def main(arguments: Sequence[str] | None = None) -> None:
    """Render one split into a file."""
    parser = argparse.ArgumentParser(
        prog="python -m fgq.eval.characters.render",
        description="Render seeded images of characters; with --split alone, the committed set.",
        epilog="example: python -m fgq.eval.characters.render --split test --count 50000 --out test.npz",
    )
    parser.add_argument("--split", choices=list(SEEDS), required=True, help="which images")
    parser.add_argument("--count", type=int, help="number of images (default: those of the committed set)")
    parser.add_argument("--seed", type=int, help="seed of the series (default: the committed set's)")
    parser.add_argument("--out", type=Path, help="the .npz file to write (default: the committed one)")
    options = parser.parse_args(arguments)
    split = options.split
    if split not in COMMITTED and (options.count is None or options.out is None):
        parser.error(f"--split {split}: found no committed set, wanted --count and --out as well")
    count = COMMITTED[split] if options.count is None else options.count
    if count < 1:
        parser.error(f"--count: found {count}, wanted at least 1")
    seed = SEEDS[split] if options.seed is None else options.seed
    write(split, count, seed, options.out or DATA / f"{split}.npz")


if __name__ == "__main__":
    main()
