"""Which onnxruntime runs a file: the oldest one for a converted model, and opsets the installed one knows."""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir
import onnxruntime

from fgq.errors import ModelError
from fgq.graph import ort

_OLDEST = {21: "1.18", 22: "1.21", 23: "1.24", 24: "1.24", 25: "1.24", 26: "1.25"}
"""The oldest onnxruntime that ran a converted model of each opset, in all three forms.

Measured with the last release of each minor version from 1.17 to 1.31, on a residual network with Conv,
MatMul and Gemm, each opset with the IR version that onnx states for it.
"""

_OLDEST_TRIED = "1.17"
"""Ran every opset from 13 to 20; older ones were not tried."""

ADVISED = "1.26"
"""Older ones are at times wrong on processors with AMX (docs/architecture.md, Traps)."""


def minimum_onnxruntime(model: ir.Model) -> str:
    """Return the oldest onnxruntime that is known to run a converted model, in whichever form.

    Parameters
    ----------
    model : onnx_ir.Model
        Of opset 13 or later.
    """
    opset = model.opset_imports[""]
    return _OLDEST.get(opset, _OLDEST_TRIED if opset <= 20 else onnxruntime.__version__)


@functools.cache
def runs_opset(opset: int) -> bool:
    """Return whether the installed onnxruntime loads models of an opset.

    Parameters
    ----------
    opset : int
    """
    helper = onnx.helper
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    try:
        ort.open_session(model.SerializeToString(), "probe")
    except ModelError:
        return False
    return True
