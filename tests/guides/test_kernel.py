"""The guide "A kernel" of CONTRIBUTING.md: a module with three functions, and a row of the table."""

import sys
from types import ModuleType

import numpy as np
import pytest

from fgq import Session, convert
from fgq.kernels import Window, prepare_conv2d, prepare_matmul
from fgq.kernels.products import dispatch
from fgq.kernels.products.dispatch import Kernel
from fgq.kernels.products.reference import apply
from fgq.kernels.products.weights import Plane, Weight
from fgq.kernels.simd.isa import BY_NAME

RNG = np.random.default_rng(0)


def prepare(weight, bias, x_zero, window, isa):
    taps = (1, 1) if window is None else weight.shape[1:3]
    return weight.int8().astype(np.int64), bias, x_zero, taps, window or Window()


def scratch_shape(prepared, shape, threads):
    return 1, 0


def bind(prepared, x, epilogue, residual, out, scratch):
    w8, bias, x_zero, taps, window = prepared

    def run():
        top, left, bottom, right = window.pads
        image = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=x_zero)
        sums = np.zeros(out.shape, np.int64)
        for i in range(taps[0]):
            for j in range(taps[1]):
                seen = image[:, i : i + sums.shape[1], j : j + sums.shape[2]].astype(np.int64) - x_zero
                sums += seen @ w8.reshape(len(w8), *taps, -1)[:, i, j].T
        out[...] = apply((sums + bias).astype(np.int32), epilogue, residual)

    return run


@pytest.fixture
def taps_one_by_one(monkeypatch):
    """As a contributor would write it: ``kernels/products/taps_one_by_one.py``, and its row."""
    module = ModuleType("fgq.kernels.products.taps_one_by_one")
    module.prepare, module.scratch_shape, module.bind = prepare, scratch_shape, bind
    monkeypatch.setitem(sys.modules, module.__name__, module)
    row = Kernel(module="taps_one_by_one", isa=BY_NAME["portable"], whole_layer=True)
    monkeypatch.setattr(dispatch, "KERNELS", dispatch.build_table([row, *dispatch.KERNELS.values()]))
    return row.name


def drawn(*shape):
    codes = RNG.integers(-1, 2, shape, dtype=np.int8)
    alpha = RNG.integers(1, 60, (*shape[:-1], 2), dtype=np.uint8)
    return Weight((Plane(codes, alpha),), np.arange(shape[-1], dtype=np.int32) // -(-shape[-1] // 2))


def test_a_product_is_that_of_the_reference(taps_one_by_one):
    weight, x = drawn(5, 12), RNG.integers(0, 256, (7, 12), dtype=np.uint8)
    bias = RNG.integers(-1000, 1000, 5, dtype=np.int32)
    layer = prepare_matmul(weight, x_zero=9, bias=bias)
    reference = prepare_matmul(weight, x_zero=9, bias=bias, kernel="reference")
    assert layer.prepare(7).kernel.name == taps_one_by_one
    assert reference.prepare(7).kernel.name == "reference"
    np.testing.assert_array_equal(layer(x), reference(x))


def test_so_is_a_convolution(taps_one_by_one):
    weight, x = drawn(5, 3, 3, 6), RNG.integers(0, 256, (2, 8, 7, 6), dtype=np.uint8)
    layer, reference = (
        prepare_conv2d(weight, window=Window(pads=(1, 1, 1, 1)), x_zero=3, kernel=kernel)
        for kernel in ("auto", "reference")
    )
    np.testing.assert_array_equal(layer(x), reference(x))


def test_a_session_takes_it_and_agrees_with_onnxruntime(taps_one_by_one, make_model, check_integers):
    weights = {
        "w": RNG.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "v": RNG.standard_normal((8, 5)).astype(np.float32),
    }
    text = """(float[N,3,8,8] x) => (float y) {
        a = Conv<pads=[1,1,1,1]>(x, w)
        b = Relu(a)
        p = GlobalAveragePool(b)
        f = Flatten(p)
        y = Gemm(f, v)
    }"""
    feeds = {"x": RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)}
    converted, _ = convert(make_model(text, weights), calibration=feeds, group_size=4, first_last_int8=False)
    session = Session(converted.SerializeToString(), threads=1)
    session.run(None, feeds)
    assert any(taps_one_by_one in str(step) for step in session.steps())
    check_integers(converted, feeds)
