"""Quantized activations and their parameters, against onnxruntime."""

import numpy as np
import onnxruntime
import pytest
from engines import before_a_forbidden_page as guarded
from onnx import TensorProto, helper, numpy_helper

from fgq.errors import KernelError
from fgq.kernels import dynamic_quantization, quantize_activations
from fgq.kernels.operators import activations, rounding
from fgq.kernels.operators.activations import QuantizeLinear
from fgq.kernels.simd.isa import available

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]


@pytest.fixture(params=TIERS, ids=lambda isa: isa.name)
def _tier(request, monkeypatch):
    for module in (activations, rounding):
        monkeypatch.setattr(module, "available", lambda: (request.param,))


@pytest.fixture
def _small_shares(monkeypatch):
    """Let several threads work on little."""
    monkeypatch.setattr(activations, "_SHARE", 64)


def run(node, constants, x, outputs):
    graph = helper.make_graph(
        [node],
        "activations",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def quantize_linear(x, scale, zero_point):
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    constants = {"s": np.float32(scale), "z": np.uint8(zero_point)}
    return run(node, constants, x, {"y": TensorProto.UINT8})[0]


def dynamic_quantize_linear(x):
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    return run(node, {}, x, {"y": TensorProto.UINT8, "s": TensorProto.FLOAT, "z": TensorProto.UINT8})


def near(points):
    """Return floats and their neighbours, up to three to each side."""
    rows, up, down = [points], points, points
    for _ in range(3):
        up, down = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(-np.inf))
        rows += [up, down]
    return np.concatenate(rows)


@pytest.mark.usefixtures("_tier", "_small_shares")
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0, 2), (5, 16), (3, 5, 7), (4, 70_000)])
@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
def test_it_is_quantize_linear(shape, zero_point):
    x = np.asarray(np.random.default_rng(0).normal(0, 3, shape), np.float32)
    wanted = quantize_linear(x, 0.021, zero_point)
    for threads in (1, 3):
        found = quantize_activations(x, 0.021, zero_point, threads=threads)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(quantize_activations(x, 0.021, zero_point, bits=4), np.minimum(wanted, 15))


@pytest.mark.usefixtures("_tier")
def test_ties_and_their_neighbours_round_as_divisions():
    # where a quotient rounded the wrong way would show: k + 0.5 steps, and the floats next to it
    rng = np.random.default_rng(1)
    for exponent in range(-99, 100, 3):
        scale = np.float32(rng.uniform(1, 2) * 2.0**exponent)
        zero_point = int(rng.integers(256))
        steps = np.arange(-zero_point - 1, 257 - zero_point) + 0.5
        x = near((steps * np.float64(scale)).astype(np.float32))
        np.testing.assert_array_equal(
            quantize_activations(x, scale, zero_point), quantize_linear(x, scale, zero_point)
        )


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0**-100, 2.0**100, 1e-38, 1e-45, 3e38, np.inf, 0.0, np.nan])
def test_special_numbers_and_extreme_scales(scale):
    special = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, -np.nan, 3e38, -3e38, 1e-45, -1e-45, 1e-38, 255]
    x = np.tile(np.array(special, np.float32), 3)
    for zero_point in (0, 7, 255):
        wanted = quantize_linear(x, scale, zero_point)
        np.testing.assert_array_equal(quantize_activations(x, scale, zero_point), wanted)
        np.testing.assert_array_equal(
            quantize_activations(x, scale, zero_point, bits=4), np.minimum(wanted, 15)
        )


IMAGES = [
    (1, 3, 70, 65), (2, 3, 7, 9), (2, 1, 5, 5), (1, 16, 16, 16), (2, 64, 13, 11), (1, 300, 9, 9),
    (1, 17, 65, 1), (1, 4, 30, 30), (0, 3, 4, 4), (1, 2, 0, 3), (1, 0, 2, 3), (3, 5, 1, 1),
]  # fmt: skip


def keep(x):
    """Return an array before a forbidden page, if there is anything of it."""
    return guarded(x) if x.size else x


@pytest.mark.usefixtures("_tier", "_small_shares")
@pytest.mark.parametrize("scale", [0.021, 3e38])
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_images_become_nhwc(shape, scale):
    x = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    special = np.float32([np.nan, np.inf, -np.inf, -0.0, 3e38, -3e38, 1e-45])[: x.size]
    x.reshape(-1)[: special.size] = special
    planes = quantize_linear(x, scale, 100) if x.size else x.astype(np.uint8)
    pixels = planes.transpose(0, 2, 3, 1)
    for threads in (1, 3):
        found = keep(np.full(pixels.shape, 9, np.uint8))
        QuantizeLinear(found, scale, 100, image=True, threads=threads)(keep(x))
        np.testing.assert_array_equal(found, pixels)
        QuantizeLinear(found, scale, 100, 4, 15, image=True, threads=threads)(x)
        np.testing.assert_array_equal(found, np.clip(pixels, 4, 15))


