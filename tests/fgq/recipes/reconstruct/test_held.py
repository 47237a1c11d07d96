"""Blocks are trained for their ends; none of their layers ends farther from float than by ``fgq``."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from fgq import Session, convert

pytest.importorskip("torch")
network = importlib.import_module("fgq.recipes.reconstruct.blockwise")

TEXT = """(float[N,8] x) => (float y) {
    a = Gemm(x, w0, b0)
    b = Relu(a)
    c = Gemm(b, w1, b1)
    y = Add(c, x)
}"""


@pytest.fixture
def model(make_model):
    rng = np.random.default_rng(0)
    shapes = {"w0": (8, 16), "b0": (16,), "w1": (16, 8), "b1": (8,)}
    return make_model(
        TEXT, {name: rng.standard_normal(s).astype(np.float32) / 3 for name, s in shapes.items()}
    )


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("activations", ["int8", "none"])
def test_each_layer_is_held_against_the_nearest(model, monkeypatch, count, activations):
    # A rate at which training moves weights and biases far, to serve the end of the block alone.
    for stage, rate in (("SCALES", 0.0), ("CODES", 0.05), ("JOINT", 0.05)):
        monkeypatch.setattr(network, stage, network.Stage(20, rate, 0.02))
    x = np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)
    options = {"recipe": "reconstruct", "activations": activations, "first_last_int8": False, "group_size": 4}
    result = convert(model, calibration={"x": x}, **options)
    assert len(result.report.layers) == 2
    for layer in result.report.layers:
        assert layer.output_error <= layer.nearest_output_error
    (found,) = Session(result.model.SerializeToString()).run(None, {"x": x})
    (exact,) = Session(model.SerializeToString(), allow_float=True).run(None, {"x": x})
    assert np.sum((found - exact) ** 2) < 0.3 * np.sum(exact**2)


def test_what_a_block_gained_at_the_cost_of_a_layer_goes_back(model, monkeypatch):
    """A trainer that ruins every weight leaves the network as calibrated, biases too."""

    def ruin(trainer, stretch, *_):
        for layer in stretch.layers:
            task = trainer._tasks[layer.name]
            tensor = trainer._weights[task.layer.node]
            trainer._take(task, replace(tensor, row_scale=tensor.row_scale * 5))
        return True

    monkeypatch.setattr(network._Trainer, "train", ruin)
    x = np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
    options = {"activations": "none", "first_last_int8": False, "group_size": 4, "calibration": {"x": x}}
    result = convert(model, recipe="reconstruct", **options)
    monkeypatch.setattr("fgq.conversion.prepared.CALIBRATION_BATCH", 8)  # the batches of reconstruction
    calibrated = convert(model, recipe="calibrated", **options)
    assert sum("all layers stay as calibrated" in text for text in result.report.warnings) == 1
    assert [layer.reverted_outputs for layer in result.report.layers] == [
        layer.reverted_outputs for layer in calibrated.report.layers
    ]
    for found, expected in zip(*(m.model.graph.initializer for m in (result, calibrated)), strict=True):
        assert found.raw_data == expected.raw_data, found.name


def test_a_layer_that_goes_back_may_leave_the_network_better(model, monkeypatch):
    """A trainer that ruins the last weight alone loses no more than the recipe ``fgq`` has there."""

    def ruin(trainer, stretch, *_):
        task = trainer._tasks[stretch.layers[-1].name]
        tensor = trainer._weights[task.layer.node]
        trainer._take(task, replace(tensor, row_scale=tensor.row_scale * 5))
        return True

    monkeypatch.setattr(network._Trainer, "train", ruin)
    monkeypatch.setattr(network, "is_worse", lambda found, before: False)
    x = np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
    options = {"activations": "none", "first_last_int8": False, "group_size": 4, "calibration": {"x": x}}
    result = convert(model, recipe="reconstruct", **options)
    plain = convert(model, recipe="fgq", **options)
    assert [layer.reverted_outputs for layer in result.report.layers] == [0, 8]
    assert sum("outputs are as the recipe fgq has them" in text for text in result.report.warnings) == 1
    found, expected = (
        {tensor.name: tensor.raw_data for tensor in m.model.graph.initializer} for m in (result, plain)
    )
    assert {name for name in found if name.startswith("w1") and found[name] != expected[name]} == set()
    assert any(found[name] != expected[name] for name in found if name.startswith("w0"))
