"""Kernels as a lesser machine would have them: in a process whose processor is declared to lack features."""

import os
import subprocess
import sys

import pytest

from fgq.kernels.simd.isa import BY_NAME, INSTRUCTION_SETS, machine_features

SCRIPT = """
import sys
import numpy as np
from fgq.kernels import Plane, Requantize, Weight, Window, prepare_conv2d, prepare_matmul
from fgq.kernels.simd.isa import available

rng = np.random.default_rng(5)
print(*(isa.name for isa in available()))
used = set()


def check(layer, x, threads=2):
    wanted = type(layer)(
        layer.weight, window=layer.window, x_zero=layer.x_zero, bias=layer.bias,
        wishes=type(layer.wishes)(kernel="reference"),
    )
    rows = 64 if layer.window else len(x)
    used.add(layer.kernel(rows).name)
    np.testing.assert_array_equal(layer(x, threads=threads), wanted(x))
    epilogue = Requantize(np.float32(1e-3), 100)
    np.testing.assert_array_equal(layer(x, epilogue=epilogue), wanted(x, epilogue=epilogue))


def draw(shape, code, alpha, size):
    group = (np.arange(shape[-1]) // size).astype(np.int32)
    codes = rng.integers(-code, code + 1, shape).astype(np.int8)
    scales = rng.integers(0, alpha + 1, (*shape[:-1], group[-1] + 1)).astype(np.uint8)
    return Weight.single(codes, scales, group)


for bits in (8, 4):
    for wish, code, alpha in (
        ("multiplication-free", 1, 127), ("multiplication-free", 4, 31), ("dot", 1, 127), ("auto", 127, 1)
    ):
        options = {"kernel": wish, "x_zero": 7, "activation_bits": bits}
        for rows in (1, 3, 45):
            x = rng.integers(0, 1 << bits, (rows, 200)).astype(np.uint8)
            check(prepare_matmul(draw((37, 200), code, alpha, 64), **options), x)
        window = Window(strides=(2, 1), pads=(1, 1, 1, 1), groups=2)
        x = rng.integers(0, 1 << bits, (2, 11, 9, 24)).astype(np.uint8)
        check(prepare_conv2d(draw((20, 3, 3, 12), code, alpha, 4), window=window, **options), x)
window = Window(pads=(1, 1, 1, 1), groups=24)
check(prepare_conv2d(draw((24, 3, 3, 1), 127, 1, 1), window=window, x_zero=7), x)
print(*sorted(used))
"""

MACHINES = [isa for isa in INSTRUCTION_SETS if isa.name != "amx"]


def run_on(isa):
    features = set(BY_NAME["amx"].features) | {"avx512vl", "avxvnni", "avx512f", "evex512"}
    listed = [f"{'+' if name in isa.features else '-'}{name}" for name in sorted(features)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ",".join(listed)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sets, kernels = (line.split() for line in done.stdout.splitlines())
    assert sets[0] == isa.name
    return kernels


def test_a_machine_of_another_kind():
    kernels = run_on(BY_NAME["portable"])
    assert {"gemm_int8_portable", "gemm_ternary_portable", "conv2d_depthwise"} <= set(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("isa", MACHINES, ids=lambda isa: isa.name)
def test_lesser_machines(isa):
    if not isa.features <= machine_features():
        pytest.skip("this machine cannot run such code")
    kernels = run_on(isa)
    own = [name for name in kernels if f"[{isa.name}]" in name]
    assert own or isa.width == 0, kernels
