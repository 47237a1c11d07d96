"""What becomes of sums on every instruction set, against the ends of onnxruntime's integer operators."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq.errors import KernelError
from fgq.graph.ort import open_session
from fgq.kernels import Dequantize, QuantizedAdd, Requantize, Sums
from fgq.kernels.products.epilogue import finisher
from fgq.kernels.simd.isa import available, index_of

TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]
each_tier = pytest.mark.parametrize("isa", TIERS, ids=lambda isa: isa.name)

GUARD = 165


def finish(isa, acc, epilogue, residual=None, bias=None):
    """Finish sums [rows, M] in odd tiles, each at the corner of a larger array, into guarded memory."""
    rows, width = acc.shape
    bias = np.zeros(width, np.int32) if bias is None else bias
    size = rows * width * np.dtype(epilogue.dtype).itemsize
    memory = np.full(size + 128, GUARD, np.uint8)
    added = np.empty(0, np.uint8) if residual is None else residual.reshape(-1).view(np.uint8)
    parameters = epilogue.integers, epilogue.factors(width), epilogue.floats, added
    step = max(width - width // 3, 1)
    for row in range(0, rows, 100):
        for channel in range(0, width, step):
            part = acc[row : row + 100, channel : channel + step]
            tile = np.full((len(part) + 1, part.shape[1] + 5), -7, np.int32)
            tile[: len(part), : part.shape[1]] = part
            finisher(index_of(isa))(
                tile, *part.shape, row, channel, bias, *parameters, memory[64 : 64 + size]
            )
    assert (memory[:64] == GUARD).all()
    assert (memory[64 + size :] == GUARD).all()
    return memory[64 : 64 + size].view(epilogue.dtype).reshape(rows, width)


def run(nodes, constants, inputs, output_type):
    types = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float32): TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "epilogue",
        [helper.make_tensor_value_info(name, types[x.dtype], x.shape) for name, x in inputs.items()],
        [helper.make_tensor_value_info("y", output_type, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = open_session(model.SerializeToString(), "model", threads=1)
    return session.run(None, inputs)[0]


def product(outputs, reduction=8, x_zero=3, seed=0):
    """Return activations, weights [K, M] and their exact sums; the sums cover small and large values."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (500, reduction), dtype=np.uint8)
    x[:256] = x_zero
    x[:256, 0] = np.arange(256)
    w8 = rng.integers(-127, 128, (reduction, outputs), dtype=np.int8)
    w8[0, : outputs // 2] = 1
    return x, w8, (x.astype(np.int32) - x_zero) @ w8.astype(np.int32)


SCALES = {
    "ties": np.full(23, 0.5, np.float32),
    "quarters": np.full(23, 0.25, np.float32),
    "saturating": np.full(23, 1e6, np.float32),
    "tiny": np.full(23, 1e-30, np.float32),
    "drawn": np.random.default_rng(1).uniform(1e-4, 0.1, 23).astype(np.float32),
}


@each_tier
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("per_channel", [True, False])
def test_requantize_is_the_end_of_qlinear_matmul(isa, scale, zero_point, per_channel):
    x, w8, acc = product(23)
    x_scale, y_scale = np.float32(0.03), np.float32(0.015)
    row_scale = scale / np.float32(2) if per_channel else np.float32(scale[0] / 2)
    weight_zero = np.zeros(23, np.int8) if per_channel else np.int8(0)
    constants = {
        "xs": x_scale, "xz": np.uint8(3), "w": w8, "ws": row_scale, "wz": weight_zero,
        "ys": y_scale, "yz": np.uint8(zero_point),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])
    wanted = run([node], constants, {"x": x}, TensorProto.UINT8)
    epilogue = Requantize(x_scale * row_scale / y_scale, zero_point)
    np.testing.assert_array_equal(finish(isa, acc, epilogue), wanted)


