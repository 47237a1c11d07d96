"""Weights after the third stage."""

import numpy as np
import pytest

from fgq.config import ConversionConfig, Recipe
from fgq.conversion.calibrated import calibrate
from fgq.conversion.context import Context
from fgq.conversion.prepared import prepare
from fgq.conversion.quantized import quantize
from fgq.quantization.weights import quantize_weight


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def run(model, samples=None, told=None, **options):
    context = Context(
        config=ConversionConfig(first_last_int8=False, **options),
        calibration=samples,
        progress=lambda *progress: None if told is None else told.append(progress),
    )
    return quantize(calibrate(prepare(model, context), None, context), context)


@pytest.fixture
def model(make_model):
    return make_model(
        "(float[N,8] x) => (float y) { y = Gemm(x, w, b) }", {"w": normal(8, 8), "b": normal(8)}
    )


def test_the_recipe_follows_from_the_data(model):
    assert run(model, activations="none").recipe is Recipe.FGQ
    assert run(model, {"x": normal(64, 8)}).recipe is Recipe.CALIBRATED


def test_weights_without_data_are_the_nearest(model):
    told = []
    found = run(model, activations="none", told=told)
    (layer,) = found.layers
    (choice,) = found.calibrated.choices
    axes = {"group_axis": choice.layer.group_axis, "channel_axis": choice.layer.channel_axis}
    nearest = quantize_weight(choice.layer.weight_array, choice.weights, **axes)
    np.testing.assert_array_equal(layer.weight.dequantize(), nearest.dequantize())
    assert layer.input_scale is None
    assert not found.refined.weights
    assert ("quantize weights", 0, 1) in told


def test_weights_with_data_are_refined(model):
    found = run(model, {"x": normal(64, 8)}, group_size=4)
    (layer,) = found.layers
    assert found.refined.weights[layer.layer.node] is layer.weight
    assert layer.input_scale > 0
    assert (
        found.refined.checks[layer.layer.node].error <= found.refined.checks[layer.layer.node].nearest_error
    )


@pytest.mark.parametrize(("activations", "rows"), [("int8", 1), ("none", 6)])
def test_a_batch_of_matrices_has_one_row_scale_among_integers(make_model, activations, rows):
    model = make_model("(float[N,5,8] x) => (float y) { y = MatMul(x, w) }", {"w": normal(1, 8, 6)})
    samples = {"x": normal(64, 5, 8)} if activations == "int8" else None
    (layer,) = run(model, samples, activations=activations, recipe="fgq").layers
    assert layer.weight.row_scale.size == rows


def test_finished_layers_are_kept_where_that_is_asked(model, tmp_path):
    made = []

    class Noted:
        def read(self, layer, scheme):
            return None

        def write(self, layer, finished):
            made.append(layer.name)

    samples = {"x": normal(64, 8)}
    context = Context(config=ConversionConfig(), calibration=samples, make_checkpoint=lambda print_: Noted())
    found = quantize(calibrate(prepare(model, context), None, context), context)
    assert made == [layer.layer.name for layer in found.layers]
    assert isinstance(found.checkpoint, Noted)
