"""The functions of the format: which bodies are ours, and what becomes of calls of others."""

import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx_ir.passes import common

import fgq
from fgq import Session
from fgq.config import ExportForm
from fgq.converters.export import export
from fgq.errors import ModelError
from fgq.format import container, onnx_file
from fgq.format.functions import (
    FUNCTION_DOMAIN,
    LEAST_OPSET,
    MULTIPLY_TOKENS,
    QUANTIZE_TOKENS,
    UNPACK,
    called,
    function,
    inputs_of,
    recognise,
)

OPSETS = range(LEAST_OPSET, 27)
NAMES = (UNPACK, QUANTIZE_TOKENS, MULTIPLY_TOKENS)
RNG = np.random.default_rng(14)
X = RNG.standard_normal((4, 8)).astype(np.float32)
WEIGHTS = {
    "w": RNG.standard_normal((8, 6)).astype(np.float32),
    "v": RNG.standard_normal((6, 4)).astype(np.float32),
}


@pytest.fixture(scope="module")
def packed(make_model):
    """A network whose two products call all three functions, and one with static activations."""
    model = make_model(
        "(float[N,8] x) => (float y) {a = MatMul(x, w)\n r = Relu(a)\n y = MatMul(r, v)}", WEIGHTS
    )
    return {
        kind: fgq.convert(
            model, calibration={"x": X}, group_size=4, first_last_int8=False, activations=kind, recipe="fgq"
        )[0]
        for kind in ("int8", "int8-dynamic-token")
    }


def copy_of(model):
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def function_of(model, name):
    return next(each for each in model.functions if each.name == name)


def calls_in(model):
    """Which of our functions are called, by the domain and name of the calls' nodes."""
    read = onnx_file.from_proto(model)
    recognise(read)
    return sorted(called(node) for node in read.graph if called(node) is not None)


ALL = sorted([UNPACK, UNPACK, MULTIPLY_TOKENS, MULTIPLY_TOKENS, QUANTIZE_TOKENS, QUANTIZE_TOKENS])


@pytest.mark.parametrize("opset", OPSETS)
def test_functions_of_every_opset_are_ours(opset):
    for name in NAMES:
        made = function(name, opset)
        assert made.identifier() == (FUNCTION_DOMAIN, name, "")
        assert tuple(value.name for value in made.inputs) == inputs_of(name)
        node = helper.make_node(
            name,
            list(inputs_of(name)),
            [f"y{index}" for index in range(len(made.outputs))],
            domain=FUNCTION_DOMAIN,
            **({"axis": 0} if name == UNPACK else {}),
        )
        inputs = [helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, None) for each in node.input]
        outputs = [helper.make_tensor_value_info("y0", onnx.TensorProto.INT8, None)]
        model = helper.make_model(
            helper.make_graph([node], "g", inputs, outputs),
            functions=[ir.serde.serialize_function(made)],
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(FUNCTION_DOMAIN, 1)],
        )
        assert calls_in(model) == [name]


def saved(model):
    memory = io.BytesIO()
    onnx.save(model, memory)
    return onnx.load_from_string(memory.getvalue())


def with_shapes_in_bodies(model):
    for each in model.functions:
        for node in each.node:
            each.value_info.append(
                helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT32, ["n"])
            )
    return model


def renamed(model):
    """Give inner values other names, nodes names and documentation, and attributes another order."""
    for each in model.functions:
        names = {name: f"inner_{index}" for index, node in enumerate(each.node) for name in node.output}
        names |= {name: f"given_{index}" for index, name in enumerate(each.input)}
        each.doc_string = "says nothing"
        each.input[:] = [names[name] for name in each.input]
        each.output[:] = [names[name] for name in each.output]
        for index, node in enumerate(each.node):
            node.name, node.doc_string = f"node {index}", "neither"
            node.input[:] = [names[name] for name in node.input]
            node.output[:] = [names[name] for name in node.output]
            attributes = list(node.attribute)[::-1]
            del node.attribute[:]
            node.attribute.extend(attributes)
    return model


@pytest.mark.parametrize(
    "trip",
    {
        "as they are": lambda model: model,
        "onnx.save": saved,
        "onnx_ir": lambda model: ir.to_proto(ir.from_proto(model)),
        "shape inference": lambda model: onnx.shape_inference.infer_shapes(model, data_prop=True),
        "shapes in bodies": with_shapes_in_bodies,
        "other names": renamed,
        "text": lambda model: onnx.parser.parse_model(onnx.printer.to_text(model)),
        "sorted": lambda model: ir.to_proto(common.TopologicalSortPass()(ir.from_proto(model)).model),
    }.items(),
    ids=lambda trip: trip[0],
)
def test_a_round_trip_leaves_functions_ours(packed, trip):
    assert calls_in(trip[1](copy_of(packed["int8-dynamic-token"]))) == ALL