@each_tier
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("largest_bias", [1000, 2**30])
def test_requantize_is_the_end_of_qlinear_conv(isa, scale, largest_bias):
    # 16 input and output channels and a multiple of 4 taps: onnxruntime's fastest path; sums above 2**24
    # are not exact as float32, so that its conversion is compared too
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (2, 6, 6, 16), dtype=np.uint8)
    codes = rng.integers(-127, 128, (16, 3, 3, 16), dtype=np.int8)
    bias = rng.integers(-largest_bias, largest_bias, 16, dtype=np.int32)
    row_scale = np.resize(scale, 16) * np.float32(1000 / largest_bias)
    x_scale, y_scale = np.float32(0.02), np.float32(0.7)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=7).astype(np.int32) - 7
    acc = sum(
        padded[:, i : i + 6, j : j + 6] @ codes[:, i, j].T.astype(np.int32)
        for i in range(3)
        for j in range(3)
    )
    constants = {
        "xs": x_scale, "xz": np.uint8(7), "w": codes.transpose(0, 3, 1, 2).copy(), "ws": row_scale,
        "wz": np.zeros(16, np.int8), "ys": y_scale, "yz": np.uint8(100), "b": bias,
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"], pads=[1] * 4
    )
    wanted = run([node], constants, {"x": x.transpose(0, 3, 1, 2).copy()}, TensorProto.UINT8)
    found = finish(isa, acc.reshape(-1, 16), Requantize(x_scale * row_scale / y_scale, 100), bias=bias)
    np.testing.assert_array_equal(found.reshape(2, 6, 6, 16).transpose(0, 3, 1, 2), wanted)


@each_tier
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_both_are_the_ends_of_matmul_integer(isa, scale):
    x, w8, acc = product(23)
    constants = {"w": w8, "xz": np.uint8(3), "s": scale, "one": np.float32(1), "yz": np.uint8(17)}
    real = [
        helper.make_node("MatMulInteger", ["x", "w", "xz"], ["acc"]),
        helper.make_node("Cast", ["acc"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "s"], ["real"]),
    ]
    added = [*real, helper.make_node("Add", ["real", "r"], ["sum"]), helper.make_node("Relu", ["sum"], ["y"])]
    residual = np.random.default_rng(4).normal(0, 50, acc.shape).astype(np.float32)
    values = run([*real, helper.make_node("Identity", ["real"], ["y"])], constants, {"x": x}, 1)
    np.testing.assert_array_equal(finish(isa, acc, Dequantize(scale)), values)
    wanted = run(added, constants, {"x": x, "r": residual}, TensorProto.FLOAT)
    np.testing.assert_array_equal(finish(isa, acc, Dequantize(scale, lowest=0), residual), wanted)
    quantized = helper.make_node("QuantizeLinear", ["real", "one", "yz"], ["y"])
    wanted = run([*real, quantized], constants, {"x": x}, TensorProto.UINT8)
    np.testing.assert_array_equal(finish(isa, acc, Requantize(scale, 17)), wanted)


@each_tier
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_shift_is_the_bias_behind_matmul_integer(isa, scale, per_channel):
    """It is added to the rounded product, before what else is added: three float32 roundings, not two."""
    x, w8, acc = product(23)
    shift = np.random.default_rng(5).normal(0, 30, 23 if per_channel else ())
    shift = np.asarray(shift, np.float32)
    residual = np.random.default_rng(6).normal(0, 50, acc.shape).astype(np.float32)
    constants = {"w": w8, "xz": np.uint8(3), "s": scale, "b": shift, "low": np.float32(-20)}
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w", "xz"], ["acc"]),
        helper.make_node("Cast", ["acc"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "s"], ["real"]),
        helper.make_node("Add", ["real", "b"], ["shifted"]),
    ]
    clip = helper.make_node("Clip", ["shifted", "low"], ["y"])
    wanted = run([*nodes, clip], constants, {"x": x}, TensorProto.FLOAT)
    np.testing.assert_array_equal(finish(isa, acc, Dequantize(scale, lowest=-20, shift=shift)), wanted)
    added = helper.make_node("Add", ["shifted", "r"], ["y"])
    wanted = run([*nodes, added], constants, {"x": x, "r": residual}, TensorProto.FLOAT)
    np.testing.assert_array_equal(finish(isa, acc, Dequantize(scale, shift=shift), residual), wanted)


