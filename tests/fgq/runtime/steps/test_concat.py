"""Concat steps for arrays in any order of axes."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.errors import DataError
from fgq.runtime.orders import channels_last
from fgq.runtime.steps.concat import read_concat
from fgq.runtime.steps.step import Orders

TEXT = """(uint8[N,2,4,5] x, uint8[N,3,4,5] w) => (uint8 y) {
    a = DequantizeLinear(x, s, z)
    b = DequantizeLinear(w, s, z)
    c = Concat<axis=1>(a, b)
    y = QuantizeLinear(c, s, z)
}"""
IMAGE = channels_last(4)


@pytest.fixture(scope="module")
def step(make_model):
    graph = ir.from_proto(make_model(TEXT, {"s": np.float32(0.1), "z": np.uint8(7)})).graph
    graph.node(2).outputs[0].shape = ir.Shape(["N", 5, 4, 5])
    (step,) = (step for node in graph if (step := read_concat(node)) is not None)
    return step


def test_a_step_is_usable_in_several_orders_at_once(step, compute):
    x, w = (np.random.default_rng(c).integers(0, 256, (2, c, 4, 5)).astype(np.uint8) for c in (2, 3))
    expected = np.concatenate([x, w], axis=1)
    turned = step.in_orders(step.orders([IMAGE, IMAGE]))
    np.testing.assert_array_equal(compute(step, x, w), expected)
    images = (np.ascontiguousarray(array.transpose(IMAGE)) for array in (x, w))
    np.testing.assert_array_equal(compute(turned, *images), expected.transpose(IMAGE))
    np.testing.assert_array_equal(compute(step, x, w), expected)


def test_the_order_that_most_sources_have_is_asked_for(step):
    assert step.orders([IMAGE, IMAGE]) == Orders((IMAGE, IMAGE), IMAGE)
    assert step.orders([None, None]) == Orders((None, None), None)
    assert step.orders([None, IMAGE, IMAGE]) == Orders((IMAGE,) * 3, IMAGE)


def test_sizes_that_differ_along_another_axis(step):
    with pytest.raises(DataError, match="wanted equal sizes along all axes but one"):
        step.shape([np.empty((2, 2, 4, 5)), np.empty((2, 3, 4, 6))])
