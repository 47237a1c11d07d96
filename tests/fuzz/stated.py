"""What docs/runtime.md states of single files, recognised in them: quantized NaN, misread scales, sums."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from drawing import Feeds, session

from fgq.runtime.misread import is_misread

_SUMS_BY_ADDRESS = (
    "GroupNormalization",
    "InstanceNormalization",
    "MeanVarianceNormalization",
    "ReduceMean",
    "ReduceSum",
)

_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear", "QuantizeTokens")


def quantizes_nan(model: onnx.ModelProto, feeds: Feeds) -> bool:
    """Tell whether a quantizer reads NaN, as onnxruntime runs the model without optimizations."""
    made = {name for node in model.graph.node for name in node.output}
    read = {node.input[0] for node in model.graph.node if node.op_type in _QUANTIZERS and node.input}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(read & made))
    if not exposed.graph.output:
        return False
    try:
        found = session(exposed.SerializeToString(), optimized=False).run(None, feeds)
    except Exception:  # onnxruntime's exceptions share no other base
        return False
    return any(bool(np.isnan(array.astype(np.float32)).any()) for array in found)


def is_misread_somewhere(model: onnx.ModelProto) -> bool:
    """Tell whether onnxruntime's integer operators compute something else than a model says."""
    return any(is_misread(node) for node in ir.from_proto(model).graph.all_nodes())


def adds_by_address(model: onnx.ModelProto) -> bool:
    """Tell whether onnxruntime adds up in an order that depends on where an array begins."""
    found = ir.from_proto(model)
    graphs = (found.graph, *(function.graph for function in found.functions.values()))
    return any(node.op_type in _SUMS_BY_ADDRESS for graph in graphs for node in graph.all_nodes())
