"""Every onnxruntime session of fgq is opened here, so that all have one set of options.

Exact
    Processors with AVX2 or AVX-512 but no VNNI add pairs of 8-bit products in saturating int16. With
    ``session.x64quantprecision`` onnxruntime multiplies unsigned weights there, which do not saturate; on
    other processors the option changes nothing. It wants weights whose zero points are written, and layers of
    which no two share a weight or its zero point, so these are given copies. A model without zero points, or
    with shared weights in a file beside it, is opened as onnxruntime opens it.
Float where the file says float
    ``session.qdq_matmulnbits_accuracy_level`` of 1 keeps the activations of a MatMul with dequantized weights
    in float, where onnxruntime would quantize them to 8 bits.
Alive
    Without the layout of blocked channels where a pooling may have no row of results, of which onnxruntime
    dies (`fgq.graph.blocked_poolings`).
Quiet
    No log on the terminal, no telemetry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from itertools import chain

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# Held from the start: programs put fgq's adapter in place of this class.
from onnxruntime import InferenceSession

from fgq.errors import ModelError, first_line
from fgq.graph.blocked_poolings import may_lack_rows

# fgq switches telemetry off before it loads onnxruntime; this is for programs that have loaded it first.
onnxruntime.disable_telemetry_events()

_PROVIDERS = ["CPUExecutionProvider"]

_EXACT_SUMS = "session.x64quantprecision"
_FLOAT_ACTIVATIONS = "session.qdq_matmulnbits_accuracy_level"

_NO_INTEGER_OPERATORS = "session.disable_quant_qdq"

_SHARED = "Attempt to replace the existing tensor"
"""What onnxruntime says where two layers share a weight, or its zero point, that is to be made unsigned."""


_MERGING = ("CommonSubexpressionElimination", "ConstantSharing")
"""What makes one weight of equal ones."""

_LOST = "Failed to find node output"
"""What onnxruntime says where it has fused a convolution into another one, though its result is an output."""

_FUSING_SUMS = "ConvAddActivationFusion"
"""What does so."""

_BLOCKING = "NchwcTransformer"
"""What puts images into blocks of channels."""


def session_options(
    *,
    threads: int | None = None,
    stock: bool = False,
    exact_sums: bool = True,
    optimized: bool = True,
    fused: bool = True,
) -> onnxruntime.SessionOptions:
    """Return the options of a session.

    Parameters
    ----------
    threads : int, optional
        Threads within one operator, which then do not spin between them; onnxruntime's own choice if not
        given.
    stock : bool
        Whether to leave the arithmetic as it is by default, saturation included.
    exact_sums : bool
        Whether sums may not saturate, if not.
    optimized : bool
        Whether onnxruntime may change the graph before it runs it.
    fused : bool
        Whether it may put an integer operator in the place of an operator and the quantizers around it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not fused:
        options.add_session_config_entry(_NO_INTEGER_OPERATORS, "1")
    if not stock:
        options.add_session_config_entry(_FLOAT_ACTIVATIONS, "1")
        if exact_sums:
            options.add_session_config_entry(_EXACT_SUMS, "1")
    return options


