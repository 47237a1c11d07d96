"""The layers of both models side by side: what became of each, and why."""

import numpy as np
import onnx
import pytest

from fgq import ConversionConfig, convert_file
from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model
from fgq.errors import ModelError
from fgq.eval.report.layer_rows import LEFT_OUT, pair_layers
from fgq.format import container
from fgq.quantization.scheme import Codes

X = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)


def paired(files):
    model = read_float_model(files.float_model)
    prepare(model)
    return pair_layers(model, container.load(files.converted))


def test_every_layer_in_order(files):
    found = paired(files)
    assert [(each.report.name, each.result) for each in found] == [
        ("layer_a", "a"),
        ("layer_d", "d"),
        ("layer_t", "t"),
        ("layer_m", "m"),
    ]
    assert [each.report.reason for each in found] == [
        "first convolution",
        "",
        LEFT_OUT,
        "last matrix product",
    ]
    assert [each.report.scheme for each in found] == ["int8", "ternary N=4", "float", "int8"]
    assert [each.quantized is None for each in found] == [False, False, True, False]
    assert (found[2].report.weights, found[2].report.bits_per_weight) == (48, 32.0)


@pytest.mark.parametrize("form", ["packed", "int8"])
@pytest.mark.parametrize("activations", ["int8", "int4", "none"])
def test_reports_are_those_of_the_conversion(files, tmp_path, form, activations):
    config = ConversionConfig(
        group_size=4, exclude="layer_t", form=form, activations=activations, smooth=False
    )
    converted = tmp_path / "converted.onnx"
    done = convert_file(files.float_model, converted, config, {"x": X})
    for mine, theirs in zip(paired(files._replace(converted=converted)), done.layers, strict=True):
        if mine.quantized is None:
            assert mine.report.name == theirs.name
            continue
        keys = ["name", "operator", "shape", "activations", "multiplications", "signal_to_noise_db"]
        if form == "packed":
            keys += ["scheme", "bits_per_weight", "multiplications_removed", "lost_groups"]
        for key in keys:
            assert getattr(mine.report, key) == getattr(theirs, key), key


def test_bits_of_activations(write_files, tmp_path):
    found = paired(write_files(tmp_path, group_size=4, activations="int4"))
    bits = {each.report.name: each.quantized.quantizer.bits for each in found if each.quantized}
    assert bits == {"layer_a": 8, "layer_d": 4, "layer_t": 4, "layer_m": 8}


def test_a_note_stands_where_the_scheme_is_the_usual_one(write_files, tmp_path):
    found = paired(write_files(tmp_path, group_size=5, first_last_int8=False))
    assert [each.report.reason for each in found] == ["", "last group of 3", "last group of 3", ""]
    assert {each.quantized.weight.scheme.codes for each in found} == {Codes.TERNARY}


def test_models_that_are_no_pair(files, make_model, tmp_path):
    with pytest.raises(
        ModelError, match=r"converted model: found no quantized weight .* wanted a model of the"
    ):
        paired(files._replace(converted=files.float_model))
    other = onnx.load(files.float_model)
    for array in other.graph.initializer:
        if array.name == "w":
            array.CopyFrom(onnx.numpy_helper.from_array(np.ones((8, 3, 5, 5), np.float32), "w"))
    for node in other.graph.node:
        if node.name == "layer_a":
            node.attribute[0].ints[:] = [2, 2, 2, 2]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"layer_a: found weights \[8, 3, 3, 3\], wanted \[8, 3, 5, 5\]"):
        paired(files._replace(float_model=tmp_path / "other.onnx"))