def negated(model):
    """Unpack the weights with the opposite sign."""
    body = function_of(model, UNPACK).node
    last = onnx.NodeProto()
    last.CopyFrom(body[-1])
    body[-1].CopyFrom(helper.make_node("Neg", ["w32"], ["w32_negated"]))
    last.input[0] = "w32_negated"
    body.append(last)


def fewer_steps(model):
    for node in function_of(model, QUANTIZE_TOKENS).node:
        if node.output[0] == "steps":
            node.attribute[0].f = 15.0


def another_zero(model):
    for node in function_of(model, MULTIPLY_TOKENS).node:
        if node.output[0] == "acc":
            node.op_type = "Add"


def swapped(model):
    for node in function_of(model, QUANTIZE_TOKENS).node:
        if node.output[0] == "range":
            node.input[:] = node.input[::-1]


def another_domain(model):
    """Let the body call a function of the model that is named as the operator was."""
    for node in function_of(model, UNPACK).node:
        if node.op_type == "Mul":
            node.domain = "local"
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Sub", ["a", "b"], ["c"])]
    model.functions.append(helper.make_function("local", "Mul", ["a", "b"], ["c"], body, imports))
    function_of(model, UNPACK).opset_import.append(helper.make_opsetid("local", 1))
    model.opset_import.append(helper.make_opsetid("local", 1))


def another_version(model):
    next(each for each in model.opset_import if each.domain == "fgq").version = 2


def overloaded(model):
    """Call an overload of another body, with ours beside it."""
    other = onnx.FunctionProto()
    other.CopyFrom(function_of(model, UNPACK))
    other.overload = "other"
    for node in other.node:
        if node.op_type == "Mul":
            node.op_type = "Add"
    model.functions.append(other)
    for node in model.graph.node:
        if node.op_type == UNPACK:
            node.overload = "other"


FOREIGN = {
    "Unpack negates": (negated, UNPACK),
    "15 steps": (fewer_steps, QUANTIZE_TOKENS),
    "the zero point is added": (another_zero, MULTIPLY_TOKENS),
    "inputs swapped": (swapped, QUANTIZE_TOKENS),
    "an operator of another domain": (another_domain, UNPACK),
    "an overload": (overloaded, UNPACK),
    "another version": (another_version, None),
}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (change, kind)
        for change, (_, name) in FOREIGN.items()
        for kind in ("int8", "int8-dynamic-token")
        if kind == "int8-dynamic-token" or name in (UNPACK, None)
    ],
)
def test_another_body_is_what_onnxruntime_computes(packed, run, change, kind):
    alter, name = FOREIGN[change]
    model = copy_of(packed[kind])
    alter(model)
    found = calls_in(model)
    assert name not in found if name is not None else not found
    feeds = {"x": X[:3]}
    theirs = run(model, feeds)
    session = Session(model.SerializeToString(), threads=1)
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, feeds)[0], theirs[0], rtol=0, atol=1e-6)
    assert not np.allclose(theirs[0], run(packed[kind], feeds)[0]) or change == "another version"
    with pytest.raises(ModelError, match=r"^[^\n]*onnxruntime only: leave fallback=True$"):
        Session(model.SerializeToString(), threads=1, fallback=False)


def test_an_export_keeps_what_another_body_computes(packed, run):
    model = copy_of(packed["int8-dynamic-token"])
    fewer_steps(model)
    expected = run(model, {"x": X})[0]
    for form in (ExportForm.INT8, ExportForm.INLINED, ExportForm.FLOAT):
        read = onnx_file.from_proto(model)
        export(read, form)
        np.testing.assert_allclose(run(ir.to_proto(read), {"x": X})[0], expected, rtol=0, atol=1e-6)


def calls(model, name):
    return next(node for node in model.graph.node if node.op_type == name)


