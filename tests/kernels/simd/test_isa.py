import itertools
import os
import subprocess
import sys

import pytest

from fgq.errors import KernelError
from fgq.kernels.simd import isa
from fgq.kernels.simd.isa import BY_NAME, INSTRUCTION_SETS, available, index_of, machine_features, require


def features_of(**environment):
    script = "from fgq.kernels.simd.isa import *; print(*(isa.name for isa in available()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_the_portable_set_is_always_there_and_last():
    assert available()[-1] is BY_NAME["portable"]
    assert set(available()) <= set(INSTRUCTION_SETS)


def test_sets_are_listed_best_first():
    for better, worse in itertools.pairwise(INSTRUCTION_SETS[:4]):
        assert better.features > worse.features
    assert [index_of(one) for one in INSTRUCTION_SETS] == list(range(len(INSTRUCTION_SETS)))


def test_features_can_be_masked():
    assert features_of(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="") == ["portable"]
    avx2 = "+avx,+avx2,+fma,-avx512f"
    assert features_of(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=avx2) == ["avx2", "portable"]


def test_nothing_is_emitted_where_nothing_is_compiled():
    assert features_of(NUMBA_DISABLE_JIT="1") == ["portable"]


def test_tiles_need_the_permission_of_the_system(monkeypatch):
    if "amx-tile" not in machine_features():
        pytest.skip("this machine has no tiles")
    monkeypatch.setattr(isa, "_tiles_granted", lambda: False)
    machine_features.cache_clear()
    try:
        assert "amx-tile" not in machine_features()
    finally:
        machine_features.cache_clear()


def test_what_the_machine_lacks_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(isa, "machine_features", lambda: frozenset({"avx", "avx2"}))
    with pytest.raises(KernelError, match="instruction set avx2: found a machine without fma"):
        require(BY_NAME["avx2"])
