"""Graphs that break ONNX's rules are refused; those that onnxruntime runs all the same are read."""

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from fgq import Session
from fgq.errors import ModelError
from fgq.format import legality
from fgq.format.onnx_file import from_proto

X = np.arange(8, dtype=np.float32).reshape(2, 4)
node = helper.make_node


def model(*nodes, opset=17, ir_version=8, initializers=None, functions=(), domains=()):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (initializers or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(domain, 1) for domain in domains]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)


def function(name, *nodes, attributes=()):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], nodes, imports, attributes=attributes)


def calling(*functions, inputs=("x",), outputs=("y",), **attributes):
    call = node("F", inputs, outputs, domain="local", **attributes)
    return model(call, functions=functions, domains=["local"])


def branch(*nodes, output="z"):
    return helper.make_graph(
        nodes, "branch", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    )


def choosing(*nodes, around=(), output="z"):
    body = branch(*nodes, output=output)
    choice = node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    return model(choice, *around, initializers={"flag": True})


def nested(depth):
    body = branch(node("Relu", ["x"], ["z"]))
    for level in range(depth):
        other = branch(node("Relu", ["x"], [f"r{level}"]), output=f"r{level}")
        choice = node("If", ["flag"], [f"z{level}"], then_branch=body, else_branch=other)
        body = branch(choice, output=f"z{level}")
    other = branch(node("Neg", ["x"], ["n"]), output="n")
    return model(
        node("If", ["flag"], ["y"], then_branch=body, else_branch=other), initializers={"flag": True}
    )


def chain(length, calls=1):
    """Functions that each call the next, so many times."""
    functions = []
    for index in range(length):
        names = ["a", *(f"v{call}" for call in range(calls - 1)), "b"]
        pairs = pairwise(names)
        op, domain = ("Relu", "") if index == length - 1 else (f"F{index + 1}", "local")
        body = [node(op, [source], [result], domain=domain) for source, result in pairs]
        functions.append(function("F" if index == 0 else f"F{index}", *body))
    return calling(*functions)


def with_attribute(**fields):
    found = model(node("Softmax", ["x"], ["y"]))
    found.graph.node[0].attribute.append(AttributeProto(**fields))
    return found


def with_bytes(old, new):
    return onnx.ModelProto.FromString(
        model(node("Softmax", ["x"], ["y"], name="layer", axis=1)).SerializeToString().replace(old, new)
    )


def changed(change, *nodes):
    found = model(*(nodes or [node("Relu", ["x"], ["y"])]))
    change(found)
    return found


