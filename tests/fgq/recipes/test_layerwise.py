"""Whole conversions: what calibration gains, and what it does with little or bad data."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq import Codes, Session, convert
from fgq.config import Step
from fgq.converters.float_layers import find_layers
from fgq.errors import DataError
from fgq.format.functions import recognise
from fgq.quantization.weights import signal_to_noise_db
from fgq.runtime.layers import read_layer_weight

CNN = """(float[N,3,8,8] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1],group=2>(b, w1)
    d = Relu(c)
    e = Conv<pads=[1,1,1,1]>(d, w2, b2)
    f = Add(e, b)
    g = Relu(f)
    h = GlobalAveragePool(g)
    i = Flatten(h)
    j = Gemm<transB=1>(i, w3, b3)
    y = Identity(j)
}"""
ENCODER = """(float[N,T,16] x) => (float y) {
    a = MatMul(x, q)
    b = Add(a, c)
    k = MatMul(x, p)
    s = Add(b, k)
    r = Relu(s)
    m = MatMul(r, v)
    n = Add(m, u)
    y = Add(n, x)
}"""


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


CNN_WEIGHTS = {"w0": normal(16, 3, 3, 3) / 5, "b0": normal(16), "w1": normal(16, 8, 3, 3) / 8}
CNN_WEIGHTS |= {"w2": normal(16, 16, 3, 3) / 12, "b2": normal(16), "w3": normal(5, 16) / 4, "b3": normal(5)}
ENCODER_WEIGHTS = {"q": normal(16, 32) / 4, "p": normal(16, 32, seed=1) / 4, "v": normal(32, 16) / 6}
ENCODER_WEIGHTS |= {"c": normal(32), "u": normal(16)}

MODELS = {"cnn": (CNN, CNN_WEIGHTS), "encoder": (ENCODER, ENCODER_WEIGHTS)}


def samples(name, count, seed=0):
    """Inputs of low rank, whose covariance is worth knowing."""
    rng = np.random.default_rng(seed)
    if name == "encoder":
        mix = normal(5, 16, seed=7)
        return {"x": (rng.standard_normal((count, 6, 5)) @ mix).astype(np.float32)}
    smooth = rng.standard_normal((count, 3, 2, 2)).repeat(4, axis=2).repeat(4, axis=3)
    return {"x": (smooth + 0.2 * rng.standard_normal((count, 3, 8, 8))).astype(np.float32)}


def int8_weights(model):
    """The weights of a converted model's layers."""
    graph = ir.from_proto(model)
    recognise(graph)
    return [found[2].int8() for node in graph.graph if (found := read_layer_weight(node))]


def quality(make_model, run, name, calibration, **options):
    """The signal-to-noise ratio of the output on data that calibration has not seen."""
    model = make_model(*MODELS[name])
    result = convert(model, calibration=calibration, first_last_int8=False, **options)
    fresh = samples(name, 64, seed=99)
    (theirs,) = run(result.model, fresh)
    np.testing.assert_allclose(
        Session(result.model.SerializeToString()).run(None, fresh)[0], theirs, 1e-4, 1e-4
    )
    return signal_to_noise_db(run(model, fresh)[0], theirs), result.report


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_left_out(make_model, name):
    def weights(**options):
        model = make_model(*MODELS[name])
        converted = convert(
            model, calibration=samples(name, 64), first_last_int8=False, group_size=8, **options
        )
        return [w8.tobytes() for w8 in int8_weights(converted.model)], converted.report

    whole, _ = weights()
    for step in Step:
        found, report = weights(without=[step])
        assert report.to_dict()["options"]["without"] == [step]
        # The encoder adds to its input, which has lost nothing.
        assert (found == whole) == ((name, step) == ("encoder", Step.RESIDUAL))
    # Codes alone: the recipe fgq corrects the row scales of convolutions beside.
    assert weights(without=list(Step))[0] == weights(recipe="fgq")[0]


@pytest.mark.parametrize("codes", [Codes.TERNARY, Codes.TIED, Codes.INT4])
@pytest.mark.parametrize("name", MODELS)
def test_calibration_helps(make_model, run, name, codes):
    data = samples(name, 64)
    options = {"group_size": 8, "weights": codes}
    plain, _ = quality(make_model, run, name, data, recipe="fgq", **options)
    better, report = quality(make_model, run, name, data, **options)
    assert report.options["recipe"] == "calibrated"
    assert better > plain + 1.0


@pytest.mark.parametrize("name", MODELS)
def test_omse_is_int4(make_model, run, name):
    found, report = quality(make_model, run, name, samples(name, 64), recipe="omse", group_size=8)
    assert {layer.scheme.split()[0] for layer in report.layers} == {"int4"}
    assert report.options["weights"] == "int4"
    assert found > 12


SHARED = {
    "layer": ["int4 per layer", "int4 per filter", "int4 per layer", "int4 per layer"],
    "filter": ["int4 per filter"] * 4,
    "kernel": ["int4 per kernel"] * 3 + ["int4 per filter"],
    "group": ["int4 N=3", "int4 N=8", "int4 N=8", "int4 N=8"],
}


