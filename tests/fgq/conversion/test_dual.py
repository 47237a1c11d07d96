"""Two low-precision tensors against the sums that they stand for, and against what finds them one by one."""

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fgq.config import ConversionConfig
from fgq.conversion.dual import second_inputs, second_weights
from fgq.converters.float_layers import Layer, find_layers
from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model
from fgq.converters.select import Choice
from fgq.format.packing import pack_codes, unpack_codes
from fgq.kernels.products.weights import Plane, Weight
from fgq.quantization.levels import best_scale, fit_rows
from fgq.quantization.mmse import StreamingHistogram
from fgq.quantization.scheme import ActivationScheme, Codes, WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.report import bits_per_weight


def pair_of(codes):
    """The two INT4 codes of each dual code, by division."""
    coarse = np.rint(codes / 15).astype(np.int8)
    return coarse, (codes - 15 * coarse.astype(np.int16)).astype(np.int8)


@pytest.mark.parametrize("limit", [127, 63])
def test_a_dual_weight_is_the_sum_of_two_int4_planes(limit):
    weight = np.random.default_rng(0).standard_t(3, (8, 40)).astype(np.float32)
    scheme = WeightScheme(codes=Codes.DUAL, weight_limit=limit)
    tensor = quantize_weight(weight, scheme, group_axis=1, channel_axis=0)
    coarse, fine = pair_of(tensor.planes[0].codes)
    assert max(np.abs(coarse).max(), np.abs(fine).max()) <= 7
    alphas = [np.full((8, 1), alpha, np.uint8) for alpha in (15, 1)]
    two = Weight((Plane(coarse, alphas[0]), Plane(fine, alphas[1])), tensor.group)
    np.testing.assert_array_equal(two.int8(), tensor.int8())


def test_every_sum_of_two_codes_is_a_code():
    codes = np.arange(-112, 113)
    coarse, fine = pair_of(codes)
    assert len(set(zip(coarse.tolist(), fine.tolist(), strict=True))) == 15 * 15
    assert max(np.abs(coarse).max(), np.abs(fine).max()) == 7


def test_a_byte_holds_the_two_codes_as_it_holds_two_codes_of_one_tensor():
    codes = np.arange(-112, 113).astype(np.int8)
    pairs = unpack_codes(pack_codes(codes, 112), (225, 2), 7)
    coarse, fine = pair_of(codes)
    np.testing.assert_array_equal(pairs, np.stack([fine, coarse], axis=1))


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_the_tied_pair_is_no_worse_than_one_tensor_and_another_of_its_rest(draw):
    rng = np.random.default_rng(1)
    rows = {
        "normal": rng.standard_normal((20, 1, 600)),
        "laplace": rng.laplace(size=(20, 1, 600)),
        "uniform": rng.uniform(-1, 1, (20, 1, 600)),
    }[draw]
    rest = rows
    for _ in range(2):
        scale = best_scale(rest, 7)[..., None]
        rest = rest - scale * np.clip(np.rint(rest / scale), -7, 7)
    codes, alpha, row_scale = fit_rows(rows, 112, 1)
    tied = rows - codes * (alpha * row_scale[:, None])[..., None]
    assert (tied**2).sum() <= (rest**2).sum()


def test_a_dual_weight_takes_8_bits_and_its_row_scales():
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    tensor = quantize_weight(weight, WeightScheme(codes=Codes.DUAL), group_axis=1, channel_axis=0)
    assert bits_per_weight(tensor, packed=True) == (8 * 1024 + 8 + 32 * 16) / 1024


@pytest.mark.parametrize("zero_point", [0, 1, 16, 100, 128, 255])
def test_an_8_bit_input_is_two_4_bit_ones(run, zero_point):
    """onnxruntime's integer product of the whole against those of the halves, with their zero points."""
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (9, 64)).astype(np.uint8)
    w = rng.integers(-127, 128, (64, 5)).astype(np.int8)

    def product(values, zero):
        node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])
        shapes = {"x": x.shape, "zero": ()}
        inputs = [
            helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape)
            for name, shape in shapes.items()
        ]
        output = helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None)
        # a constant weight, which onnxruntime multiplies exactly on every processor
        graph = helper.make_graph([node], "product", inputs, [output], [numpy_helper.from_array(w, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return run(model, {"x": values, "zero": np.array(zero, np.uint8)})[0]

    coarse = product(x >> 4, zero_point >> 4)
    fine = product(x & 15, zero_point & 15)
    np.testing.assert_array_equal(16 * coarse + fine, product(x, zero_point))


@dataclass
class Net:
    choices: list
    histograms: dict


def net(make_model, config, inputs):
    """Two products side by side: of x and normal weights, and of z and weights with every eighth large."""
    rng = np.random.default_rng(3)
    w, v = rng.standard_normal((2, 32, 16)).astype(np.float32)
    v[::8] *= 6
    graph = "(float[N,32] x, float[N,32] z) => (float y) {a = MatMul(x, w) b = MatMul(z, v) y = Add(a, b)}"
    model = read_float_model(make_model(graph, {"w": w, "v": v}))
    prepare(model)
    layers = [entry for entry in find_layers(model) if isinstance(entry, Layer)]
    choices = [Choice(layer, config.weight_scheme, config.activation_scheme, "") for layer in layers]
    histograms = {}
    for name, values in inputs.items():
        histograms[name] = StreamingHistogram(name)
        histograms[name].update(values)
    return Net(choices, histograms)


def test_layers_whose_weights_fit_badly_get_a_second_tensor(make_model):
    config = ConversionConfig(recipe="omse", granularity="filter")
    plain, wide = second_weights(net(make_model, config, {}).choices, config)
    assert plain.weights == config.weight_scheme
    assert wide.weights == WeightScheme(codes=Codes.DUAL)
    assert wide.note.startswith("two INT4 tensors: one loses ")
    every = ConversionConfig(recipe="omse", dual_weights=0)
    choices = second_weights(net(make_model, every, {}).choices, every)
    assert [choice.weights.codes for choice in choices] == [Codes.DUAL, Codes.DUAL]
    other = ConversionConfig()
    assert {choice.weights.codes for choice in second_weights(choices, other)} == {Codes.DUAL}
    ternary = net(make_model, other, {}).choices
    assert second_weights(ternary, other) == ternary


def test_layers_whose_input_fits_badly_get_a_second_tensor(make_model):
    rng = np.random.default_rng(4)
    inputs = {"x": rng.standard_normal(4000), "z": rng.standard_t(2, 4000)}
    config = ConversionConfig(recipe="omse", activations="int4")
    found = net(make_model, config, inputs)
    plain, wide = second_inputs(found.choices, found.histograms, config.dual_activations_above)
    assert plain.activations == ActivationScheme(bits=4)
    assert wide.activations == ActivationScheme(bits=4, tensors=2)
    assert (str(wide.activations), wide.activations.width) == ("2 x int4", 8)
    assert wide.note.startswith("two 4-bit inputs: one loses ")
    assert second_inputs(found.choices, found.histograms, None) == found.choices
