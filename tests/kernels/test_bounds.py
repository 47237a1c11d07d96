"""All arrays of a kernel end at a page that nobody may touch: one byte too far ends the process."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from engines import drive
from layers import draw_activations, draw_bias, draw_weight, fitting_size, wanted_sums
from test_every_kernel import HERE, Forced, by_name

from fgq.kernels import Dequantize, QuantizedAdd, Requantize, Sums, Window
from fgq.kernels.products import driver
from fgq.kernels.products.driver import plan_job
from fgq.kernels.products.gather import Geometry
from fgq.kernels.products.layer import Layer

ADD = QuantizedAdd(
    scale=0.02, zero_point=100, residual_scale=0.03, residual_zero_point=9, sum_scale=0.04, sum_zero_point=50
)


def guard_scratch(monkeypatch):
    monkeypatch.setattr(
        driver.held, "borrow", lambda count, size: guarded(np.zeros((count, size), np.uint8)), raising=False
    )


def run_guarded(layer, x, epilogue=None, residual=None):
    """Run a layer with its weights, input, output and parameters each before a forbidden page."""
    if layer.kernel().whole_layer:
        residual = None if residual is None else guarded(residual)
        return layer(guarded(x), epilogue=epilogue, residual=residual)
    engine = layer.prepare().content
    weights = tuple(guarded(array) for array in engine.weights)
    window = layer.window or Window()
    image = x if layer.window else x[None, :, None, :]
    taps = layer.weight.shape[1:3] if layer.window else (1, 1)
    geometry = Geometry.of(image.shape, taps, window, layer.x_zero)
    job = plan_job(engine, geometry, layer.outputs // window.groups, 1)
    plain = layer(x, epilogue=epilogue, residual=residual)
    out = guarded(np.zeros_like(plain))
    if epilogue is not None:
        factor = {"Dequantize": "scale", "Requantize": "multiplier"}[type(epilogue).__name__]
        per_output = np.full(layer.outputs, getattr(epilogue, factor), np.float32)
        epilogue = dataclasses.replace(epilogue, **{factor: guarded(per_output)})
    residual = None if residual is None else guarded(residual)
    drive(job, weights, guarded(x), guarded(layer._folded_bias), epilogue or Sums(), out, residual)
    np.testing.assert_array_equal(out, plain)
    return out


@pytest.mark.parametrize("kernel", HERE, ids=by_name)
@pytest.mark.parametrize("memory", ["fast", "compact"])
def test_nothing_behind_an_array_is_touched(kernel, memory, monkeypatch):
    guard_scratch(monkeypatch)
    rng = np.random.default_rng(3)
    few = kernel.most_rows
    for reduction, outputs, group_size, bits in (
        (64, 64, 64, 8),
        (128, 33, 16, 4),
        (75, 17, 4, 8),
        (1, 1, 4, 8),
    ):
        rows = int(rng.integers(1, few + 1)) if few else int(rng.choice([1, 16, 33, 64]))
        if not kernel.depthwise:
            weight = draw_weight(rng, "ternary", (outputs, reduction), group_size)
            layer = Forced(
                weight, kernel, memory, x_zero=7, bias=draw_bias(rng, outputs), activation_bits=bits
            )
            x = draw_activations(rng, (rows, reduction), bits)
            np.testing.assert_array_equal(run_guarded(layer, x), wanted_sums(weight, layer.bias, 7, None, x))
            for epilogue, dtype in (
                (Dequantize(np.float32(1e-4)), np.float32),
                (Requantize(np.float32(1e-4), 100, add=ADD), np.uint8),
            ):
                run_guarded(layer, x, epilogue, rng.integers(0, 200, (rows, outputs)).astype(dtype))
    if few:
        return
    for taps, strides, channels in (
        ((3, 3), (1, 1), 5),
        ((7, 7), (2, 2), 3),
        ((1, 1), (2, 1), 64),
        ((2, 3), (1, 2), 16),
    ):
        window = Window(strides=strides, pads=(1, 1, 0, 1), groups=channels if kernel.depthwise else 1)
        inputs = 1 if kernel.depthwise else channels
        weight = draw_weight(rng, "ternary", (channels * 2 if kernel.depthwise else 18, *taps, inputs), 16)
        layer = Forced(weight, kernel, memory, window=window, x_zero=7)
        x = draw_activations(rng, (2, *fitting_size((9, 8), taps, window), channels), 8)
        np.testing.assert_array_equal(run_guarded(layer, x), wanted_sums(weight, layer.bias, 7, window, x))


def test_the_guard_ends_a_process_that_reads_too_far():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import ctypes, numpy as np\n"
        "from engines import before_a_forbidden_page as guarded\n"
        "x = guarded(np.zeros(100, np.uint8))\n"
        "ctypes.string_at(x.ctypes.data, 100); print('inside', flush=True)\n"
        "ctypes.string_at(x.ctypes.data, 101)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["inside"]
    assert done.returncode < 0


def test_layers_hand_their_arrays_over_as_they_are():
    # the guard would be worthless if a copy were made on the way
    weight = draw_weight(np.random.default_rng(0), "ternary", (16, 64), 64)
    x = guarded(np.ones((64, 64), np.uint8))
    assert np.require(x, requirements=["C", "W"]) is x
    assert Layer(weight)(x).shape == (64, 16)
