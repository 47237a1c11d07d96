"""Tensors whose bytes lie in a file beside the model, read and never mapped.

Whoever may write that file may truncate or overwrite it at any time. Under a mapping that would end the
process, or change weights under a session's hands: so bytes are read into memory, and a file that is no
longer what it was when the model was loaded is an error.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import ModelError


class ExternalTensor(ir.ExternalTensor):
    """An external tensor that is read where `onnx_ir.ExternalTensor` maps.

    Its array lives as long as somebody holds it; with `hold` it is kept from its first reading on.

    Parameters
    ----------
    tensor : onnx_ir.ExternalTensor
        What the model says of it.
    folder : Path or None
        The model's own folder; None where the model was not read from a file.
    where : str
        What errors call it.

    Raises
    ------
    ModelError
        If its file is missing, too short, or outside the folder, or if it is said to have another length than
        its shape.
    """

    def __init__(self, tensor: ir.ExternalTensor, folder: Path | None, where: str) -> None:
        if folder is None:
            raise ModelError(f"{where}: found no folder to read them from, wanted a model read from its file")
        if tensor.dtype == ir.DataType.STRING:
            raise ModelError(f"{where}: found strings, wanted numbers")
        if tensor.length not in (None, tensor.nbytes):
            raise ModelError(f"{where}: found a length of {tensor.length} bytes, wanted {tensor.nbytes}")
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=str(tensor.name),
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=folder,
        )
        self._where = where
        self._file, self._state = _find(folder, os.fspath(tensor.location), where)
        size, end = self._state[-1], (tensor.offset or 0) + tensor.nbytes
        if size < end:
            raise ModelError(f"{where}: found {size} bytes in {tensor.location!r}, wanted at least {end}")
        self._held: NDArray[Any] | None = None
        self._holds = False
        self._seen: weakref.ref[NDArray[Any]] | None = None

    def hold(self) -> None:
        """Keep the array from now on, once it has been read."""
        self._holds = True

    def numpy(self) -> NDArray[Any]:
        """Return the values, read-only.

        Raises
        ------
        ModelError
            If the file is another one than when the model was loaded.
        """
        array = None if self._seen is None else self._seen()
        if array is None:
            array = self._decoded(self.tobytes())
            self._seen = weakref.ref(array)
        if self._holds:
            self._held = array
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the values."""
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def tobytes(self) -> bytes:
        """Return the bytes as they lie in the file."""
        try:
            with open(self._file, "rb") as file:
                if _state(file) != self._state:
                    raise ModelError(f"{self._where}: found that {self.location!r} has changed meanwhile")
                file.seek(self.offset or 0)
                content = file.read(self.nbytes)
        except OSError as error:
            raise ModelError(f"{self._where}: {self.location!r} cannot be read ({error.strerror})") from error
        if len(content) < self.nbytes:
            raise ModelError(f"{self._where}: found that {self.location!r} has been truncated meanwhile")
        return content

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes to an open file."""
        file.write(self.tobytes())

    def in_memory(self) -> ir.TensorProtocol:
        """Return a tensor of its values that has no file."""
        return ir.Tensor(self.numpy(), dtype=self.dtype, name=self.name)

    def release(self) -> None:
        """Do nothing: there is no mapping to give back."""

    def _decoded(self, content: bytes) -> NDArray[Any]:
        if self.dtype.bitwidth < 8:
            proto = onnx.TensorProto(dims=self.shape.numpy(), data_type=int(self.dtype), raw_data=content)
            return np.asarray(ir.serde.TensorProtoTensor(proto).numpy())
        stored = np.frombuffer(content, np.dtype(self.dtype.numpy()).newbyteorder("<"))
        return stored.reshape(self.shape.numpy())


def hold(model: ir.Model) -> None:
    """Let every external tensor of a model keep what is read of it.

    Parameters
    ----------
    model : onnx_ir.Model
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ExternalTensor):
                value.const_value.hold()


def read_in(model: ir.Model) -> None:
    """Put tensors in memory in the place of a model's external ones.

    Parameters
    ----------
    model : onnx_ir.Model

    Raises
    ------
    ModelError
        If a file is another one than when the model was loaded.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ExternalTensor):
                value.const_value = tensor.in_memory()
            elif isinstance(tensor, ir.ExternalTensor):  # of a model that was not read by fgq
                (value.const_value,) = ir.external_data.convert_tensors_from_external([tensor])


_State = tuple[int, ...]
"""Device, inode, time of the last change in nanoseconds, and size of a file."""


def _find(folder: Path, location: str, where: str) -> tuple[Path, _State]:
    """Return the file that a location names, and what tells whether it changes."""
    try:
        root = folder.resolve()
        # resolve() follows links, so that neither "../" nor a link leads out of the folder.
        target = (root / location).resolve()
        if not target.is_relative_to(root):
            raise ModelError(f"{where}: found the path {location!r}, wanted one inside the model's folder")
        if not target.is_file():
            raise ModelError(f"{where}: found no file {location!r} beside the model")
        return target, _state(target)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a ring of links
        raise ModelError(f"{where}: the path {location!r} cannot be followed ({error})") from None


def _state(file: Path | BinaryIO) -> _State:
    found = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
