"""From an ONNX file, which is untrusted, to an `onnx_ir.Model` that the passes can work on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fgq.container import LEAST_IR_VERSION, LEAST_OPSET
from fgq.errors import ModelError

OPSETS = range(9, 29)
"""Opsets that are read; those below 13 go through onnx's version converter first."""


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX model and bring it to opset 13 where it is older.

    Parameters
    ----------
    path : path-like
        A protobuf file. Its external data, if any, must lie inside its own folder; they are mapped and
        not loaded.

    Returns
    -------
    onnx_ir.Model

    Raises
    ------
    ModelError
        If the file is missing, empty, truncated or not an ONNX model, if its external data are missing,
        too short or outside the model's folder, or if its opset is not supported.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: found {found}, wanted an ONNX model")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: found an empty file, wanted an ONNX model")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise ModelError(
            f"{path}: found a truncated file or one that is not ONNX, wanted an ONNX model"
        ) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    return from_proto(proto, path.parent, str(path))


def from_proto(proto: onnx.ModelProto, folder: Path | None = None, name: str = "model") -> ir.Model:
    """Check a model proto and turn it into an `onnx_ir.Model` of opset 13 or later.

    Parameters
    ----------
    proto : onnx.ModelProto
    folder : Path, optional
        Where the model's external data lie; without it a model with external data is refused.
    name : str
        What errors call the model.

    Raises
    ------
    ModelError
        As `read_model` does.
    """
    if not proto.graph.node:
        raise ModelError(f"{name}: found no graph, wanted an ONNX model with at least one node")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None or opset not in OPSETS:
        raise ModelError(f"{name}: found opset {opset}, wanted {OPSETS.start} to {OPSETS.stop - 1}")
    model = _deserialize(proto, name)
    _check_external_data(model, folder, name)
    if opset < LEAST_OPSET:
        model = _deserialize(_raise_opset(proto, folder, name), name)
    elif folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    model.ir_version = max(model.ir_version or 0, LEAST_IR_VERSION)
    return model


def _deserialize(proto: onnx.ModelProto, name: str) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{name}: the graph is malformed ({_first_line(error)})") from error


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if isinstance(attribute.value, ir.ExternalTensor):
                    yield attribute.value


def _check_external_data(model: ir.Model, folder: Path | None, name: str) -> None:
    for tensor in _external_tensors(model):
        where = f"{name}: external data of {tensor.name!r}"
        location = os.fspath(tensor.location)
        if folder is None:
            raise ModelError(f"{where}: found no folder to read them from, wanted a model read from its file")
        root = folder.resolve()
        # resolve() follows links, so that neither "../" nor a link leads out of the folder.
        target = (root / location).resolve()
        if not target.is_relative_to(root):
            raise ModelError(f"{where}: found the path {location!r}, wanted one inside the model's folder")
        if not target.is_file():
            raise ModelError(f"{where}: found no file {location!r} beside the model")
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if target.stat().st_size < end:
            raise ModelError(
                f"{where}: found {target.stat().st_size} bytes in {location!r}, wanted at least {end}"
            )


def _raise_opset(proto: onnx.ModelProto, folder: Path | None, name: str) -> onnx.ModelProto:
    if folder is not None:
        onnx.load_external_data_for_model(proto, str(folder))
    try:
        return onnx.version_converter.convert_version(proto, LEAST_OPSET)
    except Exception as error:
        raise ModelError(
            f"{name}: onnx's version converter cannot bring it to opset {LEAST_OPSET} ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
