"""Damaged and hostile .npz files: every one is refused in one line."""

import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgq.errors import DataError
from fgq.npz import read_array, read_headers

ROWS = np.arange(60, dtype=np.float32).reshape(20, 3)


def read(path):
    return {name: read_array(path, name) for name in read_headers(path)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array", [ROWS, np.asfortranarray(ROWS), np.float16(3), np.zeros((0, 4)), np.array(["a", "bc"])]
)
def test_headers_and_arrays_agree_with_what_was_saved(tmp_path, save, array):
    save(tmp_path / "a.npz", x=array, y=ROWS)
    headers = read_headers(tmp_path / "a.npz")
    assert list(headers) == ["x", "y"]
    assert (headers["x"].shape, headers["x"].dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npz", "x"), array)


def test_python_objects_are_refused_unread(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([1, "a"], object))
    with pytest.raises(DataError, match=r"a\.npz: found Python objects in 'x'"):
        read_headers(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01\x00", b"\x80\x04.", b"text\nlines\n"])
def test_not_an_archive(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.npz: found no readable .npz file"):
        read(path)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    path = tmp_path / "a.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match="cut short"):
        read(path)


def test_a_header_too_long_to_parse_gives_one_line(tmp_path):
    path = tmp_path / "a.npz"
    header = b"(" * 20_000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_truncation_is_refused(tmp_path, save):
    save(tmp_path / "whole.npz", x=ROWS)
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            read(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_under_any_compression(tmp_path, method):
    np.save(tmp_path / "x.npy", ROWS)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
        place = archive.getinfo("x.npy").compress_size // 2
    np.testing.assert_array_equal(read(path)["x"], ROWS)
    content = bytearray(path.read_bytes())
    content[place + 40 : place + 60] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(DataError, match="found no readable"):
        read(path)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_any_changed_byte_is_refused_or_harmless(tmp_path_factory, place, byte, compressed):
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=ROWS)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        try:
            read(path)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
