"""The tests of the operators between layers, in processes whose processor is declared to lack features."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgq.kernels.simd.isa import BY_NAME, machine_features

HERE = Path(__file__).parent
FILES = (
    "activations", "concat", "elementwise", "gelu", "global_average", "layer_norm", "lookup", "pooling",
    "rounding", "softmax", "transpose",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "isa", [BY_NAME[name] for name in ("avx512", "avx2", "portable")], ids=lambda isa: isa.name
)
def test_they_pass(isa):
    if not isa.features <= machine_features():
        pytest.skip("this machine cannot run such code")
    features = set(BY_NAME["amx"].features) | {"avxvnni", "evex512"}
    listed = [f"{'+' if name in isa.features else '-'}{name}" for name in sorted(features)]
    files = [str(HERE / "operators" / f"test_{name}.py") for name in FILES]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", *files],
        env=os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ",".join(listed)},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
