"""What onnxruntime computes for one operator between quantizers: the judge of the integer operators."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from fgq.graph.ort import open_session


def run_quantized(op_type, inputs, result, *, constants=(), after=(), opset=17, domain="", **attributes):
    """Return the integers behind ``QuantizeLinear(op(DequantizeLinear(x), ..))`` in a default session.

    Parameters
    ----------
    op_type : str
        The operator.
    inputs : list of (array, scale, zero_point)
        Its quantized inputs, uint8.
    result : (scale, zero_point)
        Of what it makes.
    constants : sequence of array
        Further inputs, as they are.
    after : sequence of (op_type, constants)
        Operators between it and the QuantizeLinear.
    """
    tensors, nodes, names = [], [], []

    def hold(name, array):
        tensors.append(numpy_helper.from_array(array, name))
        return name

    def quantizer(name, scale, zero_point):
        zero_point = np.uint8(zero_point)
        return [hold(f"{name}_scale", np.float32(scale)), hold(f"{name}_zero", zero_point)]

    for i, (_, scale, zero_point) in enumerate(inputs):
        nodes.append(
            helper.make_node("DequantizeLinear", [f"x{i}", *quantizer(f"x{i}", scale, zero_point)], [f"f{i}"])
        )
        names.append(f"f{i}")
    names += [hold(f"c{i}", np.asarray(array)) for i, array in enumerate(constants)]
    nodes.append(helper.make_node(op_type, names, ["r"], domain=domain, **attributes))
    current = "r"
    for i, (other, more) in enumerate(after):
        more = [hold(f"a{i}_{j}", np.asarray(array)) for j, array in enumerate(more)]
        nodes.append(helper.make_node(other, [current, *more], [f"r{i}"]))
        current = f"r{i}"
    nodes.append(helper.make_node("QuantizeLinear", [current, *quantizer("y", *result)], ["y"]))
    graph = helper.make_graph(
        nodes,
        "operator",
        [
            helper.make_tensor_value_info(f"x{i}", TensorProto.UINT8, x.shape)
            for i, (x, _, _) in enumerate(inputs)
        ],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    session = load(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return session.run(None, {f"x{i}": x for i, (x, _, _) in enumerate(inputs)})[0]


def load(model):
    """Load a model into a session on one thread."""
    return open_session(model.SerializeToString(), "model", threads=1)


def run_float(op_type, inputs, constants=(), result=TensorProto.FLOAT, opset=20, **attributes):
    """Return what a standard operator makes of these inputs and constants."""
    given = [helper.np_dtype_to_tensor_dtype(x.dtype) for x in inputs]
    names = [f"x{i}" for i in range(len(inputs))]
    held = [f"c{i}" for i in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(op_type, names + held, ["y"], **attributes)],
        "operator",
        [
            helper.make_tensor_value_info(*info, x.shape)
            for *info, x in zip(names, given, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("y", result, None)],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in zip(held, constants, strict=True)],
    )
    session = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9))
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]
