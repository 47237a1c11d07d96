"""Damaged and foreign caches of compiled code count as absent, and are written anew."""

import importlib.util
import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest

from fgq.kernels import _code_cache
from fgq.kernels._code_cache import own_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of folders")

KERNEL = """
from fgq.kernels._jit import jit

@jit
def triple(x):
    return x * 3
"""

RUN = """
import sys
from kernel_of_test import triple

print(triple(14), sum(triple.stats.cache_hits.values()), sum(triple.stats.cache_misses.values()))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Run the kernel as a new process would, which finds only what is on disk."""
    (tmp_path / "kernel_of_test.py").write_text(KERNEL)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)

    def run(*values):
        spec = importlib.util.spec_from_file_location("kernel_of_test", tmp_path / "kernel_of_test.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = [module.triple(value) for value in values or (14,)]
        stats = module.triple.stats
        return [*found, sum(stats.cache_hits.values()), sum(stats.cache_misses.values())]

    return run


@pytest.fixture
def start(tmp_path):
    """Start a process that runs one tiny kernel with the caches in a folder."""
    (tmp_path / "kernel_of_test.py").write_text(KERNEL)
    (tmp_path / "cache").mkdir(mode=0o700, exist_ok=True)

    def start(code=RUN, temporary="temporary", **options):
        (tmp_path / temporary).mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ
            | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / temporary)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


@pytest.fixture
def run(start):
    def run(*arguments, **options):
        process = start(*arguments, **options)
        shown, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return list(map(int, shown.split())), said

    return run


LOADED, COMPILED = [42, 1, 0], [42, 0, 1]


def entries(folder):
    return sorted((folder / "cache").rglob("*.nbc"))


def test_every_damage_counts_as_absent_and_is_mended(here, tmp_path):
    assert here() == COMPILED
    assert here() == LOADED
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # within machine code, say
    damages = [b"", whole[:20], whole[:-1], bytes(flipped), os.urandom(4000), whole + b"more", b"\x80\x04."]
    for damage in damages:
        entry.write_bytes(damage)
        assert here() == COMPILED
        # What is written anew may have another order of symbols, but is whole.
        assert len(entry.read_bytes()) >= len(whole) // 2
    assert here() == LOADED
    assert entries(tmp_path) == [entry]


def test_what_is_no_file_counts_as_absent(here, tmp_path):
    here()
    (entry,) = entries(tmp_path)
    entry.unlink()
    entry.mkdir()
    assert here() == COMPILED
    entry.rmdir()
    entry.symlink_to(tmp_path / "nothing")
    assert here() == COMPILED
    assert here() == LOADED
    assert entry.is_file()


def test_an_entry_of_another_key_is_not_taken(here, tmp_path):
    assert here(14, 0.5) == [42, 1.5, 0, 2]
    one, other = entries(tmp_path)
    swapped = one.read_bytes(), other.read_bytes()
    one.write_bytes(swapped[1])
    other.write_bytes(swapped[0])
    assert here(14, 0.5) == [42, 1.5, 0, 2]
    assert here(14, 0.5) == [42, 1.5, 2, 0]


def test_a_full_disk_leaves_nothing_and_fails_nothing(run, tmp_path):
    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    assert run(preexec_fn=fill) == (COMPILED, "")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert run()[0] == COMPILED
    (entry,) = entries(tmp_path)
    entry.write_bytes(b"damaged")
    assert run(preexec_fn=fill) == (COMPILED, "")
    assert entry.read_bytes() == b"damaged"


def test_processes_that_write_at_once_leave_one_whole_entry(start, run, tmp_path):
    together = [start() for _ in range(3)]
    for process in together:
        shown, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
        assert shown.split()[0] == "42"
    assert run()[0] == LOADED
    assert len(entries(tmp_path)) == 1


def test_what_a_killed_process_left_aside_is_removed(here, tmp_path):
    here()
    (entry,) = entries(tmp_path)
    entry.unlink()
    old, new = (entry.with_name(f"{entry.name}.{name}.new") for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * _code_cache._ABANDONED))
    assert here() == COMPILED
    assert new.exists()  # somebody may be writing it
    assert not old.exists()


def test_a_cache_that_others_can_write_is_not_used(here, tmp_path, monkeypatch):
    for way in _code_cache._Implementation._locator_classes[1:]:  # nor is one beside the source
        monkeypatch.setattr(way, "from_function", lambda *arguments: None)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    here()
    (tmp_path / "cache").chmod(0o777)
    own_folder.cache_clear()
    with pytest.warns(UserWarning, match=r"NUMBA_CACHE_DIR: found .* where others can write too"):
        assert here() == COMPILED
    (tmp_path / "cache").chmod(0o700)
    own_folder.cache_clear()
    assert here() == LOADED


class TestOwnFolder:
    @pytest.fixture(autouse=True)
    def afresh(self):
        own_folder.cache_clear()
        yield
        own_folder.cache_clear()

    @pytest.mark.parametrize(("mode", "own"), [(0o700, True), (0o755, True), (0o757, False), (0o1777, False)])
    def test_modes(self, tmp_path, mode, own):
        tmp_path.chmod(mode)
        assert (own_folder(str(tmp_path)) is not None) == own

    @pytest.mark.parametrize(("mode", "own"), [(0o777, False), (0o1777, True)])
    def test_modes_above(self, tmp_path, mode, own):
        (tmp_path / "below").mkdir(mode=0o700)
        tmp_path.chmod(mode)
        assert (own_folder(str(tmp_path / "below")) is not None) == own

    @pytest.mark.parametrize("alone", [True, False])
    def test_a_group_that_may_write(self, tmp_path, monkeypatch, alone):
        tmp_path.chmod(0o770)
        gid = tmp_path.stat().st_gid
        monkeypatch.setattr(_code_cache, "_own_groups", lambda: frozenset([gid] if alone else []))
        assert (own_folder(str(tmp_path)) is not None) == alone

    def test_links_are_followed(self, tmp_path):
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to("real")
        assert own_folder(str(tmp_path / "link")) == (tmp_path / "real").resolve()
        (tmp_path / "real").chmod(0o777)
        own_folder.cache_clear()
        assert own_folder(str(tmp_path / "link")) is None
        assert own_folder(str(tmp_path / "gone")) is None

    def test_of_another_user(self, tmp_path, monkeypatch):
        found = tmp_path.stat()
        monkeypatch.setattr(os, "getuid", lambda: found.st_uid + 1)
        assert own_folder(str(tmp_path)) is None


def test_entries_are_for_their_owner(here, tmp_path):
    here()
    (entry,) = entries(tmp_path)
    assert not stat.S_IMODE(entry.stat().st_mode) & 0o022
    assert Path(entry.parent).stat().st_uid == os.getuid()
