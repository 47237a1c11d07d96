"""Damaged and hostile .npz files: every one is refused in one line."""

import io
import os
import resource
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgq.data.npz import read_array, read_headers
from fgq.errors import DataError

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


def npy(array, **changes):
    """Return an array's file, with other fields in its header."""
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    text = f"{header | changes}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes()


def archive(path, members, method=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("names", [("x", "x.npy"), ("x.npy", "x"), ("x.npy", "x.npy")])
def test_two_arrays_of_one_name(tmp_path, names):
    path = archive(tmp_path / "a.npz", [(name, npy(ROWS + place)) for place, name in enumerate(names)])
    with pytest.raises(DataError, match=r"a\.npz: found two arrays named 'x', wanted one"):
        read_headers(path)
    with pytest.raises(DataError, match=r"a\.npz: found two arrays named 'x', wanted one"):
        read_array(path, "x")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("array", [ROWS, np.asfortranarray(ROWS), ROWS.astype(">f4"), np.zeros((0, 4))])
def test_every_version_order_and_byte_order(tmp_path, version, array):
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    path = archive(tmp_path / "a.npz", [("x.npy", content.getvalue())], zipfile.ZIP_DEFLATED)
    header = read_headers(path)["x"]
    found = read_array(path, "x", header)
    assert (header.shape, header.dtype) == (found.shape, found.dtype) == (array.shape, array.dtype)
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"shape": (-20, -3)}, "negative length"),
        ({"shape": (20, 4)}, "cut short"),
        ({"shape": (20, 2)}, "cut short"),
        ({"shape": (1 << 70,)}, "cut short"),
        ({"shape": "20"}, "shape is not valid"),
        ({"descr": "<U0", "shape": (1 << 40,)}, "found <U0 values in 'x'"),
        (
            {"descr": [("a", "<f4"), ("b", "<f4")], "shape": (30,)},
            "values in 'x', wanted an array of numbers",
        ),
        ({"descr": "|V4"}, r"values in 'x', wanted an array of numbers"),
        ({"descr": "<M8[ns]", "shape": (30,)}, r"values in 'x', wanted an array of numbers"),
        ({"descr": "|O"}, "found Python objects in 'x'"),
        ({"fortran_order": 2}, "fortran_order is not a valid bool"),
        ({"more": 1}, "Header does not contain the correct keys"),
    ],
)
def test_headers_that_are_not_what_they_should_be(tmp_path, changes, found):
    path = archive(tmp_path / "a.npz", [("x.npy", npy(ROWS, **changes))])
    for reader in (read_headers, lambda path: read_array(path, "x")):
        with pytest.raises(DataError, match=found):
            reader(path)


@pytest.mark.parametrize(
    "text", [b"__import__('os').system('touch gone')", b"(" * 300, b"{}", b"\xff" * 20, b""]
)
def test_a_header_that_is_no_literal(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with pytest.raises(DataError, match="found no readable"):
        read(archive(tmp_path / "a.npz", [("x.npy", content)]))
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("version", [0, 4, 255])
def test_an_unknown_version(tmp_path, version):
    content = bytearray(npy(ROWS))
    content[6] = version
    with pytest.raises(DataError, match=f"unknown version {version}.0"):
        read(archive(tmp_path / "a.npz", [("x.npy", bytes(content))]))


def test_more_than_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("fgq.data.npz._memory", lambda: 100)
    with pytest.raises(DataError, match=r"found x: float32\[20, 3\], 240 bytes, wanted arrays that fit"):
        read(archive(tmp_path / "a.npz", [("x.npy", npy(ROWS))]))


def test_a_size_that_is_a_lie_is_not_believed(tmp_path):
    """All three places that tell a size agree on a gigabyte; the data are 240 bytes."""
    size = 1 << 28
    content = npy(ROWS, shape=(size,))
    path = archive(tmp_path / "a.npz", [("x.npy", content)])
    whole = path.read_bytes()
    told, lie = (
        len(content).to_bytes(4, "little"),
        (len(content) - ROWS.nbytes + 4 * size).to_bytes(4, "little"),
    )
    path.write_bytes(whole.replace(told, lie))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="found no readable"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_names_are_but_names(tmp_path):
    names = ["/etc/x", "../up", "a/b", "C:\\x", "."]
    path = archive(tmp_path / "a.npz", [(f"{name}.npy", npy(ROWS)) for name in names])
    assert sorted(read(path)) == sorted(names)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


def test_folders_encrypted_members_and_too_many(tmp_path):
    with pytest.raises(DataError, match="found no readable"):
        read(archive(tmp_path / "a.npz", [("x/", b"")]))
    path = archive(tmp_path / "b.npz", [("x.npy", npy(ROWS))])
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        read(path)
    many = [(f"{number}.npy", b"") for number in range(10_001)]
    with pytest.raises(DataError, match="found 10001 arrays, wanted at most 10000"):
        read(archive(tmp_path / "c.npz", many))


def test_a_file_that_changes_after_its_check(tmp_path):
    path = archive(tmp_path / "a.npz", [("x.npy", npy(ROWS))])
    header = read_headers(path)["x"]
    archive(path, [("x.npy", npy(ROWS[:5]))])
    with pytest.raises(DataError, match=r"found x: float32\[5, 3\], wanted the float32\[20, 3\] that it was"):
        read_array(path, "x", header)
    archive(path, [("y.npy", npy(ROWS))])
    with pytest.raises(DataError, match="found no array 'x' any more"):
        read_array(path, "x", header)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", tmp_path / "gone"):
        with pytest.raises(DataError, match="found no file but a folder, device or pipe, or nothing"):
            read_headers(path)


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
