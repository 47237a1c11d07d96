"""Calls of layers with their arrays fixed, against calls that take them anew."""

import numpy as np
import pytest
from engines import before_a_forbidden_page as guarded
from engines import interpreted_loop
from layers import draw_activations, draw_bias, draw_weight

from fgq.errors import KernelError
from fgq.kernels import Dequantize, QuantizedAdd, Requantize, Sums, Window
from fgq.kernels.products.driver import aligned
from fgq.kernels.products.layer import Layer

RNG = np.random.default_rng(0)
SCALE = RNG.uniform(1e-4, 1e-2, 24).astype(np.float32)
ADD = QuantizedAdd(
    scale=0.02, zero_point=100, residual_scale=0.03, residual_zero_point=7, sum_scale=0.04, sum_zero_point=90
)
EPILOGUES = {
    "sums": Sums(),
    "real values": Dequantize(SCALE),
    "with a shift": Dequantize(SCALE, lowest=-1, shift=SCALE * 300),
    "activations": Requantize(SCALE, 100),
    "with an addition": Requantize(SCALE, 100, add=ADD),
}
LAYERS = {
    "matrix": ((24, 70), None, (5, 70)),
    "one row": ((24, 70), None, (1, 70)),
    "many rows": ((24, 70), None, (100, 70)),
    "convolution": ((24, 3, 3, 8), Window(pads=(1, 1, 1, 1), groups=2), (2, 7, 9, 16)),
    "depthwise": ((24, 3, 3, 1), Window(strides=(2, 2), groups=24), (2, 7, 9, 24)),
}
PRODUCT = LAYERS["matrix"]


@pytest.fixture(autouse=True)
def _interpreted_loop():
    with interpreted_loop():
        yield


def layer_of(shape, window, rng):
    kind = "int8" if shape[-1] == 1 else "ternary"
    return Layer(draw_weight(rng, kind, shape, 16), window=window, x_zero=7, bias=draw_bias(rng, 24) // 2**14)


@pytest.mark.parametrize("given", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("epilogue", EPILOGUES.values(), ids=EPILOGUES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_bound_call_sees_what_its_arrays_now_hold(given, epilogue, threads):
    shape, window, inputs = given
    rng = np.random.default_rng(1)
    layer = layer_of(shape, window, rng)
    x = guarded(np.zeros(inputs, np.uint8))
    out = guarded(np.zeros(layer.result_shape(x, threads), epilogue.dtype))
    scratch = aligned((layer.scratch_bytes(x, threads),), np.uint8)
    residual = guarded(np.zeros(out.shape, np.uint8)) if epilogue.needs_residual else None
    call = layer.bind(x, out, scratch, epilogue=epilogue, residual=residual, threads=threads)
    for junk in (0, 255, 99):
        x[...] = draw_activations(rng, inputs, 8)
        if residual is not None:
            residual[...] = draw_activations(rng, residual.shape, 8)
        scratch.fill(junk)
        out.view(np.uint8).fill(junk)
        wanted = layer(x.copy(), epilogue=epilogue, residual=residual)
        call()
        np.testing.assert_array_equal(out, wanted)


def test_scratch_may_be_larger_and_shared():
    """One piece of memory serves layers that run one after the other."""
    rng = np.random.default_rng(2)
    pairs = [
        (layer_of(shape, window, rng), draw_activations(rng, inputs, 8))
        for shape, window, inputs in LAYERS.values()
    ]
    scratch = aligned((max(layer.scratch_bytes(x) for layer, x in pairs) + 64,), np.uint8)
    outs = [np.zeros(layer.result_shape(x), np.int32) for layer, x in pairs]
    calls = [
        layer.bind(x, out, scratch, epilogue=Sums()) for (layer, x), out in zip(pairs, outs, strict=True)
    ]
    for call in calls * 2:
        call()
    for (layer, x), out in zip(pairs, outs, strict=True):
        np.testing.assert_array_equal(out, layer(x))


@pytest.mark.parametrize(
    ("shape", "dtype", "found"),
    [
        ((5, 23), np.int32, r"int32\[5, 23\]"),
        ((5, 24), np.uint8, r"uint8\[5, 24\]"),
        ((24,), np.int32, r"int32\[24\]"),
    ],
)
def test_results_that_do_not_fit_are_refused(shape, dtype, found):
    layer, x = layer_of(*PRODUCT[:2], np.random.default_rng(0)), np.zeros(PRODUCT[2], np.uint8)
    scratch = aligned((layer.scratch_bytes(x),), np.uint8)
    with pytest.raises(KernelError, match=rf"out: found {found}, wanted int32\[5, 24\]"):
        layer.bind(x, np.zeros(shape, dtype), scratch, epilogue=Sums())


@pytest.mark.parametrize(
    ("epilogue", "residual", "message"),
    [
        (Sums(), np.zeros((5, 24), np.uint8), "wanted none"),
        (Requantize(SCALE, 0, add=ADD), None, r"found none, wanted uint8\[5, 24\]"),
        (Requantize(SCALE, 0, add=ADD), np.zeros((5, 1), np.uint8), r"wanted uint8\[5, 24\]"),
        (Dequantize(SCALE), np.zeros((5, 24), np.uint8), r"wanted float32\[5, 24\]"),
    ],
    ids=["not wanted", "missing", "shape", "dtype"],
)
def test_residuals_that_do_not_fit_are_refused(epilogue, residual, message):
    layer, x = layer_of(*PRODUCT[:2], np.random.default_rng(0)), np.zeros(PRODUCT[2], np.uint8)
    out, scratch = np.zeros((5, 24), epilogue.dtype), aligned((layer.scratch_bytes(x),), np.uint8)
    with pytest.raises(KernelError, match=f"residual: .*{message}"):
        layer.bind(x, out, scratch, epilogue=epilogue, residual=residual)


def test_activations_that_do_not_fit_are_refused():
    layer = layer_of(*PRODUCT[:2], np.random.default_rng(0))
    for x in (np.zeros((5, 71), np.uint8), np.zeros((5, 70), np.int8), np.zeros(70, np.uint8)):
        with pytest.raises(KernelError, match="found"):
            layer.result_shape(x)
