"""Mutated files of data: each is read as what it is, or refused in one line.

``python tests/fuzz/mutate_data.py [COUNT [SEED]]``.
"""

import io
import random
import shutil
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fgq.data.inputs import InputSpec
from fgq.data.npz import read_array, read_headers
from fgq.data.sample_files import load_samples
from fgq.errors import FgqError

X = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
INPUTS = [InputSpec(name="x", dtype=np.dtype(np.float32), shape=("N", 4, 3))]
IMAGES = [InputSpec(name="x", dtype=np.dtype(np.float32), shape=("N", 3, 16, 16))]

MOST_BYTES = 64 << 20
"""What is read from a file of some kilobytes is not larger than this, unless the file says so of itself."""

Mutator = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    place = rng.randrange(len(changed))
    changed[place : place + rng.randrange(1, 16)] = rng.choice(
        (
            b"\xff" * 4,
            b"\0" * 4,
            b"\x7f\xff\xff\xff",
            b"\xff\xff\xff\x7f",
            rng.randbytes(8),
            b"PK\x03\x04",
            b"%!PS",
        )
    )
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    begin = rng.randrange(len(content))
    return (
        content[:begin] if rng.random() < 0.5 else content[:begin] + content[begin + rng.randrange(1, 64) :]
    )


def double(rng: random.Random, content: bytes) -> bytes:
    begin = rng.randrange(len(content))
    part = content[begin : begin + rng.randrange(1, 256)]
    place = rng.randrange(len(content))
    return content[:place] + part + content[place:]


MUTATORS: tuple[Mutator, ...] = (flip, flip, overwrite, cut, double)


def npy(rng: random.Random) -> bytes:
    """Return an array's file, perhaps with fields of its header that are not its own."""
    array = rng.choice((X, np.asfortranarray(X), X.astype(">f4"), X.astype(np.float64), X[0], X[:0]))
    if rng.random() < 0.2:
        array = np.where(array > 50, rng.choice((np.nan, np.inf)), array)
    content = io.BytesIO()
    np.lib.format.write_array(content, array, rng.choice(((1, 0), (2, 0), (3, 0))))
    if rng.random() < 0.5:
        return content.getvalue()
    header = {
        "descr": rng.choice(("<f4", ">f4", "<f8", "|O", "|V4", "<U0", "<M8[s]", [("a", "<f4")], "x", 3)),
        "fortran_order": rng.choice((False, True, 2, None)),
        "shape": rng.choice(
            ((5, 4, 3), (-5, -4, 3), (1 << 62, 4), (60,), (), (5, 4, 3, 1), 5, (True, 60), ("5",))
        ),
    }
    for key in rng.sample(list(header), rng.randrange(3)):
        header |= {key: {"descr": "<f4", "fortran_order": False, "shape": (5, 4, 3)}[key]}
    text = f"{header}\n".encode()
    version = rng.choice((1, 1, 1, 2, 9))
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + X.tobytes()


def npz(rng: random.Random) -> bytes:
    """Return an archive, perhaps of strange members, and perhaps mutated."""
    names = rng.choice(
        (["x"], ["x"], ["x.npy"], ["x.npy", "labels.npy"], ["x", "x.npy"], ["x.npy", "../x.npy"])
    )
    content = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(content, "w", method) as archive:
        for name in names:
            labels = io.BytesIO()
            np.save(labels, np.arange(rng.choice((5, 5, 4))) - rng.choice((0, 0, 1)))
            with archive.open(name, "w", force_zip64=rng.random() < 0.2) as file:
                file.write(labels.getvalue() if name == "labels.npy" else npy(rng))
    return rng.choice(MUTATORS)(rng, content.getvalue()) if rng.random() < 0.7 else content.getvalue()


