"""ONNX files on disk: read with suspicion, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fgq.errors import ModelError, OutputError

_PROTOBUF_LIMIT = 1_900_000_000
"""Models of more bytes keep their tensors in a file beside them; protobuf ends at 2**31 bytes."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX model; its external data are mapped and not loaded.

    Parameters
    ----------
    path : path-like
        A protobuf file. Its external data, if any, must lie inside its own folder.

    Raises
    ------
    ModelError
        If the file is missing, empty, truncated or not an ONNX model, or if its external data are
        missing, too short or outside the model's folder.
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
    """Check a model proto and turn it into an `onnx_ir.Model`.

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
        As `load` does.
    """
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{name}: found no graph, wanted an ONNX model")
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{name}: the graph is malformed ({first_line(error)})") from error
    _check_external_data(model, folder, name)
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    return model


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in a new folder beside `path`; move what was written there into place at the end.

    On any failure, an interrupt included, the new folder is removed and nothing else was touched.

    Parameters
    ----------
    path : path-like
        Where the file shall be. Files written beside the yielded one (external data) follow it.

    Raises
    ------
    OutputError
        If the folder of `path` does not exist or cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: found a folder, wanted the name of a file to write")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: found no folder {str(path.parent)!r}, wanted one that exists")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        yield folder / path.name
        # The model last: whoever sees it finds its external data in place.
        for written in sorted(folder.iterdir(), key=lambda entry: entry.name == path.name):
            written.replace(path.parent / written.name)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write a model, with a file of external data beside it where protobuf could not hold it.

    The same model gives the same bytes.

    Parameters
    ----------
    model : onnx_ir.Model
    path : path-like
    """
    path = Path(path)
    size = sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    if size > _PROTOBUF_LIMIT:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)


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
