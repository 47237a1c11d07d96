"""The fuzzers for a few seconds each, from fixed seeds; `make fuzz` runs them for hours."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("name", "seed", "count"),
    [("graphs", 1005, 20), ("mutate_models", 21, 100), ("mutate_documents", 1, 150)],
)
def test_a_fuzzer_finds_nothing(name, seed, count):
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), "--seed", str(seed), "--count", str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{name}: {count} cases from seed {seed}" in done.stdout


def test_a_crash_a_hang_and_a_lack_of_memory_end_one_case_each():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import ctypes\n"
        "from workers import Outcome, run_cases, stage\n"
        "def case(index):\n"
        "    if index == 1:\n"
        "        stage('reading'); ctypes.string_at(8, 1)\n"
        "    if index == 3:\n"
        "        while True: pass\n"
        "    if index == 5:\n"
        "        bytearray(1 << 30)\n"
        "    return Outcome(index, 'ok')\n"
        "for outcome in run_cases(case, range(7), seconds=1, megabytes=256):\n"
        "    print(outcome.index, outcome.verdict, outcome.kind)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(HERE)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["0", "ok"], ["1", "crash"], ["2", "ok"], ["3", "hang"], ["4", "ok"], ["5", "harness"], ["6", "ok"],
    ]  # fmt: skip
    assert "reading (signal 11)" in lines[1]
    assert "MemoryError" in lines[5]
