import numpy as np
import pytest

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("axes", ["2, 3", "3, 2", "-1, -2", "-2, 3"])
def test_a_mean_over_pixels_is_a_pool(make_model, prepared, axes):
    model = make_model(
        f"(float[B,3,4,5] x) => (float y) {{ y = ReduceMean <axes = [{axes}], keepdims = 1> (x) }}", opset=13
    )
    assert prepared(model, {"x": X}) == {"GlobalAveragePool": 1}


@pytest.mark.parametrize("after", ["z = Relu(y)", "z = Relu(y) w = Exp(y)", ""])
def test_axes_that_are_not_kept_are_dropped_behind_it(make_model, prepared, after):
    outputs = ", ".join(["float y", *(f"float {name}" for name in "zw" if f"{name} =" in after)])
    model = make_model(
        f"(float[B,3,4,5] x) => ({outputs}) "
        f"{{ axes = Constant <value_ints = [2, 3]> () y = ReduceMean <keepdims = 0> (x, axes) {after} }}",
        opset=18,
    )
    found = prepared(model, {"x": X})
    assert found["GlobalAveragePool"] == found["Flatten"] == 1
    assert not found["ReduceMean"]


@pytest.mark.parametrize(
    ("given", "axes", "array"),
    [
        ("float[B,3,4,5]", "1, 2", X),
        ("float[B,3,4,5]", "3", X),
        ("float[B,3,4,5]", "1, 2, 3", X),
        ("float[B,3,4]", "1, 2", X[..., 0]),
    ],
)
def test_other_means_stay(make_model, prepared, given, axes, array):
    model = make_model(f"({given} x) => (float y) {{ y = ReduceMean <axes = [{axes}]> (x) }}", opset=13)
    assert prepared(model, {"x": array}) == {"ReduceMean": 1}


@pytest.mark.parametrize("dtype", ["int32", "int64", "double", "float16"])
def test_means_of_other_numbers_stay(make_model, prepared, dtype):
    """Integers have a mean and no pooling; onnxruntime pools no doubles on the CPU."""
    model = make_model(
        f"({dtype}[B,3,4,5] x) => ({dtype} y) {{ y = ReduceMean <axes = [2, 3]> (x) }}", opset=13
    )
    array = (9 * X).astype({"double": np.float64}.get(dtype, dtype))
    assert prepared(model, {"x": array}) == {"ReduceMean": 1}


def test_no_pixels(make_model, prepared):
    model = make_model("(float[B,3,0,5] x) => (float y) { y = ReduceMean <axes = [2, 3]> (x) }", opset=13)
    assert prepared(model, {"x": X[:, :, :0]}) == {"ReduceMean": 1}


@pytest.mark.parametrize("kept", [0, 1])
def test_no_samples(make_model, prepared, kept):
    model = make_model(
        f"(float[B,3,4,5] x) => (float y) {{ y = ReduceMean <axes = [2, 3], keepdims = {kept}> (x) }}",
        opset=13,
    )
    assert prepared(model, {"x": X[:0]})["GlobalAveragePool"] == 1
