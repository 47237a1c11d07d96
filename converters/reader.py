"""From an ONNX model of any supported opset to one that the passes can work on."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir

from fgq import onnx_file
from fgq.container import FORM_KEY, LEAST_IR_VERSION
from fgq.converters.compatibility import runs_opset
from fgq.errors import ModelError
from fgq.functions import FUNCTION_DOMAIN, LEAST_OPSET

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
    wanted = max(opset, LEAST_OPSET)
    while wanted > LEAST_OPSET and not runs_opset(wanted):
        wanted -= 1
    if wanted != opset:
        model = _change_opset(model, wanted, name)
    model.ir_version = max(model.ir_version or 0, LEAST_IR_VERSION)
    return model


def _change_opset(model: ir.Model, opset: int, name: str) -> ir.Model:
    ir.external_data.load_to_model(model)
    try:
        changed = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), opset))
    except Exception as error:
        raise ModelError(
            f"{name}: onnx's version converter cannot bring it to opset {opset} "
            f"({onnx_file.first_line(error)})"
        ) from error
    released = {row[2]: row[1] for row in reversed(onnx.helper.VERSION_TABLE)}
    changed.ir_version = min(changed.ir_version or 0, released[opset])
    return changed