BROKEN = {
    "four inputs of Unpack": (
        UNPACK,
        lambda node: node.input.pop(),
        "found 4 inputs of fgq::Unpack, wanted codes",
    ),
    "six inputs of Unpack": (UNPACK, lambda node: node.input.append("x"), "found 6 inputs"),
    "an input without a name": (UNPACK, lambda node: node.input.__setitem__(3, ""), "found 4 inputs"),
    "two outputs": (
        UNPACK,
        lambda node: node.output.append("more"),
        "found 2 outputs, wanted at most 1, as function 'Unpack' has",
    ),
    "no axis": (UNPACK, lambda node: node.attribute.pop(), "found the attributes none"),
    "axis is text": (
        UNPACK,
        lambda node: node.attribute[0].CopyFrom(helper.make_attribute("axis", "0")),
        "Attribute 'axis' is not of type INTS. Actual type: STRING",
    ),
    "axis is a list": (
        UNPACK,
        lambda node: node.attribute[0].CopyFrom(helper.make_attribute("axis", [0])),
        "found no whole number for axis",
    ),
    "one attribute more": (
        UNPACK,
        lambda node: node.attribute.append(helper.make_attribute("more", 1)),
        "found the attributes axis, more",
    ),
    "no activations": (
        QUANTIZE_TOKENS,
        lambda node: node.input.pop(),
        "found 0 inputs of fgq::QuantizeTokens",
    ),
    "two results": (QUANTIZE_TOKENS, lambda node: node.output.pop(), "found 2 outputs"),
    "no row scale": (MULTIPLY_TOKENS, lambda node: node.input.pop(), "found 4 inputs of fgq::MultiplyTokens"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_calls_that_are_no_calls_of_ours_are_refused(packed, damage):
    name, alter, found = BROKEN[damage]
    model = copy_of(packed["int8-dynamic-token"])
    alter(calls(model, name))
    with pytest.raises(ModelError, match=r"^model[^\n]*$") as refused:
        Session(model.SerializeToString())
    assert found in str(refused.value) or "which nothing computes" in str(refused.value)


def test_functions_that_were_dropped_are_named(packed, tmp_path):
    model = onnx.version_converter.convert_version(packed["int8"], 18)
    assert not model.functions
    (tmp_path / "dropped.onnx").write_bytes(model.SerializeToString())
    wanted = r"dropped.onnx: node 'w.w8': found a call of fgq::Unpack, which the model does not hold"
    for load in (container.load, Session):
        with pytest.raises(ModelError, match=wanted):
            load(tmp_path / "dropped.onnx")


def test_two_functions_of_one_name_are_refused(packed):
    model = copy_of(packed["int8"])
    model.functions.append(function_of(model, UNPACK))
    with pytest.raises(ModelError, match="function fgq::Unpack: found two of this name, wanted one"):
        Session(model.SerializeToString())


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_function_named_as_an_operator_is_refused(packed, domain):
    """onnxruntime runs the operator, what inlines functions the function."""
    model = copy_of(packed["int8"])
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(
        helper.make_function(domain, "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    with pytest.raises(
        ModelError, match="::Relu: found the name of an operator of ONNX, wanted another name"
    ):
        Session(model.SerializeToString())


@pytest.mark.parametrize("of_function", [True, False])
def test_two_opsets_of_one_domain_are_refused(packed, of_function):
    model = copy_of(packed["int8"])
    imports = (function_of(model, UNPACK) if of_function else model).opset_import
    imports.append(helper.make_opsetid("ai.onnx", 13))
    with pytest.raises(ModelError, match="found the opsets 17 and 13 of the domain '', wanted one"):
        Session(model.SerializeToString())


def test_a_function_that_is_named_as_a_layout_is_not_repeated(run):
    """Random numbers of a function named Cast are drawn once, wherever they are read."""
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("RandomUniformLike", ["a"], ["b"])]
    cast = helper.make_function("local", "Cast", ["a"], ["b"], body, imports)
    nodes = [
        helper.make_node("Cast", ["k"], ["noise"], domain="local"),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w8", "s", "o"], ["w"]),
        helper.make_node("Add", ["noise", "noise"], ["twice"]),
        helper.make_node("MatMul", ["d", "w"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["y"]),
        helper.make_node("Mul", ["y", "noise"], ["p"]),
        helper.make_node("Sub", ["y", "y"], ["none"]),
        helper.make_node("Mul", ["none", "p"], ["nought"]),
        helper.make_node("Add", ["nought", "noise"], ["again"]),
        helper.make_node("Add", ["again", "noise"], ["both"]),
    ]
    arrays = {"k": np.zeros(4, np.float32), "s": np.float32(0.1), "z": np.uint8(128), "o": np.int8(0)}
    arrays["w8"] = RNG.integers(-5, 6, (8, 4)).astype(np.int8)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("twice", "both")],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(
        graph,
        functions=[cast],
        opset_imports=[*imports, helper.make_opsetid("local", 1)],
        ir_version=8,
    )
    twice, both = Session(model.SerializeToString(), threads=1).run(None, {"x": X[:1]})
    np.testing.assert_allclose(both, np.broadcast_to(twice, both.shape), rtol=1e-6)
