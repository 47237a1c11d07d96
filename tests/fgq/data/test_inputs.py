"""What a model says about its inputs."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.data.inputs import InputSpec, axes_elsewhere, has_open_batch, input_specs
from fgq.errors import ModelError


class TestInputSpecs:
    def test_from_a_model(self):
        model = ir.from_onnx_text(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[batch, 3, 8] x, int64[4] n, float[2] w) => (float[batch, 3, 8] y)
            <float[2] w = {1, 2}> { y = Relu(x) }"""
        )
        model.graph.inputs[0].shape = ir.Shape([None, 3, 8])
        assert [str(one) for one in input_specs(model)] == ["x: float32[?, 3, 8]", "n: int64[4]"]

    def test_an_input_without_type_is_refused(self):
        value = ir.Value(name="x")
        model = ir.Model(ir.Graph([value], [], nodes=[], opset_imports={"": 17}), ir_version=8)
        with pytest.raises(ModelError, match="model input 'x'"):
            input_specs(model)


def spec(name, *shape):
    return InputSpec(name=name, dtype=np.dtype(np.float32), shape=shape)


@pytest.mark.parametrize(
    ("inputs", "is_open", "elsewhere"),
    [
        ([spec("x", "N", 3), spec("y", None, 3)], True, set()),
        ([spec("x", "N", 3), spec("scale")], True, set()),
        ([spec("x", 4, 3), spec("y", "N", 3)], False, set()),
        ([spec("x", "V", 3), spec("adjacency", "V", "V")], False, {"V"}),
    ],
)
def test_feeds_can_be_cut_along_a_first_axis_of_any_length(inputs, is_open, elsewhere):
    assert has_open_batch(inputs) == is_open
    assert axes_elsewhere(inputs) == elsewhere
