"""The way through all stages, from Python and from file to file."""

import numpy as np
import onnx
import pytest

from fgq.config import ConversionConfig
from fgq.conversion.pipeline import convert, convert_file
from fgq.errors import ConfigError
from fgq.quantization.scheme import WeightScheme

RNG = np.random.default_rng(0)
DATA = {"x": RNG.standard_normal((40, 8)).astype(np.float32)}


@pytest.fixture
def model(make_model):
    weight = RNG.standard_normal((8, 8)).astype(np.float32)
    return make_model("(float[N,8] x) => (float y) { y = MatMul(x, w) }", {"w": weight})


def test_files_and_models_become_the_same(model, tmp_path):
    onnx.save(model, tmp_path / "in.onnx")
    told = []
    report = convert_file(
        tmp_path / "in.onnx",
        tmp_path / "out.onnx",
        ConversionConfig(),
        DATA,
        lambda stage, done, total: told.append(stage),
    )
    found = convert(model, calibration=DATA)
    assert found.model == onnx.load(tmp_path / "out.onnx")
    assert found.report.layers == report.layers
    assert list(dict.fromkeys(told)) == ["read", "calibrate", "quantize weights", "write", "check"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_a_scheme_stands_for_two_options(model):
    scheme = WeightScheme(group_size=2, weight_limit=63)
    report = convert(model, scheme=scheme, calibration=DATA, group_size=64).report
    assert (report.options["group_size"], report.options["x86_without_vnni"]) == (2, True)
    with pytest.raises(ConfigError, match="weight limit: found 100, wanted 127, or 63"):
        convert(model, scheme=WeightScheme(weight_limit=100), calibration=DATA)