PAIRS = np.repeat(np.arange(256, dtype=np.uint8), 256), np.tile(np.arange(256, dtype=np.uint8), 256)
"""All pairs of two activations."""


def qlinear_add(add):
    constants = {
        "as": np.float32(add.scale), "az": np.uint8(add.zero_point),
        "bs": np.float32(add.residual_scale), "bz": np.uint8(add.residual_zero_point),
        "ys": np.float32(add.sum_scale), "yz": np.uint8(add.sum_zero_point),
    }  # fmt: skip
    own, other = ["a", "as", "az"], ["b", "bs", "bz"]
    operands = [*own, *other] if add.own_first else [*other, *own]
    node = helper.make_node("QLinearAdd", [*operands, "ys", "yz"], ["y"], domain="com.microsoft")
    return run([node], constants, dict(zip("ab", PAIRS, strict=True)), TensorProto.UINT8)


def random_add(rng, **options):
    scales = rng.uniform(0.2, 3, 3) * 10.0 ** rng.uniform(-3, 1)
    zeros = [int(zero) for zero in rng.choice([0, 1, 128, 254, 255, *rng.integers(256, size=5)], 3)]
    names = "scale", "residual_scale", "sum_scale"
    points = "zero_point", "residual_zero_point", "sum_zero_point"
    return QuantizedAdd(
        **{name: float(np.float32(scale)) for name, scale in zip(names, scales, strict=True)},
        **dict(zip(points, zeros, strict=True)),
        **options,
    )


ADDS = [random_add(np.random.default_rng(seed), own_first=seed % 2 == 0) for seed in range(24)]
# ties: halves and quarters of steps
ADDS += [
    QuantizedAdd(
        scale=scale,
        zero_point=zero,
        residual_scale=other,
        residual_zero_point=7,
        sum_scale=1.0,
        sum_zero_point=9,
    )
    for scale, other in ((0.5, 0.5), (0.25, 0.75), (1.5, 0.5), (1.0, 1.0))
    for zero in (0, 200)
]


@each_tier
def test_addition_is_qlinear_add_for_all_pairs(isa):
    for add in ADDS:
        # a sum that requantizes to each activation: the activation less its zero point
        acc = (PAIRS[0].astype(np.int32) - add.zero_point).reshape(1024, 64)
        epilogue = Requantize(np.float32(1), add.zero_point, add=add)
        found = finish(isa, acc, epilogue, PAIRS[1].reshape(acc.shape))
        np.testing.assert_array_equal(found.reshape(-1), qlinear_add(add), err_msg=str(add))


@each_tier
def test_addition_follows_the_requantization_and_precedes_the_clip(isa):
    rng = np.random.default_rng(6)
    acc = rng.integers(-20_000, 20_000, (300, 37), dtype=np.int32)
    bias = rng.integers(-9000, 9000, 37, dtype=np.int32)
    multiplier = rng.uniform(1e-3, 2e-2, 37).astype(np.float32)
    residual = rng.integers(0, 256, acc.shape, dtype=np.uint8)
    own = finish(isa, acc, Requantize(multiplier, 50, lowest=20, highest=240), bias=bias)
    add = random_add(rng)
    unclipped = qlinear_add(add).reshape(256, 256)[own, residual]
    clipped = QuantizedAdd(
        **{name: getattr(add, name) for name in add.__slots__ if name not in ("lowest", "highest")},
        lowest=60,
        highest=200,
    )
    for given, wanted in ((add, unclipped), (clipped, np.clip(unclipped, 60, 200))):
        epilogue = Requantize(multiplier, 50, lowest=20, highest=240, add=given)
        np.testing.assert_array_equal(finish(isa, acc, epilogue, residual, bias), wanted)


