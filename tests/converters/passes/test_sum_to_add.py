import numpy as np
import pytest


@pytest.mark.parametrize(
    ("operands", "expected"),
    [("x", {"Sum": 1}), ("x, z", {"Add": 1}), ("x, x", {"Add": 1}), ("x, z, x", {"Sum": 1})],
)
def test_sum(make_model, prepared, operands, expected):
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((2, 3)).astype(np.float32),
        "z": rng.standard_normal(3).astype(np.float32),
    }
    model = make_model(f"(float[2,3] x, float[3] z) => (float y) {{ y = Sum({operands}) }}")
    assert prepared(model, feeds) == expected
