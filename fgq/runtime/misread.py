"""Where onnxruntime's integer operators compute something else than the nodes that they stand for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fgq.graph.queries import constant, is_operator
from fgq.runtime.quantizers import dequantized_by, overflows


def is_misread(node: ir.Node) -> bool:
    """Tell whether onnxruntime's integer operator in the place of a node and its quantizers is another one.

    QGemm takes the integers of a bias as if their unit were that of the sums, whatever its scale and zero
    point are; and products of scales may exceed float32 where no value of the model does.

    Parameters
    ----------
    node : onnx_ir.Node
        An operator, with or without quantizers around it.
    """
    return overflows(node) or _bias_has_another_unit(node)


def _bias_has_another_unit(node: ir.Node) -> bool:
    if not is_operator(node, "Gemm") or len(node.inputs) < 3:
        return False
    x, weight, bias = (dequantized_by(value) for value in node.inputs)
    if x is None or weight is None or bias is None:
        return False
    made = node.inputs[2].producer()  # type: ignore[union-attr]
    zero = constant(made.inputs[2]) if made is not None and len(made.inputs) > 2 else None
    try:
        same = np.allclose(bias, x * weight, rtol=1e-5, atol=0)
    except ValueError:  # sizes that do not match, which onnxruntime refuses
        return False
    return not same or (zero is not None and bool(zero.any()))