def image(rng: random.Random) -> bytes:
    """Return an image of any format under any name, perhaps mutated."""
    mode = rng.choice(("RGB", "RGB", "L", "P", "RGBA", "CMYK", "1", "LA"))
    pixels = np.random.default_rng(rng.randrange(100)).integers(0, 256, (20, 24, 3), np.uint8)
    found = Image.fromarray(pixels).convert(mode)
    content = io.BytesIO()
    format_ = rng.choice(("PNG", "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "EPS"))
    try:
        options = {"save_all": True, "append_images": [found]} if rng.random() < 0.1 else {}
        found.save(content, format_, **options)
    except (KeyError, OSError, ValueError):  # no such mode, or no movement, in this format
        found.convert("RGB").save(content, format_)
    whole = content.getvalue()
    if rng.random() < 0.2:
        return whole
    if whole.startswith(b"\x89PNG") and rng.random() < 0.5:
        return png_header(rng, whole)
    return rng.choice(MUTATORS)(rng, whole)


def png_header(rng: random.Random, content: bytes) -> bytes:
    """Change a PNG's size, bits or colours, with a checksum that says it is right."""
    changed = bytearray(content)
    place = rng.choice((16, 20, 24, 25, 26, 27, 28))
    if place < 24:
        changed[place : place + 4] = rng.choice((0, 1, 25, 9000, 100_000, 2**31 - 1, 2**32 - 1)).to_bytes(
            4, "big"
        )
    else:
        changed[place] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    changed[29:33] = zlib.crc32(changed[12:29]).to_bytes(4, "big")
    return bytes(changed)


def check_npz(path: Path) -> None:
    """Read a file of arrays in every way."""
    headers = read_headers(path)
    for name, header in headers.items():
        array = read_array(path, name, header)
        assert (array.shape, array.dtype) == (header.shape, header.dtype), "read is not what was checked"
        assert array.nbytes <= MOST_BYTES, f"{array.nbytes} bytes were read"
    check_samples(path, INPUTS)


def check_images(folder: Path) -> None:
    """Read a folder of one image."""
    check_samples(folder, IMAGES)


def check_samples(path: Path, inputs: list[InputSpec]) -> None:
    samples = load_samples(path, inputs)
    count = 0
    for feed in samples.batches(2):
        (array,) = feed.values()
        assert array.dtype == np.float32, f"found {array.dtype}"
        assert array.shape[1:] == inputs[0].shape[1:], f"found {array.shape}"
        assert np.isfinite(array).all(), "found NaN or infinity"
        count += len(array)
    assert count == len(samples), f"found {count} samples of {len(samples)}"


def run(seed: int, count: int) -> list[str]:
    """Read mutated .npz and image files.

    Parameters
    ----------
    seed, count : int
        Of the mutations, and how many files.

    Returns
    -------
    list of str
        A line for each file that is neither read rightly nor refused by an error of fgq in one line; the
        number in it makes the file again.
    """
    failures = []
    folder = Path(tempfile.mkdtemp(prefix="mutated-"))
    try:
        (folder / "images").mkdir()
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choice(("npz", "npz", "image"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile's, of two members of one name
                content = npz(rng) if kind == "npz" else image(rng)
            path = folder / "a.npz" if kind == "npz" else folder / "images" / "a.png"
            path.write_bytes(content)
            failure = wrong(
                check_npz if kind == "npz" else check_images, path if kind == "npz" else path.parent
            )
            if failure is not None:
                failures.append(f"seed {seed}, number {number}, {kind} of {len(content)} bytes: {failure}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return failures


def wrong(check: Callable[[Path], None], path: Path) -> str | None:
    """Return what is wrong with how a file is read, None where nothing is."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            check(path)
    except FgqError as error:
        return None if "\n" not in str(error) and "a." in str(error) else f"said {error!s}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"warned {told[0].message}" if told else None


if __name__ == "__main__":
    tried, first = (int(given) for given in (sys.argv[1:] + ["10000", "0"][len(sys.argv) - 1 :]))
    failed = run(first, tried)
    print(f"{tried} files, {len(failed)} failures")
    for line in failed:
        print(line)
    sys.exit(len(failed) > 0)