ILLEGAL = {
    "an attribute of another type": (
        model(node("Concat", ["x", "x"], ["y"], axis="1")),
        "node 'Concat': found what ONNX does not allow .*axis'. Expected: 'INT', actual: 'STRING'",
    ),
    "a number for a list": (model(node("Transpose", ["x"], ["y"], perm=1)), "perm'. Expected: 'INTS'"),
    "a list for a number": (model(node("Softmax", ["x"], ["y"], axis=[1])), "axis'. Expected: 'INT'"),
    "a number for a text": (
        model(node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=3)),
        "mode'. Expected: 'STRING'",
    ),
    "no attribute that must be": (
        model(node("Concat", ["x"], ["y"])),
        "Required attribute 'axis' is missing",
    ),
    "an unknown attribute": (model(node("Relu", ["x"], ["y"], slope=1)), "Unrecognized attribute: slope"),
    "an attribute of no type": (with_attribute(name="axis", i=1), "'type' of 'attr' is required"),
    "an attribute of two types": (with_attribute(name="axis", i=1, s=b"1", type=AttributeProto.INT), "axis"),
    "no operator": (model(onnx.NodeProto(input=["x"], output=["y"])), "found no operator"),
    "an operator that is no longer": (
        model(node("Upsample", ["x", "x"], ["y"])),
        "Upsample is deprecated",
    ),
    "too many inputs": (model(node("Relu", ["x", "x"], ["y"])), "found 2 inputs, wanted at most 1"),
    "an input that must be": (model(node("Relu", [""], ["y"])), "input 0 is marked single"),
    "an input from nowhere": (model(node("Relu", ["q"], ["y"])), "the input 'q', which nothing computes"),
    "an output from nowhere": (model(node("Relu", ["x"], ["q"])), "the output 'y', which nothing computes"),
    "a cycle": (model(node("Relu", ["b"], ["y"]), node("Relu", ["y"], ["b"])), "found a cycle"),
    "a cycle through a branch": (choosing(node("Relu", ["y"], ["z"])), "found a cycle"),
    "one name for two results": (
        model(node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["y"])),
        "'y' is redeclared",
    ),
    "a result named as an input": (
        model(node("Relu", ["x"], ["x"]), node("Relu", ["x"], ["y"])),
        "'x' is redecl",
    ),
    "a result named as a constant": (
        model(node("Relu", ["x"], ["w"]), node("Relu", ["w"], ["y"]), initializers={"w": X}),
        "'w' is redeclared",
    ),
    "a branch that names anew what it reads": (
        choosing(node("Relu", ["x"], ["v"]), node("Relu", ["v"], ["z"]), around=[node("Relu", ["x"], ["v"])]),
        "'v' is redeclared",
    ),
    "a branch that reads nothing": (choosing(node("Relu", ["q"], ["z"])), "the input 'q', which nothing"),
    "two inputs of a name": (changed(lambda m: m.graph.input.append(m.graph.input[0])), "input 'x' twice"),
    "opset 0": (model(node("Relu", ["x"], ["y"]), opset=0), "found opset 0 of ''"),
    "opset 2**40": (model(node("Relu", ["x"], ["y"]), opset=2**40), "found opset 1099511627776"),
    "a function that calls itself": (
        calling(function("F", node("F", ["a"], ["b"], domain="local"))),
        "function 'F', which calls itself",
    ),
    "two functions that call each other": (
        calling(
            function("F", node("G", ["a"], ["b"], domain="local")),
            function("G", node("F", ["a"], ["b"], domain="local")),
        ),
        "which calls itself",
    ),
    "an empty function": (calling(function("F")), "function 'F': found no nodes, wanted a body"),
    "a function that reads nothing": (calling(function("F", node("Relu", ["q"], ["b"]))), "the input 'q'"),
    "a function in a cycle": (calling(function("F", node("Relu", ["b"], ["b"]))), "found a cycle|redeclared"),
    "a call with too much": (
        calling(function("F", node("Relu", ["a"], ["b"])), inputs=["x", "x"]),
        "found 2 inputs, wanted at most 1, as function 'F' has",
    ),
    "a call for too much": (
        calling(function("F", node("Relu", ["a"], ["b"])), outputs=["y", "z"]),
        "found 2 outputs, wanted at most 1",
    ),
    "a body of wrong nodes": (calling(function("F", node("Concat", ["a"], ["b"]))), "'axis' is missing"),
    "functions in a long row": (chain(legality.MOST_CALLS + 2), "call each other 101 deep"),
    "functions that multiply": (chain(40, calls=2), r"functions that make \d+ nodes, wanted at most"),
    "a name of other bytes": (with_bytes(b"layer", b"lay\xff\xff"), "wanted UTF-8 text"),
    "an operator of other bytes": (with_bytes(b"Softmax", b"Soft\xff\xff\xff"), "wanted UTF-8 text"),
    "an attribute of other bytes": (with_bytes(b"axis", b"ax\xff\xff"), "wanted UTF-8 text"),
    "a size of other bytes": (with_bytes(b"\x12\x01N", b"\x12\x01\xff"), "wanted UTF-8 text"),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal_graphs(case):
    found, reason = ILLEGAL[case]
    with pytest.raises(ModelError, match=reason) as caught:
        from_proto(found)
    assert str(caught.value).startswith("model: ")
    assert len(str(caught.value).splitlines()) == 1


