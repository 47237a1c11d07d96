import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from fgq import convert
from fgq.converters.compatibility import runs_opset
from fgq.converters.reader import OPSETS, read_float_model
from fgq.errors import ModelError

TEXT = """(float[2,3,8,8] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(a)
    c = Conv(r, v)
    p = MaxPool<kernel_shape=[2,2]>(c)
    q = Flatten(p)
    y = Gemm<transB=1>(q, u, k)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": normal(8, 3, 3, 3),
    "b": normal(8),
    "v": normal(8, 8, 1, 1),
    "u": normal(5, 8 * 49),
    "k": normal(5),
}
FEEDS = {"x": normal(2, 3, 8, 8)}
RUN_BY_ONNXRUNTIME = range(9, 27)


@pytest.mark.parametrize("opset", RUN_BY_ONNXRUNTIME)
def test_opsets(make_model, run, check_integers, opset):
    model = make_model(TEXT, WEIGHTS, opset=opset, ir_version=3 if opset < 10 else 8 if opset < 21 else 10)
    if opset < 10:  # until IR version 4 every initializer was an input
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    before = model.SerializeToString()
    result = convert(model, calibration=FEEDS, group_size=4)
    assert model.SerializeToString() == before
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert {entry.domain: entry.version for entry in result.model.opset_import} == {
        "": max(opset, 13),
        "fgq": 1,
    }
    assert result.model.ir_version >= 8
    onnx.checker.check_model(result.model, full_check=True)
    check_integers(result.model, FEEDS)


@pytest.mark.parametrize("opset", [1, 8, OPSETS.stop])
def test_refuses_other_opsets(make_model, opset):
    model = make_model(TEXT, WEIGHTS, opset=opset, ir_version=3)
    with pytest.raises(ModelError, match=f"found opset {opset}, wanted 9 to 28"):
        read_float_model(model)


def test_refuses_a_model_of_functions_alone(make_model):
    model = make_model("(float[3] x) => (float y) { y = local.F(x) }", domains='"local" : 1')
    del model.opset_import[0]
    with pytest.raises(ModelError, match="found opset None"):
        read_float_model(model)


def test_refuses_what_the_version_converter_cannot_bring_up(make_model):
    model = make_model("(float[1,1,4,4] x) => (float y) { y = NoSuchOperator(x) }", opset=11)
    with pytest.raises(ModelError, match="version converter cannot bring it to opset 13"):
        read_float_model(model)


@pytest.mark.parametrize("form", ["packed", "int8", "inlined"])
def test_refuses_a_converted_model(make_model, form):
    once = convert(make_model(TEXT, WEIGHTS), calibration=FEEDS, group_size=4, form=form).model
    with pytest.raises(ModelError, match="found a model that fgq has converted"):
        convert(once, calibration=FEEDS)


def test_an_opset_that_onnxruntime_does_not_run_comes_down_to_one_that_it_runs(make_model):
    newest = max(opset for opset in OPSETS if runs_opset(opset))
    model = read_float_model(make_model(TEXT, WEIGHTS, opset=OPSETS.stop - 1))
    assert model.opset_imports[""] == newest
    assert convert(model, calibration=FEEDS, group_size=4).report.self_check is not None


def test_does_not_change_a_model_in_memory(make_model):
    model = ir.from_proto(make_model(TEXT, WEIGHTS))
    before = ir.to_proto(model).SerializeToString()
    convert(model, calibration=FEEDS)
    assert ir.to_proto(model).SerializeToString() == before


def test_external_data(make_model, tmp_path, monkeypatch):
    model = make_model(TEXT, WEIGHTS)
    expected = convert(model, calibration=FEEDS, group_size=4).model
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(tmp_path.parent)
    found = convert(tmp_path / "m.onnx", calibration=FEEDS, group_size=4).model
    assert found.SerializeToString() == expected.SerializeToString()


def test_nodes_in_any_order(make_model, run):
    """onnxruntime sorts them, and so does the reader."""
    model = make_model("(float[N,6] x) => (float y) { b = Relu(a) a = MatMul(x, w) y = MatMul(b, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(6, 6), "w"))
    model.graph.node.insert(0, model.graph.node.pop())
    found = read_float_model(model)
    assert [node.op_type for node in found.graph] == ["MatMul", "Relu", "MatMul"]
    feeds = {"x": normal(5, 6)}
    np.testing.assert_array_equal(run(ir.to_proto(found), feeds)[0], run(model, feeds)[0])


def test_refuses_a_cycle(make_model):
    model = make_model("(float[N,6] x) => (float y) { a = Add(x, b) b = Relu(a) y = Relu(b) }")
    with pytest.raises(ModelError, match="cycle"):
        read_float_model(model)


CENTER = {
    17: [helper.make_node("ReduceMean", ["a"], ["m"], axes=[-1])],
    18: [
        helper.make_node("Constant", [], ["i"], value_ints=[-1]),
        helper.make_node("ReduceMean", ["a", "i"], ["m"]),
    ],
}


@pytest.mark.parametrize(("own", "opset"), [(17, 18), (17, 20), (18, 20), (18, 18)])
def test_functions_of_another_opset(make_model, run, own, opset):
    """They are brought to the model's, whose operators may take their operands otherwise."""
    model = make_model("(float[N,6] x) => (float y) { y = local.F(x) }", opset=opset, domains='"local" : 1')
    model.functions.append(
        helper.make_function(
            "local",
            "F",
            ["a"],
            ["b"],
            [*CENTER[own], helper.make_node("Sub", ["a", "m"], ["b"])],
            [helper.make_opsetid("", own)],
        )
    )
    x = normal(5, 6)
    (y,) = run(ir.to_proto(read_float_model(model)), {"x": x})
    np.testing.assert_allclose(y, x - x.mean(-1, keepdims=True), atol=1e-6)


def test_a_function_that_means_the_same_keeps_its_nodes(make_model, run):
    model = make_model("(float[N,6] x) => (float y) { y = local.F(x) }", opset=20, domains='"local" : 1')
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    )
    found = read_float_model(model)
    assert [function.opset_imports for function in found.functions.values()] == [{"": 20}]
    np.testing.assert_array_equal(run(ir.to_proto(found), {"x": normal(5, 6)})[0], -normal(5, 6))


def test_refuses_a_function_that_cannot_be_brought_down(make_model):
    model = make_model("(float[N,6] x) => (float y) { y = local.F(x) }", opset=17, domains='"local" : 1')
    body = [*CENTER[18], helper.make_node("Sub", ["a", "m"], ["b"])]
    model.functions.append(
        helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    )
    with pytest.raises(ModelError, match="model: onnx cannot bring its functions to opset 17"):
        read_float_model(model)
