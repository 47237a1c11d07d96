import re

import pytest

from fgq.errors import DataError
from fgq.eval.characters import DATA
from fgq.eval.characters.fonts import FAMILIES, Family, find


def test_training_and_test_families_share_neither_name_nor_file():
    split = {name: {f for f in FAMILIES if f.split == name} for name in ("train", "test")}
    assert len(split["train"]) >= 40
    assert len(split["test"]) >= 15
    assert not {f.name for f in split["train"]} & {f.name for f in split["test"]}
    assert not {file for f in split["train"] for file in f.files} & {
        file for f in split["test"] for file in f.files
    }
    # Packages hold related designs (a serif beside its sans), which would be half seen.
    assert not {f.package for f in split["train"]} & {f.package for f in split["test"]}


def test_no_family_or_file_appears_twice():
    files = [file for family in FAMILIES for file in family.files]
    assert len(files) == len(set(files))
    assert len(FAMILIES) == len({family.name for family in FAMILIES})


def test_every_licence_is_free():
    for family in FAMILIES:
        assert re.fullmatch(
            r"OFL-1\.[01]|Apache-2\.0|Bitstream-Vera|A?GPL-[23]\+? with font exception", family.licence
        )


def test_the_list_of_fonts_names_every_family():
    rows = (DATA / "FONTS.md").read_text(encoding="utf-8").splitlines()
    cells = [
        tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows if row.startswith("| t")
    ]
    listed = [
        (split, name, package, licence) for split, name, package, version, licence, faces in cells if version
    ]
    assert listed == [(f.split, f.name, f.package, f.licence) for f in FAMILIES]


def test_files_are_found_in_subfolders_in_the_order_of_the_family(tmp_path):
    family = Family(name="A", package="fonts-a", licence="OFL-1.1", split="train", files=("b.ttf", "a.otf"))
    for name in ("x/a.otf", "x/y/b.ttf", "z/b.ttf", "x/c.ttf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find([family], tmp_path) == [(tmp_path / "x/y/b.ttf", tmp_path / "x/a.otf")]


def test_missing_fonts_are_named_by_their_packages(tmp_path):
    families = [
        Family(name=name, package=f"fonts-{name}", licence="OFL-1.1", split="train", files=(f"{name}.ttf",))
        for name in ("b", "a", "c")
    ]
    (tmp_path / "c.ttf").touch()
    with pytest.raises(DataError, match=r"apt-get install fonts-a fonts-b$"):
        find(families, tmp_path)
