"""Folders that are removed however a process ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fgq.errors import OutputError
from fgq.support.temporary import new_folder, temporary_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such locks")

HOLD = """
import sys, time
from pathlib import Path
from fgq.support.temporary import new_folder
with new_folder(Path(sys.argv[1]), "o.onnx") as folder:
    (folder / "half").write_text("half")
    print(folder.name, flush=True)
    time.sleep(60)
"""


def test_is_private_and_removed(tmp_path):
    with new_folder(tmp_path, "o.onnx") as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, FileExistsError])
def test_is_removed_by_any_failure(tmp_path, failure):
    with pytest.raises(failure), new_folder(tmp_path):
        raise failure
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_has_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path):
    def hold():
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    (killed, left), (living, used) = hold(), hold()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert {left, used} == set(os.listdir(tmp_path))
    with new_folder(tmp_path) as folder:
        assert set(os.listdir(tmp_path)) == {used, folder.name}
        with new_folder(tmp_path) as other:  # nor is one of the same process
            assert set(os.listdir(tmp_path)) == {used, folder.name, other.name}
    living.kill()
    living.communicate()


def test_what_is_not_ours_is_left_alone(tmp_path):
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("")
    names = ["fgq-notes", ".o.onnx.backup", "fgq-0123456789ABCDEF", "my.fgq-0123456789abcdef"]
    for name in names:
        (place / name).mkdir()
    (place / "fgq-0123456789abcdef").symlink_to(elsewhere)
    (place / "fgq-0123456789abcdee").write_text("a file")
    with new_folder(place):
        pass
    assert len(os.listdir(place)) == len(names) + 2
    assert os.listdir(elsewhere) == ["precious"]


def test_many_at_once(tmp_path):
    program = """
import sys
from pathlib import Path
from fgq.support.temporary import new_folder
for _ in range(200):
    with new_folder(Path(sys.argv[1])) as folder:
        (folder / "file").write_text("")
        assert (folder / "file").exists()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path], stderr=subprocess.PIPE) for _ in range(3)
    ]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["gone", "file"])
def test_no_place_for_temporary_files(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / place))
    with pytest.raises(OutputError, match="temporary files: cannot be written"), temporary_folder():
        pytest.fail("there is no place")


def test_time_is_not_what_tells(tmp_path):
    with new_folder(tmp_path) as old:
        os.utime(old, (0, time.time() - 1e6))
        with new_folder(tmp_path):
            assert old.exists()
