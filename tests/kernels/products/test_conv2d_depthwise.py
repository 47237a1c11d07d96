"""Depthwise convolutions with their epilogue, against onnxruntime's QLinearConv, and within their arrays.

That all instruction sets give the sums of the reference is in test_every_kernel.py.
"""

import numpy as np
import onnxruntime
import pytest
from engines import before_a_forbidden_page
from layers import draw_activations, draw_bias, draw_weight
from onnx import TensorProto, helper, numpy_helper

from fgq.kernels import Dequantize, QuantizedAdd, Requantize, Sums, Weight, Window
from fgq.kernels.products import conv2d_depthwise
from fgq.kernels.products.driver import aligned
from fgq.kernels.products.gather import Geometry
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512vnni", "avx512", "avx2", "portable")]
each_tier = pytest.mark.parametrize("isa", TIERS, ids=lambda isa: isa.name)


def qlinear_conv(x, w8, bias, x_zero, window, scales):
    x_scale, row_scale, y_scale, y_zero = scales
    constants = {
        "xs": x_scale, "xz": np.uint8(x_zero), "w": w8.transpose(0, 3, 1, 2).copy(), "ws": row_scale,
        "wz": np.zeros(len(w8), np.int8), "ys": y_scale, "yz": np.uint8(y_zero), "b": bias,
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"],
        strides=window.strides, pads=window.pads, dilations=window.dilations, group=window.groups,
    )  # fmt: skip
    x = x.transpose(0, 3, 1, 2).copy()
    graph = helper.make_graph(
        [node],
        "depthwise",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].transpose(0, 2, 3, 1)


def run(prepared, x, epilogue, residual, threads):
    """Return what a bound convolution writes."""
    size = Geometry.of(x.shape, prepared.kernel, prepared.window, prepared.x_zero).size
    out = np.empty((len(x), *size, prepared.bias.size), epilogue.dtype)
    scratch = aligned(conv2d_depthwise.scratch_shape(prepared, x.shape, threads), np.uint8)
    conv2d_depthwise.bind(prepared, x, epilogue, residual, out, scratch)()
    return out


@each_tier
@pytest.mark.parametrize("channels", [1, 7, 16, 33, 144])
@pytest.mark.parametrize(
    ("taps", "window"),
    [
        ((3, 3), Window(pads=(1, 1, 1, 1))),
        ((3, 3), Window(pads=(0, 0, 1, 1), strides=(2, 2))),
        ((5, 5), Window(pads=(2, 2, 2, 2))),
        ((4, 2), Window(strides=(1, 3))),
        ((3, 3), Window(pads=(2, 2, 2, 2), dilations=(2, 2))),
    ],
    ids=["3 x 3", "3 x 3 strided", "5 x 5", "4 x 2", "3 x 3 dilated"],
)
def test_it_is_qlinear_conv(isa, channels, taps, window):
    rng = np.random.default_rng(channels)
    window = Window(strides=window.strides, pads=window.pads, dilations=window.dilations, groups=channels)
    w8 = rng.integers(-127, 128, (channels, *taps, 1)).astype(np.int8)
    weight = Weight.single(w8, np.ones((channels, *taps, 1), np.uint8), np.zeros(1, np.int32))
    bias = rng.integers(-3000, 3000, channels, dtype=np.int32)
    x = draw_activations(rng, (2, 19, 37, channels), 8)
    row_scale = rng.uniform(1e-3, 2e-2, channels).astype(np.float32)
    x_scale, y_scale = np.float32(0.02), np.float32(0.7)
    wanted = qlinear_conv(x, w8, bias, 9, window, (x_scale, row_scale, y_scale, 131))
    prepared = conv2d_depthwise.prepare(weight, bias, 9, window, isa)
    epilogue = Requantize(x_scale * row_scale / y_scale, 131)
    for threads in (1, 3):
        found = run(prepared, x, epilogue, None, threads)
        np.testing.assert_array_equal(found, wanted)


@each_tier
@pytest.mark.parametrize("filters", [1, 2, 3])
def test_every_epilogue_with_several_filters_on_a_channel(isa, filters):
    rng = np.random.default_rng(filters)
    window, outputs = Window(pads=(1, 0, 1, 2), groups=11), 11 * filters
    weight = draw_weight(rng, "int8", (outputs, 3, 3, 1), 1)
    bias = draw_bias(rng, outputs) >> 16
    x = draw_activations(rng, (2, 9, 8, 11), 8)
    prepared = conv2d_depthwise.prepare(weight, bias, 200, window, isa)
    portable = conv2d_depthwise.prepare(weight, bias, 200, window, available()[-1])
    acc = run(portable, x, Sums(), None, 1)
    scale = rng.uniform(1e-4, 1e-2, outputs).astype(np.float32)
    np.testing.assert_array_equal(run(prepared, x, Sums(), None, 2), acc)
    np.testing.assert_array_equal(
        run(prepared, x, Dequantize(scale, lowest=0), None, 2),
        np.maximum(acc.astype(np.float32) * scale, 0),
    )
    add = QuantizedAdd(
        scale=0.1, zero_point=3, residual_scale=0.2, residual_zero_point=5, sum_scale=0.25, sum_zero_point=4
    )
    residual = draw_activations(rng, acc.shape, 8)
    epilogue = Requantize(scale, 3, add=add)
    np.testing.assert_array_equal(
        run(prepared, x, epilogue, residual, 2),
        run(portable, x, epilogue, residual, 1),
    )


@each_tier
def test_nothing_behind_the_image_is_read(isa):
    rng = np.random.default_rng(5)
    for channels, size in ((1, (1, 1)), (3, (4, 5)), (16, (3, 3)), (70, (5, 2)), (130, (2, 2))):
        window = Window(pads=(1, 1, 1, 1), groups=channels)
        weight = draw_weight(rng, "int8", (channels, 3, 3, 1), 1)
        prepared = conv2d_depthwise.prepare(weight, np.zeros(channels, np.int32), 0, window, isa)
        x = before_a_forbidden_page(draw_activations(rng, (2, *size, channels), 8))
        found = run(prepared, x, Sums(), None, 1)
        np.testing.assert_array_equal(found, run(prepared, x.copy(), Sums(), None, 1))
