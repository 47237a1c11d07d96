"""A faulty value in the calibration data: what is said of it, and what a percentile makes of it."""

import numpy as np
import pytest

from fgq import Session, convert
from fgq.config import ConversionConfig
from fgq.errors import ConfigError
from fgq.quantization.weights import signal_to_noise_db

TEXT = """(float[N,3,8,8] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, w1, b1)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    y = Gemm<transB=1>(f, w2, b2)
}"""


@pytest.fixture(scope="module")
def model(make_model):
    rng = np.random.default_rng(0)
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 3, 3), "b1": (8,), "w2": (5, 8), "b2": (5,)}
    return make_model(
        TEXT,
        {
            name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
            for name, shape in shapes.items()
        },
    )


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def quality(model, converted):
    fresh = {"x": images(32, seed=1)}
    (exact,) = Session(model.SerializeToString(), allow_float=True).run(None, fresh)
    (found,) = Session(converted.SerializeToString()).run(None, fresh)
    return signal_to_noise_db(exact, found)


OPTIONS = {"recipe": "fgq", "weights": "int8"}


@pytest.mark.parametrize("value", [1e4, -300.0])
@pytest.mark.parametrize("batched", [False, True])
def test_a_glitch_is_named_and_a_percentile_leaves_it_out(model, value, batched):
    clean, x = images(64), images(64)
    x[17, 1, 4, 5] = value
    data = [{"x": part} for part in np.split(x, 16)] if batched else {"x": x}
    ordinary = convert(model, calibration={"x": clean}, **OPTIONS)
    assert not any("its range" in warning for warning in ordinary.report.warnings)
    spoilt = convert(model, calibration=data, **OPTIONS)
    (named,) = (warning for warning in spoilt.report.warnings if "its range" in warning)
    assert named.startswith("tensor x: its range (and of 4 more: b, d, e, ..) is set by sample 17 of 64; ")
    _, advice = named.split("--range ")
    mended = convert(model, calibration=data, **OPTIONS, range=advice)
    assert not any("its range" in warning for warning in mended.report.warnings)
    good, bad, back = (quality(model, result.model) for result in (ordinary, spoilt, mended))
    assert bad < good - 10
    assert back > good - 6
    assert mended.report.options["range"] == advice


def test_the_whole_range_is_a_percentile_too(model):
    x = images(8)
    report = convert(model, calibration={"x": x}, **OPTIONS, range="percentile:100").report
    first = report.quantizers[0]
    assert first.clipped_share == 0
    assert 255 * first.scale == pytest.approx(x.max() - x.min(), rel=0.01)


@pytest.mark.parametrize(
    "asked", ["percentile", "percentile:", "percentile:50", "percentile:101", "percentile:nan", "max", 3]
)
def test_other_ranges_are_refused(asked):
    with pytest.raises(ConfigError, match="range: found"):
        ConversionConfig(range=asked)


def test_a_percentile_needs_ranges_from_data():
    with pytest.raises(ConfigError, match=r"range: found .* with none activations, wanted int8 or int4"):
        ConversionConfig(range="percentile:99", activations="none")