def test_images_in_any_order_of_axes_and_read_only():
    x = np.random.default_rng(0).normal(0, 2, (4, 5, 3, 2)).astype(np.float32).T
    x.flags.writeable = False
    found = np.empty((2, 5, 4, 3), np.uint8)
    QuantizeLinear(found, 0.021, 100, image=True)(x)
    np.testing.assert_array_equal(found, quantize_linear(x, 0.021, 100).transpose(0, 2, 3, 1))


def test_arrays_in_any_order_and_read_only():
    x = np.random.default_rng(2).normal(size=(6, 5, 4)).astype(np.float32)
    wanted = quantize_activations(x, 0.02, 100)
    x.flags.writeable = False
    np.testing.assert_array_equal(quantize_activations(x.T, 0.02, 100), wanted.T)
    np.testing.assert_array_equal(quantize_activations(x[::2, ::-1], 0.02, 100), wanted[::2, ::-1])


@pytest.mark.usefixtures("_tier")
@pytest.mark.parametrize(
    "x",
    [
        [0.0], [-0.0, 0.0], [1.0], [-1.0], [1, 2, 3], [-1, -2], [-0.5, 0.5], [np.inf, 1], [-np.inf, np.inf],
        [-np.inf, 1], [3e38, -3e38], [1e-45], [-1e-45], [3e-43], [-3e-43, 1e-45], [1e-40, 0],
    ],
    ids=str,
)  # fmt: skip
def test_parameters_of_few_numbers(x):
    x = np.array(x, np.float32)
    _, scale, zero_point = dynamic_quantize_linear(x)
    assert dynamic_quantization(x) == (scale, zero_point)


@pytest.mark.usefixtures("_tier")
def test_parameters_of_many_numbers():
    rng = np.random.default_rng(3)
    for count in [*range(1, 140), 10_000]:
        x = (rng.normal(rng.normal(), 1, count) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
        y, scale, zero_point = dynamic_quantize_linear(x)
        found = dynamic_quantization(x)
        assert found == (scale, zero_point)
        np.testing.assert_array_equal(quantize_activations(x, *found), y)


@pytest.mark.usefixtures("_tier")
def test_nan_takes_no_part_in_the_range():
    x = np.random.default_rng(4).normal(size=100).astype(np.float32)
    wanted = dynamic_quantization(x)
    for place in (0, 17, 64, 99):
        x[place] = np.nan
    assert dynamic_quantization(x[[0, 17, 64, 99]]) == (1.0, 0)
    assert dynamic_quantization(np.insert(x[~np.isnan(x)], 40, np.nan)) == dynamic_quantization(x)
    assert dynamic_quantization(x)[0] <= wanted[0]
    assert dynamic_quantization(np.empty(0, np.float32)) == (1.0, 0)


def test_arguments_that_do_not_fit_are_refused():
    x = np.zeros(3, np.float32)
    with pytest.raises(KernelError, match="x: found float64, wanted float32"):
        quantize_activations(x.astype(np.float64), 1, 0)
    with pytest.raises(KernelError, match="x: found float64, wanted float32"):
        dynamic_quantization(x.astype(np.float64))
    with pytest.raises(KernelError, match="bits: found 5, wanted 4 or 8"):
        quantize_activations(x, 1, 0, bits=5)
    with pytest.raises(KernelError, match=r"range 0\.\.255 and zero point 256, wanted them in 0\.\.255"):
        quantize_activations(x, 1, 256)
    out = np.zeros(3, np.uint8)
    for lowest, highest in ((9, 2), (0, 999), (-1, 255)):
        with pytest.raises(KernelError, match=f"range {lowest}..{highest} and zero point 0"):
            QuantizeLinear(out, 1, 0, lowest, highest)
    with pytest.raises(KernelError, match="out: found int8"):
        QuantizeLinear(out.view(np.int8), 1, 0)
    with pytest.raises(KernelError, match=r"found a result \[3\], wanted images \[B, H, W, C\]"):
        QuantizeLinear(out, 1, 0, image=True)
    with pytest.raises(KernelError, match=r"found float64\[3\], wanted float32\[3\]"):
        QuantizeLinear(out, 1, 0)(x.astype(np.float64))
    with pytest.raises(KernelError, match=r"found float32\[1, 3, 4, 5\], wanted float32\[1, 5, 3, 4\]"):
        QuantizeLinear(np.zeros((1, 3, 4, 5), np.uint8), 1, 0, image=True)(np.zeros((1, 3, 4, 5), np.float32))
