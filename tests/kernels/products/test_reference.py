"""The reference against two implementations of ONNX: onnxruntime and onnx's own reference evaluator."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fgq.graph.ort import open_session
from fgq.kernels import Weight
from fgq.kernels.products import reference
from fgq.kernels.window import Window


def integers(op, x, w8, x_zero, **attributes):
    """Run MatMulInteger or ConvInteger in both implementations and return their common result."""
    node = helper.make_node(op, ["x", "w", "zero"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        op,
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape),
            helper.make_tensor_value_info("zero", TensorProto.UINT8, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(w8, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    feeds = {"x": x, "zero": np.array(x_zero, np.uint8)}
    session = open_session(model.SerializeToString(), "model", threads=1)
    (ours,) = session.run(None, feeds)
    (theirs,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_array_equal(ours, theirs)
    return ours


def multiply(weight, bias, x_zero, x):
    return reference.sums(reference.prepare(weight, bias, x_zero, None), x[None, :, None, :])[0, :, 0]


def group_of(length, size):
    return (np.arange(length) // size).astype(np.int32)


@pytest.mark.parametrize(
    ("rows", "reduction", "outputs", "size", "x_zero"),
    [(1, 1, 1, 1, 0), (3, 37, 5, 16, 128), (17, 64, 33, 4, 255), (2, 1000, 3, 64, 7), (5, 100, 8, 100, 200)],
)
def test_matmul_is_matmul_integer(rows, reduction, outputs, size, x_zero):
    rng = np.random.default_rng(reduction)
    group = group_of(reduction, size)
    codes = rng.integers(-1, 2, (outputs, reduction), dtype=np.int8)
    alpha = rng.integers(0, 128, (outputs, group[-1] + 1), dtype=np.uint8)
    bias = rng.integers(-(2**20), 2**20, outputs, dtype=np.int32)
    x = rng.integers(0, 256, (rows, reduction), dtype=np.uint8)
    w8 = (codes * alpha[:, group].astype(np.int32)).astype(np.int8)

    acc = multiply(Weight.single(codes, alpha, group), bias, x_zero, x)
    assert acc.dtype == np.int32
    np.testing.assert_array_equal(acc, integers("MatMulInteger", x, w8.T.copy(), x_zero) + bias)


@pytest.mark.parametrize("extreme", [1, -1])
@pytest.mark.parametrize("x_zero", [0, 255])
def test_the_longest_reduction_at_the_extreme_of_everything(extreme, x_zero):
    codes = np.full((1, 66_000), extreme, np.int8)
    x = np.array([[255], [0]], np.uint8).repeat(66_000, axis=1)
    weight = Weight.single(codes, np.full((1, 1), 127, np.uint8), np.zeros(66_000, np.int32))
    sums = [[extreme * 66_000 * 127 * (int(value) - x_zero)] for value in (255, 0)]
    assert multiply(weight, np.zeros(1, np.int32), x_zero, x).tolist() == sums


@pytest.mark.parametrize(
    ("batch", "size", "channels", "outputs", "taps", "window"),
    [
        (1, (1, 1), 1, 1, (1, 1), Window()),
        (2, (9, 7), 12, 5, (3, 3), Window(pads=(1, 1, 1, 1))),
        (1, (11, 8), 6, 4, (5, 2), Window(strides=(2, 3), pads=(2, 0, 1, 3))),
        (1, (10, 9), 8, 6, (3, 2), Window(dilations=(2, 3), pads=(0, 2, 3, 1))),
        (3, (6, 6), 12, 8, (3, 3), Window(groups=4, strides=(2, 2), pads=(1, 1, 1, 1))),
        (1, (7, 7), 6, 12, (3, 3), Window(groups=6, pads=(1, 1, 1, 1))),
        (1, (14, 14), 3, 8, (7, 7), Window(strides=(2, 2), pads=(3, 3, 3, 3))),
    ],
)
@pytest.mark.parametrize("x_zero", [0, 128, 255])
def test_conv2d_is_conv_integer(batch, size, channels, outputs, taps, window, x_zero):
    rng = np.random.default_rng(channels)
    inputs = channels // window.groups
    group = group_of(inputs, 4)
    codes = rng.integers(-1, 2, (outputs, *taps, inputs), dtype=np.int8)
    alpha = rng.integers(0, 128, (outputs, *taps, group[-1] + 1), dtype=np.uint8)
    bias = rng.integers(-(2**20), 2**20, outputs, dtype=np.int32)
    x = rng.integers(0, 256, (batch, *size, channels), dtype=np.uint8)
    w8 = (codes * alpha[..., group].astype(np.int32)).astype(np.int8)

    acc = reference.sums(reference.prepare(Weight.single(codes, alpha, group), bias, x_zero, window), x)
    assert acc.dtype == np.int32
    wanted = integers(
        "ConvInteger",
        x.transpose(0, 3, 1, 2).copy(),
        w8.transpose(0, 3, 1, 2).copy(),
        x_zero,
        strides=window.strides,
        pads=window.pads,
        dilations=window.dilations,
        group=window.groups,
    )
    np.testing.assert_array_equal(acc, wanted.transpose(0, 2, 3, 1) + bias)


def test_blocks_do_not_show_in_the_result(monkeypatch):
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 2, (3, 3, 3, 4), dtype=np.int8)
    alpha = rng.integers(0, 128, (3, 3, 3, 1), dtype=np.uint8)
    weight = Weight.single(codes, alpha, np.zeros(4, np.int32))
    prepared = reference.prepare(weight, np.zeros(3, np.int32), 9, Window(pads=(1, 1, 1, 1)))
    x = rng.integers(0, 256, (2, 9, 9, 4), dtype=np.uint8)
    whole = reference.sums(prepared, x)
    monkeypatch.setattr(reference, "_BLOCK_BYTES", 1)
    np.testing.assert_array_equal(reference.sums(prepared, x), whole)
