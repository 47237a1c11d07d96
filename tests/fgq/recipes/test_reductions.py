"""Layers as matrix products, against onnxruntime."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.converters.float_layers import find_layers
from fgq.quantization.weights import as_rows
from fgq.recipes.reductions import conv_groups, input_rows, output_rows

LAYERS = {
    "conv": ("Conv", (2, 6, 7, 5), (4, 6, 3, 2)),
    "pads": ("Conv<pads=[1,2,0,3]>", (2, 6, 7, 5), (4, 6, 3, 2)),
    "strides": ("Conv<strides=[2,3],pads=[1,1,1,1]>", (2, 6, 7, 8), (4, 6, 3, 2)),
    "dilations": ("Conv<dilations=[2,3]>", (2, 6, 9, 9), (4, 6, 3, 2)),
    "groups": ("Conv<group=2,pads=[1,1,1,1]>", (2, 6, 5, 5), (4, 3, 3, 3)),
    "depthwise": ("Conv<group=6>", (2, 6, 5, 5), (6, 1, 3, 3)),
    "same upper": ('Conv<auto_pad="SAME_UPPER",strides=[2,2]>', (2, 6, 6, 7), (4, 6, 3, 2)),
    "same lower": ('Conv<auto_pad="SAME_LOWER",strides=[2,2]>', (2, 6, 6, 7), (4, 6, 3, 2)),
    "valid": ('Conv<auto_pad="VALID">', (2, 6, 6, 7), (4, 6, 3, 2)),
    "gemm": ("Gemm", (5, 6), (6, 4)),
    "gemm, transB": ("Gemm<transB=1>", (5, 6), (4, 6)),
    "gemm, transA": ("Gemm<transA=1>", (6, 5), (6, 4)),
    "matmul": ("MatMul", (2, 3, 6), (6, 4)),
    "matmul, a vector": ("MatMul", (6,), (6, 4)),
    "matmul, weight on the left": ("left", (2, 6, 3), (4, 6)),
    "matmul, weight on the left of a vector": ("left", (6,), (4, 6)),
}


def normal(shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def case(make_model, run, name):
    operator, x_shape, w_shape = LAYERS[name]
    x, w = normal(x_shape), normal(w_shape)
    call = "MatMul(w, x)" if operator == "left" else f"{operator}(x, w)"
    model = make_model(f"(float[{','.join(map(str, x_shape))}] x) => (float y) {{ y = {call} }}", {"w": w})
    (layer,) = find_layers(ir.from_proto(model))
    (y,) = run(model, {"x": x})
    return layer, x, w, y


@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_the_input_times_rows_of_the_weight_are_rows_of_the_output(make_model, run, name):
    layer, x, w, y = case(make_model, run, name)
    rows = as_rows(w, layer.group_axis, layer.channel_axis)
    C = conv_groups(layer)
    matrices = rows.reshape(C, len(rows) // C, -1)
    # Sums of at most 36 float32 products.
    np.testing.assert_allclose(
        input_rows(layer, x) @ matrices.transpose(0, 2, 1), output_rows(layer, y), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["strides", "groups"])
def test_some_positions_alone(make_model, run, name):
    layer, x, _, y = case(make_model, run, name)
    picked = np.array([1, 5, 8])
    np.testing.assert_array_equal(input_rows(layer, x, picked), input_rows(layer, x)[:, picked])
    np.testing.assert_array_equal(output_rows(layer, y, picked), output_rows(layer, y)[:, picked])


@pytest.mark.parametrize("name", ["conv", "groups", "depthwise", "gemm", "matmul"])
def test_no_positions(make_model, run, name):
    layer, x, _, y = case(make_model, run, name)
    rows, outputs = input_rows(layer, x[:0]), output_rows(layer, y[:0])
    C = conv_groups(layer)
    assert rows.shape == (C, 0, input_rows(layer, x).shape[2])
    assert outputs.shape == (C, 0, output_rows(layer, y).shape[2])
