"""Shape inference: onnx's, and sequences left alone."""

import numpy as np
import onnx_ir as ir

from fgq import convert
from fgq.shapes import InferShapes

SEQUENCES = """(float[N,4,6,6] x) => (float y) {
    a = Conv(x, w)
    s = SplitToSequence<axis=2>(a)
    c = ConcatFromSequence<axis=2>(s)
    y = Conv(c, v)
}"""
RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((8, k, 1, 1)).astype(np.float32) for name, k in (("w", 4), ("v", 8))}


def test_shapes_are_inferred_through_a_graph(make_model):
    model = ir.from_proto(make_model("(float[N,4,6,6] x) => (float y) {a = Conv(x, w) y = Relu(a)}", WEIGHTS))
    assert InferShapes()(model).modified
    assert [str(dim) for dim in model.graph.outputs[0].shape] == ["N", "8", "6", "6"]


def test_a_sequence_does_not_take_the_type_of_its_elements(make_model):
    model = ir.from_proto(make_model(SEQUENCES, WEIGHTS))
    InferShapes()(model)
    assert model.graph[1].outputs[0].type is None


def test_a_model_with_a_sequence_converts(make_model):
    feeds = {"x": RNG.standard_normal((8, 4, 6, 6)).astype(np.float32)}
    report = convert(make_model(SEQUENCES, WEIGHTS), calibration=feeds, group_size=4).report
    # The last convolution has a float result, which onnxruntime computes in float32.
    assert report.self_check.outputs[0].engines_difference < 1e-6
