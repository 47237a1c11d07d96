"""The report of the last stage against the file that it wrote."""

import numpy as np
import onnx
import pytest

from fgq.config import ConversionConfig
from fgq.conversion.calibrated import calibrate
from fgq.conversion.context import Context
from fgq.conversion.prepared import prepare
from fgq.conversion.quantized import quantize
from fgq.conversion.written import write


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def run(model, folder, **options):
    """Convert without data."""
    context = Context(config=ConversionConfig(activations="none", first_last_int8=False, **options))
    quantized = quantize(calibrate(prepare(model, context), None, context), context)
    return write(quantized, folder / "out.onnx", context)


@pytest.fixture
def model(make_model):
    return make_model("(float[N,8] x) => (float y) { y = MatMul(x, w) }", {"w": normal(8, 8)})


def test_the_report_tells_of_the_file(model, tmp_path):
    written = run(model, tmp_path)
    assert written.report.converted_bytes == (tmp_path / "out.onnx").stat().st_size
    assert written.report.options["recipe"] == "fgq"
    assert written.report.options["weights"] == "ternary"
    assert written.report.self_check.data == "random data"
    assert written.checkpoint is None
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_layers_are_described_by_their_float_weights(model, tmp_path):
    (layer,) = run(model, tmp_path, weights="int8").report.layers
    assert layer.is_converted
    assert 30 < layer.signal_to_noise_db < 60


def test_lost_groups_and_poor_outputs_are_warned_of(make_model, tmp_path):
    weight = normal(64, 8)
    weight[:4] *= 1e-4
    model = make_model("(float[N,64] x) => (float y) { y = MatMul(x, w) }", {"w": weight})
    warnings = run(model, tmp_path, group_size=4).report.warnings
    assert any("8 groups of small weights became zero" in warning for warning in warnings)
    poor = [warning for warning in warnings if warning.startswith("output y: ")]
    assert len(poor) == 1
    assert "try a smaller --group-size" in poor[0]
