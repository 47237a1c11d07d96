"""Fold the factors of Gemm into its constants: Y = alpha A B + beta C becomes Y = A B' + C'."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fgq.converters.rewriting import Names, add_initializer, redirect, take_name
from fgq.graph.queries import constant


class PlainGemm(ir.passes.InPlacePass):
    """Leave every Gemm of a constant B with alpha = beta = 1 and with a bias of one axis.

    1. B is constant; B' = alpha * B is a new initializer, as other nodes may share B.
    2. A constant C that broadcasts along rows becomes C' = beta * C of shape (N,).
    3. A C whose beta is 0 is dropped, as nothing reads it, infinities and NaN included.
    4. A C that is computed, or differs from row to row, leaves the Gemm as an Add after it, with
       beta * C where beta is not 1.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        modified, names = False, Names(model.graph)
        for node in list(model.graph.all_nodes()):
            if node.op_type == "Gemm" and node.domain == "" and constant(node.inputs[1]) is not None:
                modified |= _fold_alpha(names, node)
                modified |= _fold_bias(names, node)
        return ir.passes.PassResult(model, modified)


def _fold_alpha(names: Names, node: ir.Node) -> bool:
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha == 1.0:
        return False
    weight = constant(node.inputs[1])
    assert weight is not None
    scaled = (weight * np.float32(alpha)).astype(weight.dtype)
    node.replace_input_with(1, add_initializer(names, f"{node.inputs[1].name}_alpha", scaled))  # type: ignore[union-attr]
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
    return True


def _fold_bias(names: Names, node: ir.Node) -> bool:
    beta = node.attributes.get_float("beta", 1.0)
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    weight = constant(node.inputs[1])
    assert weight is not None
    channels = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
    bias = constant(addend)
    if addend is None:
        if beta == 1.0:
            return False
    elif beta == 0.0:
        node.resize_inputs(2)
    elif bias is not None and bias.size in (1, channels) and (bias.ndim < 2 or bias.shape[0] == 1):
        if beta == 1.0 and bias.shape == (channels,):
            return False
        row = np.broadcast_to(bias.reshape(-1), (channels,)) * np.asarray(beta, bias.dtype)
        node.replace_input_with(2, add_initializer(names, f"{addend.name}_row", row.astype(bias.dtype)))
    else:
        _split_addend(names, node, addend, beta)
    node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return True


def _split_addend(names: Names, node: ir.Node, addend: ir.Value, beta: float) -> None:
    home = node.graph
    assert home is not None
    node.resize_inputs(2)
    product = node.outputs[0]
    steps = []
    if beta != 1.0:
        dtype = (addend.dtype or ir.DataType.FLOAT).numpy()
        factor = add_initializer(names, f"{addend.name}_beta", np.asarray(beta, dtype))
        steps.append(ir.node("Mul", [addend, factor], name=f"{node.name}_beta"))
        addend = steps[0].outputs[0]
        addend.name = names.new(f"{product.name}_addend")
    add = ir.node("Add", [product, addend], name=f"{node.name}_add")
    redirect(product, add.outputs[0], keep=[add])
    take_name(names, product, add.outputs[0], "_product")
    home.insert_after(node, [*steps, add])
