"""Real values that become integers, as a step, against onnxruntime."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.errors import DataError, KernelError
from fgq.format.shapes import InferShapes
from fgq.runtime.steps.quantize import read_quantize

NUMBERS = {"s": np.float32(0.03), "z": np.uint8(100), "low": np.uint8(0), "high": np.uint8(15)}
WHOLE = "y = QuantizeLinear(x, s, z)"
CLIPPED = "q = QuantizeLinear(x, s, z)  y = Clip(q, low, high)"
SPECIAL = np.float32([np.nan, np.inf, -np.inf, -0.0, 3e38, -3e38, 1e-45, 0.015, 0.045])


def made_step(make_model, body, shape):
    """Return a model, and the step that is recognised in it."""
    model = make_model(f"(float[{shape}] x) => (uint8 y) {{ {body} }}", NUMBERS)
    graph = ir.from_proto(model)
    InferShapes()(graph)
    (step,) = [step for node in graph.graph if (step := read_quantize(node)) is not None]
    return model, step


@pytest.mark.parametrize("body", [WHOLE, CLIPPED], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize(
    "shape", [(7,), (2, 3), (2, 5, 9), (1, 3, 20, 30), (2, 17, 6, 5), (1, 2, 3, 4, 5)], ids=str
)
def test_values_and_images(make_model, run, compute, body, shape):
    model, step = made_step(make_model, body, ",".join("NABCD"[: len(shape)]))
    x = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    x.reshape(-1)[: SPECIAL.size] = SPECIAL[: x.size]
    wanted = run(model, {"x": x})[0]
    orders = step.orders([None])
    made = orders.result
    assert (orders.sources, made) == ((None,), (0, 2, 3, 1) if len(shape) == 4 else None)
    step = step.in_orders(orders)
    for threads in (1, 2):
        found = compute(step, x, threads=threads)
        np.testing.assert_array_equal(found, wanted if made is None else wanted.transpose(made))


def test_an_image_in_the_order_of_the_convolutions_stays_in_it(make_model, run, compute):
    model, step = made_step(make_model, WHOLE, "N,C,H,W")
    x = np.random.default_rng(1).normal(0, 2, (2, 3, 4, 5)).astype(np.float32)
    orders = step.orders([(0, 2, 3, 1)])
    assert (orders.sources, orders.result) == (((0, 2, 3, 1),), (0, 2, 3, 1))
    step = step.in_orders(orders)
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(compute(step, pixels), run(model, {"x": x})[0].transpose(0, 2, 3, 1))


def test_what_each_call_is_fed(make_model, run):
    model, step = made_step(make_model, WHOLE, "N,C,H,W")
    step = step.in_orders(step.orders([None]))
    out = np.empty((2, 4, 5, 3), np.uint8)
    call = step.bind_for_input((2, 3, 4, 5), out, 1)
    for seed in (2, 3):
        x = np.random.default_rng(seed).normal(0, 2, (2, 3, 4, 5)).astype(np.float32)
        x.flags.writeable = False
        call(x)
        np.testing.assert_array_equal(out, run(model, {"x": x})[0].transpose(0, 2, 3, 1))
    with pytest.raises(KernelError, match=r"found float32\[1, 3, 4, 5\], wanted float32\[2, 3, 4, 5\]"):
        call(x[:1])
    with pytest.raises(DataError, match="wanted 4 axes"):
        step.bind_for_input((2, 3, 4), out, 1)
