"""What is compiled ahead: a session of each kind of operator compiles nothing more."""

import os
import subprocess
import sys

import pytest

from fgq.errors import KernelError
from fgq.kernels.warmup import warm_up

PROGRAM = """
import numpy as np
from numba.core.event import install_recorder
from fgq.kernels import warmup
from fgq.kernels.operators.activations import dynamic_quantization, quantize_activations
from fgq.kernels.operators.concat import Concat
from fgq.kernels.operators.elementwise import Add
from fgq.kernels.operators.gelu import Gelu
from fgq.kernels.operators.global_average import GlobalAveragePool
from fgq.kernels.operators.pooling import AveragePool, MaxPool
from fgq.kernels.operators.softmax import Softmax
from fgq.kernels.window import Window

warmup._layers = lambda *_: []
seen = []
with install_recorder("numba:compile") as cold:
    count = warmup.warm_up(progress=lambda done, total: seen.append((done, total)))
assert len(cold.buffer) > 10, len(cold.buffer)
assert seen == [(done, count) for done in range(count + 1)], seen
x, y = (np.zeros((2, 9, 11, 70), np.uint8) for _ in range(2))
real = np.zeros((6, 7, 70), np.float32)
with install_recorder("numba:compile") as warm:
    quantize_activations(real, *dynamic_quantization(real), threads=2)
    numbers = {"x_scale": 0.5, "x_zero": 3, "y_scale": 2.0, "y_zero": 4}
    MaxPool(x, y, (3, 3), Window(pads=(1, 1, 1, 1)), lowest=3)()
    AveragePool(x, y, (3, 3), Window(pads=(1, 1, 1, 1)), count_padding=True, **numbers)()
    GlobalAveragePool(x, np.zeros((2, 1, 1, 70), np.uint8), **numbers)()
    Add(x, x[:1, :1, :1].copy(), y, scales=(1.0, 0.5, 0.25), zeros=(1, 2, 3), threads=2)()
    Concat([x[:1].copy(), x[1:].copy()], y, 0, [np.arange(256, dtype=np.uint8)[::-1].copy()] * 2)()
    Softmax(real, np.zeros_like(real), scale=0.125, mask=np.zeros((7, 70), np.float32))()
    Gelu(real, np.zeros(real.shape, np.uint8), y_scale=0.1, y_zero=9)()
assert not warm.buffer, warm.buffer
"""


def test_nothing_is_left_to_compile(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_group_sizes_that_are_none():
    with pytest.raises(KernelError, match="group size: found 0, wanted at least 1"):
        warm_up((4, 0))