@pytest.mark.parametrize("granularity", SHARED)
def test_weights_share_scales_as_asked(make_model, run, granularity):
    options = {"recipe": "omse", "group_size": 8, "dual_weights": 1.0, "granularity": granularity}
    found, report = quality(make_model, run, "cnn", samples("cnn", 32), **options)
    assert [layer.scheme for layer in report.layers] == SHARED[granularity]
    assert found > 10
    with_second, dual = quality(
        make_model, run, "cnn", samples("cnn", 32), **options | {"dual_weights": 0, "activations": "int8"}
    )
    assert {layer.scheme.split()[0] for layer in dual.layers} == {"dual-int4"}
    assert dual.layers[1].scheme == "dual-int4"  # a grouped convolution has a scale for each filter
    assert all(8 < layer.bits_per_weight for layer in dual.layers)
    assert with_second > found


@pytest.mark.parametrize("granularity", ["layer", "filter"])
def test_omse_takes_int8_too(make_model, run, granularity):
    options = {"recipe": "omse", "weights": "int8", "granularity": granularity}
    found, report = quality(make_model, run, "cnn", samples("cnn", 32), **options)
    assert {layer.scheme for layer in report.layers} <= {"int8", "int8 per layer"}
    assert found > 25


def test_a_second_4_bit_input_is_reported_and_serves(make_model, run):
    options = {"recipe": "omse", "group_size": 8, "activations": "int4"}
    one, plain = quality(make_model, run, "cnn", samples("cnn", 32), **options, dual_activations=1.0)
    two, dual = quality(make_model, run, "cnn", samples("cnn", 32), **options, dual_activations=0.0)
    assert two > one + 1
    assert {layer.activations for layer in plain.layers} == {"int4"}
    assert {layer.activations for layer in dual.layers} == {"2 x int4"}
    assert (plain.activation_bits, dual.activation_bits) == (4, 8)
    assert all(0 <= entry.clipped_share < 0.05 for entry in plain.quantizers)
    assert {entry.bits for entry in dual.quantizers} == {8}


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("name", MODELS)
def test_few_samples_do_no_harm(make_model, run, name, count):
    data = samples(name, count)
    plain, _ = quality(make_model, run, name, data, recipe="fgq", group_size=4)
    found, report = quality(make_model, run, name, data, group_size=4)
    assert found > plain - 1.0
    if name == "encoder" and count == 1:
        assert any("calibrated on 3 positions for 16 inputs" in warning for warning in report.warnings)


def test_dead_and_constant_channels(make_model, run):
    data = samples("cnn", 32)
    data["x"][:, 0] = 0
    data["x"][:, 1] = 3
    model = make_model(*MODELS["cnn"])
    result = convert(model, calibration=data, first_last_int8=False, group_size=4)
    assert any("of its inputs were always zero" in warning for warning in result.report.warnings)
    assert signal_to_noise_db(run(model, data)[0], run(result.model, data)[0]) > 10


def test_the_first_biases_lie_where_they_were_or_where_data_want_them(make_model, run):
    """On average over the data each output is as it was."""
    data = samples("cnn", 64)
    model = make_model(*MODELS["cnn"])
    result = convert(model, calibration=data, first_last_int8=False, group_size=64)
    error = run(result.model, data)[0] - run(model, data)[0]
    assert np.abs(error.mean(0)).max() < 0.2 * error.std(0).max()


@pytest.mark.parametrize("recipe", ["calibrated", "omse"])
def test_recipes_that_need_data_say_so(make_model, recipe):
    with pytest.raises(DataError, match=f"wanted some hundred samples for the recipe {recipe}"):
        convert(make_model(*MODELS["cnn"]), recipe=recipe, activations="none")


def test_layers_that_no_recipe_refines_stand_beside_the_others(make_model, run):
    text = """(float[2,8] x, float[3,4,8] z) => (float y, float t) {
        a = MatMul(x, w)
        y = MatMul(a, w)
        t = MatMul(z, batched)
    }"""
    weights = {"w": normal(8, 8), "batched": normal(3, 8, 5)}
    model = make_model(text, weights)
    feeds = [{"x": normal(2, 8, seed=k), "z": normal(3, 4, 8, seed=k)} for k in range(12)]
    result = convert(model, calibration=feeds, first_last_int8=False, group_size=4).model
    for found, expected in zip(run(result, feeds[0]), run(model, feeds[0]), strict=True):
        assert signal_to_noise_db(expected, found) > 8


def test_a_weight_shared_by_two_layers_becomes_two(make_model):
    text = "(float[N,8] x) => (float y) { a = MatMul(x, w)\n r = Relu(a)\n y = MatMul(r, w) }"
    model = make_model(text, {"w": normal(8, 8)})
    result = convert(model, calibration={"x": normal(64, 8)}, first_last_int8=False, group_size=4).model
    weights = int8_weights(result)
    assert len(weights) == 2
    assert not np.array_equal(*weights)
    assert len(find_layers(ir.from_proto(model))) == 2