def open_session(
    model: str | os.PathLike[str] | bytes,
    name: str,
    *,
    threads: int | None = None,
    stock: bool = False,
    optimized: bool = True,
    fused: bool = True,
) -> InferenceSession:
    """Load a model into onnxruntime, on the CPU.

    Parameters
    ----------
    model : path-like or bytes
        A model file, or its contents.
    name : str
        What an error calls the model.
    threads, stock, optimized, fused
        As for `session_options`.

    Raises
    ------
    ModelError
        If onnxruntime refuses the model.
    """
    source = model if isinstance(model, bytes) else os.fspath(model)
    unsafe: list[str] = []

    def load(model: str | bytes, without: Sequence[str] = (), *, exact_sums: bool = True) -> InferenceSession:
        options = session_options(
            threads=threads, stock=stock, exact_sums=exact_sums, optimized=optimized, fused=fused
        )
        try:
            # its own way back from an error prints, and tries the same again
            return InferenceSession(
                model,
                options,
                providers=_PROVIDERS,
                enable_fallback=0,
                disabled_optimizers=[*without, *unsafe] or None,
            )
        except Exception as error:
            if _LOST not in str(error) or _FUSING_SUMS in unsafe:
                raise
        unsafe.append(_FUSING_SUMS)
        return load(model, without, exact_sums=exact_sums)

    try:
        proto = _read(source)
        if may_lack_rows(proto):
            unsafe.append(_BLOCKING)
        plain = stock or not saturates() or _lacks_zero_points(proto)
        del proto  # before onnxruntime holds the same again
        if plain:
            return load(source, exact_sums=False)
        for unshared, without in ((False, ()), (False, _MERGING), (True, _MERGING)):
            try:
                return load(_with_own_weights(source) if unshared else source, without)
            except Exception as error:
                if _SHARED not in str(error):
                    raise
        return load(source, exact_sums=False)
    except Exception as error:  # onnxruntime's exceptions share no other base
        reason = re.sub("Load model from .* failed: ?", "", first_line(error))  # at times a temporary file
        raise ModelError(f"{name}: onnxruntime refuses it ({reason})") from None


@cache
def saturates() -> bool:
    """Tell whether onnxruntime adds 8-bit products in saturating int16 on this processor."""
    weight = numpy_helper.from_array(np.full((2, 1), 127, np.int8), "w")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = session_options(threads=1, stock=True)
    session = InferenceSession(model.SerializeToString(), options, providers=_PROVIDERS)
    (found,) = session.run(None, {"x": np.full((1, 2), 255, np.uint8)})
    return int(found.item()) != 2 * 255 * 127


def _read(source: str | bytes) -> onnx.ModelProto:
    if isinstance(source, bytes):
        model: onnx.ModelProto = onnx.ModelProto.FromString(source)
        return model
    return onnx.load(source, load_external_data=False)


def _with_own_weights(source: str | bytes) -> str | bytes:
    """Return a model whose layers have int8 weights and zero points of their own, if its file holds them."""
    model = _read(source)
    graph = model.graph
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        return source
    shared = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    weights = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in shared
    }
    taken, nodes = set[str](), list[onnx.NodeProto]()
    prefix = "own"
    while any(name.startswith(prefix) for node in graph.node for name in (*node.input, *node.output)):
        prefix += "_"

    def own(node: onnx.NodeProto) -> None:
        for index, name in enumerate(node.input):
            if name not in shared and name not in weights:
                continue
            if name in taken:
                node.input[index] = copy = f"{prefix}{len(taken)}"
                taken.add(copy)
                if name in shared:
                    graph.initializer.add().CopyFrom(shared[name])
                    graph.initializer[-1].name = copy
                    shared[copy] = graph.initializer[-1]
                else:
                    again = onnx.NodeProto()
                    again.CopyFrom(weights[name])
                    again.output[0] = copy
                    own(again)
            taken.add(name)
        nodes.append(node)

    for node in list(graph.node):
        own(node)
    del graph.node[:]
    graph.node.extend(nodes)
    changed: bytes = model.SerializeToString()
    return changed


def _lacks_zero_points(model: onnx.ModelProto) -> bool:
    """Tell whether a model dequantizes int8 without a zero point, which the option gets wrong."""
    return any(map(_dequantizes_without, (model.graph, *model.functions)))


def _dequantizes_without(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    constants = graph.initializer if isinstance(graph, onnx.GraphProto) else ()
    types = {tensor.name: tensor.data_type for tensor in constants}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and not (len(node.input) > 2 and node.input[2]):
            if types.get(node.input[0], TensorProto.INT8) == TensorProto.INT8:
                return True
        subgraphs = chain.from_iterable((attribute.g, *attribute.graphs) for attribute in node.attribute)
        if any(map(_dequantizes_without, subgraphs)):
            return True
    return False
