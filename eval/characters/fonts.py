"""The font families that the images show, and where their files lie.

``data/families.csv`` names every family with its Debian package, its licence, its files and its split:
families of the split ``train`` show the training and the calibration images, families of ``test`` the test
images. Run as ``python -m fgq.eval.characters.fonts`` it writes ``data/FONTS.md``.
"""

import argparse
import csv
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fgq.errors import DataError
from fgq.eval.characters import DATA

FONT_ROOT = Path("/usr/share/fonts")
"""Where Debian's font packages put their files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One font family: all faces that share a design.

    Attributes
    ----------
    name
        The family's own name.
    package
        The Debian package that brings it.
    licence
        The licence of the font files, as the package's copyright file states it.
    split
        ``"train"`` or ``"test"``.
    files
        The names of its faces' files: regular, bold, italic and bold italic where they exist.
    """

    name: str
    package: str
    licence: str
    split: Literal["train", "test"]
    files: tuple[str, ...]


def _read_families() -> tuple[Family, ...]:
    with (DATA / "families.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Family(
                name=row["family"],
                package=row["package"],
                licence=row["licence"],
                split="test" if row["split"] == "test" else "train",
                files=tuple(row["files"].split(";")),
            )
            for row in csv.DictReader(file)
        )


FAMILIES: tuple[Family, ...] = _read_families()
"""All families, training first, in alphabetical order."""


def find(families: Sequence[Family], root: Path = FONT_ROOT) -> list[tuple[Path, ...]]:
    """Find the files of each family under `root`.

    Returns
    -------
    list of tuple of Path
        For each family its faces' files in the order of `Family.files`.

    Raises
    ------
    DataError
        If a file is not there; the message names every Debian package to install.
    """
    # A package may hold one file name twice (variants of a face); the first in sorted order is taken.
    paths = {path.name: path for path in sorted(root.rglob("*.[ot]tf"), reverse=True)}
    missing = sorted({family.package for family in families for name in family.files if name not in paths})
    if missing:
        raise DataError(
            f"{root}: found no files of {len(missing)} font packages, wanted all of them; "
            f"install them with: apt-get install {' '.join(missing)}"
        )
    return [tuple(paths[name] for name in family.files) for family in families]


def _versions(packages: Sequence[str]) -> dict[str, str]:
    if shutil.which("dpkg-query") is None:
        raise DataError(
            "font packages: found no dpkg-query, wanted a Debian system to read the versions from"
        )
    query = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\n", *packages]
    listing = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    return dict(line.split("\t", 1) for line in listing.splitlines())


def markdown() -> str:
    """Describe all families with the installed versions of their packages, as ``data/FONTS.md``.

    Raises
    ------
    DataError
        If a font is missing or this is no Debian system.
    """
    find(FAMILIES)
    versions = _versions(sorted({family.package for family in FAMILIES}))
    count = {split: sum(family.split == split for family in FAMILIES) for split in ("train", "test")}
    lines = [
        "# Fonts of the character images",
        "",
        f"{count['train']} families show the training and calibration images, {count['test']} other families "
        "the test images. Each is a Debian package; the images show the glyphs, the fonts themselves are not "
        "part of this repository. This list is written by `python -m fgq.eval.characters.fonts`.",
        "",
        "| split | family | package | version | licence | faces |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in FAMILIES:
        cells = (family.split, family.name, family.package, versions[family.package], family.licence)
        lines.append(f"| {' | '.join(cells)} | {len(family.files)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``FONTS.md``."""
    parser = argparse.ArgumentParser(
        prog="python -m fgq.eval.characters.fonts",
        description="List the font families with the installed versions of their packages.",
        epilog="example: python -m fgq.eval.characters.fonts --out FONTS.md",
    )
    parser.add_argument("--out", type=Path, default=DATA / "FONTS.md", help="file to write (%(default)s)")
    options = parser.parse_args(arguments)
    options.out.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