@each_tier
@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 17, 31, 33, 47, 64, 65, 127, 130])
def test_tails_of_every_length(isa, width):
    rng = np.random.default_rng(width)
    acc = rng.integers(-(2**31), 2**31, (5, width), dtype=np.int32)
    bias = rng.integers(-(2**31), 2**31, width, dtype=np.int32)
    with np.errstate(over="ignore"):
        total = acc + bias  # modulo 2**32, as in all kernels
    np.testing.assert_array_equal(finish(isa, acc, Sums(), bias=bias), total)
    scale = rng.uniform(1e-6, 1e-2, width).astype(np.float32)
    wanted = total.astype(np.float32) * scale
    np.testing.assert_array_equal(finish(isa, acc, Dequantize(scale), bias=bias), wanted)
    narrow = scale * np.float32(1e-5)
    wanted = np.clip(np.rint(total.astype(np.float32) * narrow) + 99, 0, 255)
    np.testing.assert_array_equal(finish(isa, acc, Requantize(narrow, 99), bias=bias), wanted)


@each_tier
def test_ties_go_to_the_even_integer(isa):
    acc = np.array([[1, 3, 5, -1, -3, -5, 2, 0]], np.int32)
    assert finish(isa, acc, Requantize(np.float32(0.5), 10)).tolist() == [[10, 12, 12, 10, 8, 8, 11, 10]]


@each_tier
def test_extreme_sums_saturate(isa):
    acc = np.array([[-(2**31), 2**31 - 1, -1, 1, 0]], np.int32)
    assert finish(isa, acc, Requantize(np.float32(1e29), 9)).tolist() == [[0, 255, 0, 255, 9]]
    assert finish(isa, acc, Requantize(np.float32(1e-9), 9)).tolist() == [[7, 11, 9, 9, 9]]


@each_tier
def test_bounds_are_relu_and_four_bits(isa):
    acc = np.arange(-300, 300, dtype=np.int32).reshape(100, 6)
    full = finish(isa, acc, Requantize(np.float32(0.1), 4))
    found = finish(isa, acc, Requantize(np.float32(0.1), 4, lowest=4, highest=15))
    np.testing.assert_array_equal(found, np.clip(full, 4, 15))
    real = finish(isa, acc, Dequantize(np.float32(0.1), lowest=-1, highest=6))
    np.testing.assert_array_equal(real, np.clip(acc.astype(np.float32) * np.float32(0.1), -1, 6))


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(KernelError, match=r"scale: found float32\[2\], wanted float32\[3\] or one float32"):
        Dequantize(np.ones(2, np.float32)).factors(3)
    with pytest.raises(KernelError, match=r"shift: found float32\[4\], wanted float32\[3\] or one float32"):
        Dequantize(np.float32(1), shift=np.ones(4, np.float32)).factors(3)
    with pytest.raises(KernelError, match="multiplier: found float64"):
        Requantize(np.ones(3), 0).factors(3)


@pytest.mark.parametrize("bounds", [(0, -1, 255), (0, 0, 256), (0, 9, 8), (-1, 0, 255), (256, 0, 255)])
def test_a_range_beyond_uint8_is_refused(bounds):
    with pytest.raises(KernelError, match=r"wanted them in 0\.\.255"):
        Requantize(np.float32(1), *bounds)


@pytest.mark.parametrize("change", [{"scale": 0.0}, {"sum_scale": np.inf}, {"residual_zero_point": 256}])
def test_an_impossible_addition_is_refused(change):
    good = {
        "scale": 1.0, "zero_point": 0, "residual_scale": 1.0, "residual_zero_point": 0,
        "sum_scale": 1.0, "sum_zero_point": 0,
    }  # fmt: skip
    with pytest.raises(KernelError, match="wanted"):
        QuantizedAdd(**{**good, **change})


@each_tier
@pytest.mark.parametrize("outputs", [3, 64])
@pytest.mark.parametrize("bounds", [{}, {"lowest": -1, "highest": 6}], ids=["open", "bounded"])
def test_nan_in_a_shift_or_a_residual_stays_nan(isa, outputs, bounds):
    acc = np.ones((5, outputs), np.int32)
    shift, residual = np.zeros(outputs, np.float32), np.zeros(acc.shape, np.float32)
    shift[2] = residual[3, 1] = np.nan
    wanted = np.float32(acc) + shift
    np.testing.assert_array_equal(finish(isa, acc, Dequantize(np.float32(1), shift=shift, **bounds)), wanted)
    epilogue = Dequantize(np.float32(1), shift=shift, **bounds)
    np.testing.assert_array_equal(finish(isa, acc, epilogue, residual), wanted + residual)
