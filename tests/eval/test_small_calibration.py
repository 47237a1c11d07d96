"""The measurement of what few samples do."""

import numpy as np
import pytest

from fgq.eval import small_calibration
from fgq.eval.small_calibration import outcome

TEXT = """(float[N,16] x) => (float y) {
    a = Gemm(x, w0, b0)
    b = Relu(a)
    y = Gemm(b, w1, b1)
}"""


@pytest.mark.parametrize("count", [2, 5])
def test_layers_are_compared_with_those_of_fgq(make_model, count):
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 24), "b0": (24,), "w1": (24, 4), "b1": (4,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    data, fresh = ({"x": rng.standard_normal((n, 16)).astype(np.float32)} for n in (count, 20))
    found = outcome(make_model(TEXT, weights), data, fresh, group_size=8)
    assert (found.layers, found.farther, found.compared) == (2, 0, 2)
    assert found.gain > -0.5


@pytest.mark.slow
def test_no_layer_of_the_topologies_is_worse_for_few_samples():
    for package in ("torch", "transformers", "onnxscript"):
        pytest.importorskip(package)
    for name, model, samples in small_calibration.networks():
        for count in small_calibration.COUNTS:
            found = outcome(model, samples(count, 0), samples(small_calibration.FRESH, 1))
            assert found.farther == 0, (name, count)
            assert found.layers > 0 or count == 1, (name, count)
