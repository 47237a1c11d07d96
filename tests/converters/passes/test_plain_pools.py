import numpy as np
import onnx_ir as ir
import pytest

from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model

POOLS = {
    "one window would begin behind the image": ("kernel_shape=[1,1], strides=[3,3]", False),
    "windows fit": ("kernel_shape=[3,1], strides=[1,2]", False),
    "padding at the end": ("kernel_shape=[2,2], strides=[3,3], pads=[0,0,1,1]", False),
    "the same size": ('kernel_shape=[3,3], strides=[3,2], auto_pad="SAME_LOWER"', False),
    "one window more": ("kernel_shape=[2,2], strides=[2,2]", True),
    "more windows along one axis": ("kernel_shape=[1,2], strides=[3,2]", True),
}


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("case", POOLS)
def test_ceil_mode(make_model, prepared, operator, case):
    form, stays = POOLS[case]
    model = make_model(f"(float[2,3,3,7] x) => (float y) {{ y = {operator}<ceil_mode=1, {form}>(x) }}")
    prepared(model, {"x": np.random.default_rng(0).standard_normal((2, 3, 3, 7)).astype(np.float32)})
    found = ir.from_proto(model)
    prepare(found)
    assert found.graph[0].attributes.get_int("ceil_mode", 0) == stays


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("kernel_shape=[1,1], strides=[3,3]", 6),
        ('kernel_shape=[3,3], strides=[3,2], auto_pad="SAME_LOWER"', 9),
    ],
)
def test_what_follows_a_pooling_keeps_its_size(make_model, run, form, columns, opset):
    # at opset 11 onnxruntime runs the model; later it holds the Gemm against the sizes that onnx infers
    text = f"""(float[2,3,2,6] x) => (float y) {{
        a = MaxPool<ceil_mode=1, {form}>(x)
        b = Flatten(a)
        y = Gemm(b, w)
    }}"""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((columns, 5)).astype(np.float32)}
    feeds = {"x": rng.standard_normal((2, 3, 2, 6)).astype(np.float32)}
    wanted = run(make_model(text, weights, opset=11), feeds)
    model = read_float_model(make_model(text, weights, opset=opset))
    prepare(model)
    np.testing.assert_allclose(run(ir.to_proto(model), feeds), wanted, 1e-5, 1e-5)