def no_names(found):
    found.graph.ClearField("name")
    del found.graph.output[0].type.tensor_type.shape.dim[:]
    found.graph.output[0].ClearField("type")


def odd_value_info(found):
    found.graph.value_info.append(helper.make_tensor_value_info("nobody", TensorProto.INT8, [2**40]))
    found.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [7, 4]))
    for value in ("1", "2"):
        found.metadata_props.add(key="key", value=value)


ODD = {
    "nodes out of order": model(node("Relu", ["a"], ["y"]), node("Neg", ["x"], ["a"])),
    "a branch that reads what comes later": choosing(
        node("Relu", ["v"], ["z"]), around=[node("Neg", ["x"], ["v"])]
    ),
    "a graph without a name, an output without a type": changed(no_names),
    "value_info of other values and types": changed(
        odd_value_info, node("Neg", ["x"], ["a"]), node("Relu", ["a"], ["y"])
    ),
    "the long name of the domain": model(node("Relu", ["x"], ["y"], domain="ai.onnx")),
    "an operator of onnxruntime in the domain of ONNX": model(
        node("SimplifiedLayerNormalization", ["x", "s"], ["y"]), initializers={"s": np.ones(4, np.float32)}
    ),
    "an operator of a domain that is not imported": model(node("Gelu", ["x"], ["y"], domain="com.microsoft")),
    "an old file": model(node("Relu", ["x"], ["y"]), opset=9, ir_version=3),
    "a call with an attribute that nothing reads": calling(
        function("F", node("Relu", ["a"], ["b"])), extra=3
    ),
    "functions in a row": chain(30),
    "graphs in a few graphs": nested(10),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_graphs_that_onnxruntime_runs(case):
    found = from_proto(ODD[case])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    theirs = onnxruntime.InferenceSession(ODD[case].SerializeToString(), options)
    result = theirs.run(None, {"x": X})[0]
    assert result.shape == X.shape
    assert [value.name for value in found.graph.outputs] == ["y"]


def test_the_order_of_nodes_is_mended():
    graph = from_proto(ODD["nodes out of order"]).graph
    assert [each.op_type for each in graph] == ["Neg", "Relu"]


@pytest.mark.parametrize("depth", [legality.DEEPEST + 1, 2000])
def test_graphs_of_any_depth_end_in_an_error(depth):
    """Deeper than a file can hold, and than Python's own stack, as only a model in memory can be."""
    deep = model(node("Relu", ["x"], ["y"]), initializers={"flag": True})
    graph = deep.graph
    for level in range(depth):
        choice = graph.node.add(op_type="If", input=["flag"], output=[f"v{level}"])
        for name in ("else_branch", "then_branch"):
            graph = choice.attribute.add(name=name, type=AttributeProto.GRAPH).g
            graph.name = name
    with pytest.raises(ModelError, match="more than 32 graphs within each other"):
        from_proto(deep)


MAPS = helper.make_sequence_type_proto(
    helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
)


def mapped():
    made = model(
        node("Relu", ["x"], ["y"]),
        node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]),
        domains=["ai.onnx.ml"],
    )
    return made


def test_maps_of_a_model_are_refused():
    made = mapped()
    made.graph.output.append(onnx.ValueInfoProto(name="z", type=MAPS))
    with pytest.raises(ModelError, match=r"^model: 'z': found a map, as ZipMap makes, wanted the tensor"):
        from_proto(made)


@pytest.mark.parametrize("said", [True, False])
def test_maps_that_nobody_reads_are_no_hindrance(said):
    made = mapped()
    if said:
        made.graph.value_info.append(onnx.ValueInfoProto(name="z", type=MAPS))
    (y,) = Session(made.SerializeToString()).run(None, {"x": X - 3})
    np.testing.assert_array_equal(y, np.maximum(X - 3, 0))
