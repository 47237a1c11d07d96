"""What `fgq inspect` and a dry run say of a model, against what a conversion then does."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fgq import ConversionConfig, convert, convert_file
from fgq.converters.survey import inspect, model_bytes, survey
from fgq.errors import ModelError
from fgq.format.onnx_file import load

TEXT = """(float[N,3,8,8] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, v)
    d = Conv<pads=[1,1,1,1], group=8>(c, z)
    p = GlobalAveragePool(d)
    q = Flatten(p)
    s = MatMul(q, t)
    e = MatMul(s, s2)
    y = Gemm(e, u)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "z": normal(8, 1, 3, 3)}
WEIGHTS |= {"t": normal(8, 6), "s2": normal(6, 5), "u": normal(5, 4)}
X = normal(12, 3, 8, 8)
CONFIG = ConversionConfig(group_size=4, exclude="layer_e")


@pytest.fixture(scope="module")
def model(make_model):
    model = make_model(TEXT, WEIGHTS)
    for node in model.graph.node:
        node.name = f"layer_{node.output[0]}"
    return model


@pytest.fixture
def paths(model, tmp_path):
    onnx.save(model, tmp_path / "float.onnx")
    return tmp_path / "float.onnx", tmp_path / "out.onnx"


def test_survey_is_what_a_conversion_does(model, paths):
    said = survey(model, CONFIG)
    done = convert_file(paths[0], paths[1], CONFIG, {"x": X})
    assert [layer.name for layer in said.layers] == [f"layer_{name}" for name in "acdsey"]
    for before, after in zip(said.layers, done.layers, strict=True):
        for key in ("name", "operator", "shape", "scheme", "activations", "reason", "multiplications"):
            assert getattr(before, key) == getattr(after, key), key
        assert before.signal_to_noise_db is None
    assert (said.converted_bytes, said.self_check) == (0, None)
    assert said.float_bytes == sum(array.nbytes for array in WEIGHTS.values())


def test_survey_says_why(model):
    schemes = {layer.name: (layer.scheme, layer.reason) for layer in survey(model, CONFIG).layers}
    assert schemes["layer_a"] == ("int8", "first convolution")
    assert schemes["layer_c"] == ("ternary N=4", "")
    assert schemes["layer_d"][0] == "int8"
    assert schemes["layer_e"][0] == "float"
    assert "layer_e" in schemes["layer_e"][1] or "exclude" in schemes["layer_e"][1]
    assert schemes["layer_y"] == ("int8", "last matrix product")
    assert all(reason for scheme, reason in schemes.values() if scheme != "ternary N=4")


def test_survey_leaves_the_model_as_it_is(model):
    before = model.SerializeToString()
    survey(model, CONFIG)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("form", ["packed", "int8", "inlined"])
@pytest.mark.parametrize("activations", ["int8", "int4", "none"])
def test_inspect_reads_what_was_written(model, paths, form, activations):
    config = ConversionConfig(group_size=4, exclude="layer_e", form=form, activations=activations)
    done = convert_file(*paths, config, {"x": X})
    if form == "inlined":  # without the function nothing tells its operators from others
        return
    found = inspect(paths[1], ConversionConfig())
    converted = {layer.name: layer for layer in done.layers if layer.is_converted}
    assert {layer.name for layer in found.layers if layer.is_converted} == set(converted)
    for layer in found.layers:
        if not layer.is_converted:
            assert (layer.name, layer.reason) == ("layer_e", "no quantized weight")
            continue
        expected = converted[layer.name]
        assert (layer.operator, layer.shape) == (expected.operator, expected.shape)
        assert layer.activations == expected.activations
        if form == "packed":
            assert layer.scheme == expected.scheme
            assert layer.multiplications == expected.multiplications
            assert layer.multiplications_removed == expected.multiplications_removed
        assert layer.bits_per_weight == pytest.approx(expected.bits_per_weight)
    assert found.converted_bytes == paths[1].stat().st_size == done.converted_bytes


def test_inspect_of_a_float_model_is_a_survey(model, paths):
    assert inspect(paths[0], CONFIG).layers == survey(model, CONFIG).layers
    assert inspect(paths[0], CONFIG).converted_bytes == 0


def test_inspect_of_a_model_without_weights(make_model, tmp_path):
    onnx.save(make_model("(float[N] x) => (float y) { y = Relu(x) }"), tmp_path / "m.onnx")
    assert inspect(tmp_path / "m.onnx", ConversionConfig()).layers == ()


def test_survey_of_a_converted_model_is_refused(model):
    converted, _ = convert(model, calibration={"x": X})
    with pytest.raises(ModelError, match="found a model that fgq has converted"):
        survey(converted, ConversionConfig())


def test_model_bytes(model, paths, tmp_path):
    assert model_bytes(paths[0], load(paths[0])) == paths[0].stat().st_size
    weights = sum(array.nbytes for array in WEIGHTS.values())
    assert model_bytes(model, ir.from_proto(model)) == weights
    external = tmp_path / "external.onnx"
    onnx.save(model, external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    sizes = external.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert model_bytes(external, load(external)) == sizes
