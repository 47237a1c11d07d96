"""Poolings of integers against onnxruntime's."""

import numpy as np
import pytest

from fgq import Session
from fgq.errors import DataError

RNG = np.random.default_rng(0)


def pooled(make_model, operator, quantizers, size):
    """Return a model that pools integers, and images for it."""
    text = f"""(uint8[B,C,H,W] q) => (uint8 y) {{
        d = DequantizeLinear(q, s, z)
        p = {operator}(d)
        y = QuantizeLinear(p, t, u)
    }}"""
    scale, zero, result_scale, result_zero = quantizers
    weights = {
        "s": np.float32(scale),
        "z": np.uint8(zero),
        "t": np.float32(result_scale),
        "u": np.uint8(result_zero),
    }
    images = RNG.integers(0, 256, (2, 37, *size)).astype(np.uint8)
    return make_model(text, weights, opset=19), {"q": images}


QUANTIZERS = [(0.02, 128, 0.02, 128), (0.085238, 251, 0.085238, 251), (0.0421, 7, 0.0313, 40)]


@pytest.mark.parametrize("quantizers", QUANTIZERS)
@pytest.mark.parametrize(
    ("operator", "size"),
    [
        ("AveragePool<kernel_shape=[4,3], strides=[1,2]>", (4, 3)),  # the whole image: as GlobalAveragePool
        ("AveragePool<kernel_shape=[4,3], ceil_mode=1>", (4, 3)),
        ("AveragePool<kernel_shape=[7,7], count_include_pad=1>", (7, 7)),
        ("AveragePool<kernel_shape=[4,3], pads=[0,1,0,0]>", (4, 3)),
        ("AveragePool<kernel_shape=[4,3], pads=[0,1,0,1], count_include_pad=1>", (4, 3)),
        ("AveragePool<kernel_shape=[4,3]>", (8, 3)),
        ('AveragePool<kernel_shape=[3,3], auto_pad="SAME_UPPER">', (3, 3)),
        ('AveragePool<kernel_shape=[2,1], strides=[2,3], auto_pad="SAME_UPPER">', (11, 3)),  # begins inside
        ('AveragePool<kernel_shape=[1,1], strides=[5,4], auto_pad="SAME_LOWER">', (10, 9)),
        ("AveragePool<kernel_shape=[3,2], strides=[2,2], ceil_mode=1>", (8, 7)),
        ("GlobalAveragePool", (4, 3)),
    ],
)
def test_averages_are_those_of_onnxruntime(make_model, run, operator, size, quantizers):
    model, feeds = pooled(make_model, operator, quantizers, size)
    session = Session(model.SerializeToString(), allow_float=True)
    np.testing.assert_array_equal(session.run(None, feeds), run(model, feeds))


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_maxima_that_begin_inside_the_image(make_model, run, auto):
    operator = f'MaxPool<kernel_shape=[1,2], strides=[4,5], auto_pad="{auto}">'
    model, feeds = pooled(make_model, operator, QUANTIZERS[0], (10, 11))
    session = Session(model.SerializeToString(), allow_float=True)
    np.testing.assert_array_equal(session.run(None, feeds), run(model, feeds))


LARGER = [
    (2, 4, "kernel_shape=[6,2], strides=[3,1], pads=[1,0,1,0]"),
    (2, 4, "kernel_shape=[6,2], strides=[3,1], pads=[1,0,1,0], count_include_pad=1"),
    (1, 4, "kernel_shape=[3,2], strides=[4,2], ceil_mode=1"),
    (1, 1, "kernel_shape=[2,2], strides=[2,2]"),
    (1, 5, "kernel_shape=[3,1], strides=[2,1]"),
]


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("height", "width", "form"), LARGER)
def test_windows_larger_than_the_image(make_model, run, operator, height, width, form):
    # onnxruntime divides towards zero, and so at times has one window where ONNX's floor has none
    if operator == "MaxPool":
        form = form.replace(", count_include_pad=1", "")
    model, feeds = pooled(make_model, f"{operator}<{form}>", QUANTIZERS[0], (height, width))
    session = Session(model.SerializeToString(), allow_float=True)
    kernel = "max_pool" if operator == "MaxPool" else "average_pool"
    assert kernel in [step.kernel for step in session.steps()]
    (found,), (wanted,) = session.run(None, feeds), run(model, feeds)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_no_room_for_a_window(make_model, operator):
    model, feeds = pooled(make_model, f"{operator}<kernel_shape=[4,1]>", QUANTIZERS[0], (1, 3))
    session = Session(model.SerializeToString(), allow_float=True)
    with pytest.raises(DataError, match="found an image of 1 x 3, wanted one that holds a window"):
        session.run(None, feeds)
