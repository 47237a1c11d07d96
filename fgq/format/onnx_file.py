"""ONNX files on disk: read with suspicion, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from fgq.errors import ModelError, OutputError, first_line
from fgq.format.dialect import plain
from fgq.format.external import ExternalTensor, read_in
from fgq.format.geometry import check_geometry, depends_on_calls, has_computed_quantizers
from fgq.format.legality import check_legal
from fgq.support import stopping
from fgq.support.temporary import new_folder, temporary_folder

_PROTOBUF_LIMIT = 1_900_000_000
"""Models of more bytes keep their tensors in a file beside them; protobuf ends at 2**31 bytes."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX model; its external data are read when they are needed.

    Parameters
    ----------
    path : path-like
        A protobuf file. Its external data, if any, must lie inside its own folder.

    Raises
    ------
    ModelError
        If the file is missing, empty, truncated or not an ONNX model, if its external data are missing,
        too short or outside the model's folder, if the data of a tensor do not fit its shape, if the graph
        breaks ONNX's rules (`fgq.format.legality`) or has a cycle, or if sizes in it cannot be
        (`fgq.format.geometry`).
    """
    path = Path(path)
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise ModelError(f"{path}: found {found}, wanted an ONNX model")
        if path.stat().st_size == 0:
            raise ModelError(f"{path}: found an empty file, wanted an ONNX model")
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
    if not proto.opset_import:
        raise ModelError(f"{name}: found no opset, wanted an ONNX model; the file may be truncated")
    check_legal(proto, name)
    proto = plain(proto, name)
    _check_functions(proto, name)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{name}: the graph is malformed ({first_line(root(error))})") from error
    for value, info in zip(model.graph.inputs, proto.graph.input, strict=True):
        if value.is_graph_output():  # of which less may be said
            declared = ir.serde.deserialize_value_info_proto(info, None)
            value.type, value.shape = declared.type, declared.shape
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            graph.sort()
        except ValueError:
            raise ModelError(f"{name}: found a cycle, wanted nodes that can be put in order") from None
        for part in (graph, *graph.subgraphs()):
            _check_tensors(part, folder, name)
    _check_sizes(model, name)
    return model


def files_of(path: str | os.PathLike[str], model: ir.Model) -> set[Path]:
    """Return a model's file and those of its external data.

    Parameters
    ----------
    path : path-like
        The file that `model` was loaded from.
    model : onnx_ir.Model
    """
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return {Path(path), *(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))}


def root(error: BaseException) -> BaseException:
    """Return the error that the others were raised for: those on top of it name only the place."""
    below = error.__cause__ or error.__context__
    return error if below is None else root(below)


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
        If the folder of `path` does not exist or cannot be written to, or if `path` is something that a
        file must not replace.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            if path.is_dir():
                raise OutputError(f"{path}: found a folder, wanted the name of a file to write")
            if path.exists() and not path.is_file():
                raise OutputError(f"{path}: found a device or pipe, wanted the name of a file to write")
            if not path.parent.is_dir():
                raise OutputError(f"{path}: found no folder {str(path.parent)!r}, wanted one that exists")
            folder = stack.enter_context(new_folder(path.parent, beside=path.name))
        except (OSError, ValueError) as error:  # a zero byte in the name, say
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{path}: cannot be written ({reason})") from None
        try:
            yield folder / path.name
            with stopping.held():
                # The model last: whoever sees it finds its external data in place.
                for written in sorted(folder.iterdir(), key=lambda entry: entry.name == path.name):
                    written.replace(path.parent / written.name)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def on_disk(model: ir.Model) -> Iterator[Path]:
    """Yield the path of a temporary file of a model, which onnxruntime can load whatever its size.

    Parameters
    ----------
    model : onnx_ir.Model

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        try:
            save(model, path)
        except OSError as error:
            raise OutputError(
                f"temporary file {path}: cannot be written ({error.strerror or error})"
            ) from None
        yield path


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
        read_in(model)
        ir.save(model, path)


def _check_functions(proto: onnx.ModelProto, name: str) -> None:
    """Check that it is plain which function, and which version of an operator, a node calls."""
    identifiers: set[tuple[str, str, str]] = set()
    _check_imports(proto.opset_import, name)
    for function in proto.functions:
        where = f"{name}: function {function.domain}::{function.name}"
        identifier = (function.domain, function.name, function.overload)
        if identifier in identifiers:
            raise ModelError(f"{where}: found two of this name, wanted one")
        identifiers.add(identifier)
        _check_imports(function.opset_import, where)
        for imports in (proto.opset_import, function.opset_import):
            version = next((each.version for each in imports if each.domain == function.domain), 1)
            domain = "" if function.domain == "ai.onnx" else function.domain
            if onnx.defs.has(function.name, max(1, min(version, 1 << 30)), domain):
                raise ModelError(f"{where}: found the name of an operator of ONNX, wanted another name")


def _check_imports(imports: Iterable[onnx.OperatorSetIdProto], where: str) -> None:
    versions: dict[str, int] = {}
    for each in imports:
        domain = "" if each.domain == "ai.onnx" else each.domain
        if versions.setdefault(domain, each.version) != each.version:
            raise ModelError(
                f"{where}: found the opsets {versions[domain]} and {each.version} of the domain {domain!r}, "
                "wanted one"
            )


def _check_sizes(model: ir.Model, name: str) -> None:
    """Check what nodes say of sizes, with what calls say to functions, and constants to other constants."""
    check_geometry(model, name)
    if not depends_on_calls(model) and not has_computed_quantizers(model):
        return
    whole = model.clone()
    common.InlinePass()(whole)
    for node in whole.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    if has_computed_quantizers(whole):
        common.ShapeInferencePass(strict_mode=False, data_prop=False)(whole)
    check_geometry(whole, name, inferred=True)


def _check_tensors(graph: ir.Graph, folder: Path | None, name: str) -> None:
    """Check the constants of a graph, and tell the external ones where their folder is."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _checked(value.const_value, folder, name)
    for node in graph:
        for attribute in list(node.attributes.values()):
            one = attribute.type == ir.AttributeType.TENSOR
            if attribute.is_ref() or not (one or attribute.type == ir.AttributeType.TENSORS):
                continue
            tensors = [attribute.value] if one else list(attribute.value)
            held = [_checked(tensor, folder, name) for tensor in tensors]
            if any(isinstance(tensor, ExternalTensor) for tensor in held):
                # Few and small. Initializers alone keep their folder when a model is copied or saved.
                held = [
                    tensor.in_memory() if isinstance(tensor, ExternalTensor) else tensor for tensor in held
                ]
                node.attributes[attribute.name] = ir.Attr(
                    attribute.name, attribute.type, held[0] if one else held
                )


def _checked(tensor: ir.TensorProtocol, folder: Path | None, name: str) -> ir.TensorProtocol:
    """Check that a tensor's data fit its shape; return it, or for an external one a tensor that is read."""
    sizes = tensor.shape.numpy()
    if any(size < 0 for size in sizes):
        raise ModelError(f"{name}: tensor {tensor.name!r}: found the shape {list(sizes)}, which is negative")
    if isinstance(tensor, ir.ExternalTensor):
        return ExternalTensor(tensor, folder, f"{name}: external data of {tensor.name!r}")
    try:
        tensor.numpy()
    except Exception as error:
        raise ModelError(
            f"{name}: tensor {tensor.name!r}: found data that do not fit its type and shape "
            f"{list(sizes)} ({first_line(error)})"
        ) from None
    return tensor
