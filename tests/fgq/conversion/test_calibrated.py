"""Schemes and ranges after the second stage."""

import numpy as np
import pytest

from fgq.config import ConversionConfig
from fgq.conversion import calibrated
from fgq.conversion.calibrated import calibrate
from fgq.conversion.context import Context
from fgq.conversion.prepared import prepare
from fgq.plan import Plan
from fgq.plan.plan_file import PlannedLayer

TEXT = """(float[N,8,6,6] x) => (float y) {
    a = Conv(x, v)
    b = Relu(a)
    p = MaxPool<kernel_shape=[2,2]>(b)
    c = Conv(p, w)
    y = Relu(c)
}"""


def run(make_model, monkeypatch, plan=None, **options):
    """Return what the stage gives, and how often it looked for sites."""
    rng = np.random.default_rng(0)
    weights = {"v": rng.standard_normal((8, 8, 1, 1)), "w": rng.standard_normal((8, 8, 3, 3))}
    model = make_model(TEXT, {name: array.astype(np.float32) for name, array in weights.items()})
    x = rng.standard_normal((40, 8, 6, 6)).astype(np.float32)
    x[0, 0, 0, 0] = 1000
    context = Context(config=ConversionConfig(first_last_int8=False, **options), calibration={"x": x})
    found, times = calibrated.find_sites, []

    def counted(*arguments):
        times.append(1)
        return found(*arguments)

    monkeypatch.setattr(calibrated, "find_sites", counted)
    return calibrate(prepare(model, context), plan, context), len(times)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({}, 1),
        ({"range": "percentile:99.9"}, 1),
        ({"smooth": True}, 2),
        ({"activations": "int4", "smooth": False, "dual_activations": 0.01}, 2),
    ],
)
def test_sites_are_found_again_only_where_they_change(make_model, monkeypatch, options, times):
    result, found = run(make_model, monkeypatch, **options)
    assert found == times
    assert set(result.histograms) == {str(site.tensor.name) for site in result.quantizers}
    assert result.model is result.prepared.model


def test_a_pooling_maximum_keeps_the_quantizer_before_it(make_model, monkeypatch):
    result, _ = run(make_model, monkeypatch)
    pooled = [site for site in result.quantizers if site.same_as is not None]
    assert len(pooled) == 1
    assert result.quantizers[pooled[0]][8] is result.quantizers[pooled[0].same_as][8]


def test_inputs_are_cut_to_their_percentile(make_model, monkeypatch):
    result, _ = run(make_model, monkeypatch, range="percentile:99.9")
    assert max(feed["x"].max() for feed in result.prepared.feeds) == 1000
    assert max(feed["x"].max() for feed in result.feeds) < 10


def test_a_second_tensor_makes_an_input_wider(make_model, monkeypatch):
    options = {"activations": "int4", "smooth": False}
    narrow, _ = run(make_model, monkeypatch, **options)
    wide, _ = run(make_model, monkeypatch, dual_activations=0, **options)
    widths = [{choice.activations.width for choice in result.choices} for result in (narrow, wide)]
    assert widths == [{4}, {8}]
    assert all(set(by_bits) == {8} for by_bits in wide.quantizers.values())


def test_layers_take_the_schemes_of_a_plan(make_model, monkeypatch):
    result, _ = run(make_model, monkeypatch)
    first, second = (choice.layer.name for choice in result.choices)
    scheme = result.choices[1].weights
    layers = {first: PlannedLayer(scheme=None), second: PlannedLayer(scheme=scheme)}
    result, _ = run(make_model, monkeypatch, Plan(layers=layers))
    assert [choice.layer.name for choice in result.choices] == [second]
    assert len(result.chosen) == 2
