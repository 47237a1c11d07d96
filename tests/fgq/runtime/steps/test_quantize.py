"""QuantizeLinears of real values, in the plain order and that of convolutions."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.kernels.products.driver import aligned
from fgq.runtime.orders import channels_last
from fgq.runtime.steps.quantize import read_quantize
from fgq.runtime.steps.step import Orders

IMAGE = channels_last(4)


@pytest.fixture(scope="module")
def step(make_model):
    text = "(float[N,3,4,5] x) => (uint8[N,3,4,5] y) { y = QuantizeLinear(x, s, z) }"
    graph = ir.from_proto(make_model(text, {"s": np.float32(0.1), "z": np.uint8(7)})).graph
    (node,) = graph
    node.outputs[0].shape = ir.Shape(["N", 3, 4, 5])
    return read_quantize(node)


X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
EXPECTED = np.clip(np.rint(X / np.float32(0.1)) + 7, 0, 255).astype(np.uint8)


def test_an_image_is_turned_only_in_the_orders_that_say_so(step, compute):
    orders = step.orders([None])
    assert orders == Orders((None,), IMAGE)
    assert step.orders([IMAGE]) == Orders((IMAGE,), IMAGE)
    turned = step.in_orders(orders)
    np.testing.assert_array_equal(compute(step, X), EXPECTED)
    np.testing.assert_array_equal(compute(turned, X), EXPECTED.transpose(IMAGE))
    kept = step.in_orders(step.orders([IMAGE]))
    image = np.ascontiguousarray(X.transpose(IMAGE))
    np.testing.assert_array_equal(compute(kept, image), EXPECTED.transpose(IMAGE))
    np.testing.assert_array_equal(compute(step, X), EXPECTED)


def test_the_input_may_be_another_array_each_time(step):
    turned = step.in_orders(step.orders([None]))
    out = aligned(turned.shape([X]), np.uint8)
    take = turned.bind_for_input(X.shape, out, 1)
    for values in (X, X[::-1], X):  # one that lies backwards among them
        take(values)
        expected = EXPECTED if values is X else EXPECTED[::-1]
        np.testing.assert_array_equal(out, expected.transpose(IMAGE))
