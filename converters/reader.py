"""From an ONNX model of any supported opset to one that the passes can work on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from fgq.converters.compatibility import runs_opset
from fgq.errors import ModelError, first_line
from fgq.format import onnx_file
from fgq.format.container import FORM_KEY, LEAST_IR_VERSION
from fgq.format.functions import FUNCTION_DOMAIN, LEAST_OPSET

OPSETS = range(9, 29)
"""Opsets that are read; onnx's version converter changes those that are too old or too new to run."""

Source = str | os.PathLike[str] | onnx.ModelProto | ir.Model


def read_float_model(source: Source) -> ir.Model:
    """Read a float model and bring it to an opset from 13 on that the installed onnxruntime runs.

    Parameters
    ----------
    source : path-like, onnx.ModelProto or onnx_ir.Model
        A model file, or a model in memory, which is not changed.

    Returns
    -------
    onnx_ir.Model
        Of opset 13 or later and IR version 8 or later.

    Raises
    ------
    ModelError
        If the model cannot be read, its opset is not supported, or it has been converted already.
    """
    if isinstance(source, ir.Model):
        model, name = source.clone(), "model"
    elif isinstance(source, onnx.ModelProto):
        model, name = onnx_file.from_proto(source), "model"
    else:
        model, name = onnx_file.load(Path(source)), str(source)
    opset = model.opset_imports.get("")
    if opset is None or opset not in OPSETS:
        raise ModelError(f"{name}: found opset {opset}, wanted {OPSETS.start} to {OPSETS.stop - 1}")
    if FUNCTION_DOMAIN in model.opset_imports or FORM_KEY in model.metadata_props:
        raise ModelError(f"{name}: found a model that fgq has converted, wanted a float model")
    _sort(model, name)
    wanted = max(opset, LEAST_OPSET)
    while wanted > LEAST_OPSET and not runs_opset(wanted):
        wanted -= 1
    others = [function for function in model.functions.values() if not _speaks(function, opset)]
    if others or (model.functions and wanted != opset):
        model = _change(model, _inlined, f"onnx cannot bring its functions to opset {opset}", name)
    if wanted != opset:
        failed = f"onnx's version converter cannot bring it to opset {wanted}"
        model = _change(
            model, lambda proto: onnx.version_converter.convert_version(proto, wanted), failed, name
        )
        model.ir_version = min(model.ir_version or 0, _released(wanted))
    model.ir_version = max(model.ir_version or 0, LEAST_IR_VERSION)
    return model


def _sort(model: ir.Model, name: str) -> None:
    """Put each node behind what it reads, as onnxruntime does."""
    try:
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            graph.sort()
    except ValueError:
        raise ModelError(
            f"{name}: found nodes that wait for each other, wanted a graph without cycles"
        ) from None


def _change(
    model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto], failed: str, name: str
) -> ir.Model:
    """Have onnx change a model, whose external data are read."""
    ir.external_data.load_to_model(model)
    try:
        return ir.from_proto(change(ir.to_proto(model)))
    except Exception as error:
        raise ModelError(f"{name}: {failed} ({first_line(error)})") from error


def _speaks(function: ir.Function, opset: int) -> bool:
    """Tell whether a function means the same at the model's opset, which it then takes."""
    own = function.opset_imports.get("", opset)
    if own != opset:
        used = {node.op_type for node in function.all_nodes() if node.domain == ""}
        if any(_version(name, own) != _version(name, opset) for name in used):
            return False
        function.opset_imports[""] = opset
    return True


def _version(op_type: str, opset: int) -> int | None:
    """Return the opset since which an operator is as it is at another; None where there is none."""
    try:
        return onnx.defs.get_schema(op_type, opset).since_version
    except onnx.defs.SchemaError:
        return None


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    inferred = onnx.shape_inference.infer_shapes(proto)  # the converter wants the types of what it changes
    return onnx.inliner.inline_local_functions(inferred, convert_version=True)


def _released(opset: int) -> int:
    """Return the IR version that an opset came with."""
    return {row[2]: row[1] for row in reversed(onnx.helper.VERSION_TABLE)}[opset]
