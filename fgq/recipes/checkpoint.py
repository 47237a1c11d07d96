"""Layers that an interrupted conversion has finished, in a folder, so that it can go on from there."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer
from fgq.data import npz
from fgq.errors import ConfigError, DataError, OutputError, WeightError, printable
from fgq.quantization.scheme import WeightScheme
from fgq.quantization.tensor import Plane, QuantizedTensor
from fgq.report import LayerCheck

_KEY = "conversion.txt"
"""The file of the conversion's fingerprint."""

_OWN = re.compile(r"[0-9a-f]{32}\.(npz|new)|conversion\.(txt|new)")
"""Names of the files that are made here."""

_MOST_TEXT = 1 << 20
"""Bytes of the warnings of one layer, at most."""


class Finished(NamedTuple):
    """What became of a layer.

    Parameters
    ----------
    weight : QuantizedTensor
    bias : ndarray of float32, shape (M,), or None
        Its corrected bias; None where it has no place for one, or keeps its own.
    warnings : tuple of str
        What the data were too few for.
    check : LayerCheck or None
        How near its output is to the float network's; None where the recipe ``fgq`` made it.
    """

    weight: QuantizedTensor
    bias: NDArray[np.float32] | None
    warnings: tuple[str, ...]
    check: LayerCheck | None


class Checkpoint:
    """A folder with a file for each finished layer, and the fingerprint of the conversion.

    A layer's file that is damaged, or is another layer's or another conversion's, counts as absent: the layer
    is quantized anew, and the file is written again.

    Parameters
    ----------
    folder : Path
        Made by the first layer that is kept.
    key : str
        The conversion's fingerprint (`fingerprint`).
    resume : bool
        Whether to take up what the folder holds; else that is removed.

    Raises
    ------
    ConfigError
        If the folder holds the layers of another conversion.
    OutputError
        If it holds anything that was not made here, and nothing of it is touched.
    """

    def __init__(self, folder: Path, key: str, *, resume: bool) -> None:
        self.folder = folder
        self._key = folder / _KEY
        self._text = f"{key}\n".encode()
        try:
            own = _is_own(folder)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be read ({error.strerror or error})") from None
        if not own:
            raise OutputError(
                f"{folder}: found a folder of other files where unfinished layers go; move it away"
            )
        if not resume:
            self.remove()
        elif self._found_key() != self._text and any(path.suffix == ".npz" for path in _files(folder)):
            raise ConfigError(
                f"{folder}: found layers of another model, other options or other data, wanted those of this "
                "conversion; convert without --resume to begin anew"
            )

    def read(self, layer: Layer, scheme: WeightScheme) -> Finished | None:
        """Return what became of a layer, or None if it was not finished or its file is damaged."""
        path = self._path(layer)
        try:
            headers = npz.read_headers(path)
            wanted = _wanted(layer, headers)
            if set(wanted) != set(headers) or not all(fits(headers[name]) for name, fits in wanted.items()):
                return None
            arrays = {name: npz.read_array(path, name) for name in headers}
            if arrays.pop("digest").tobytes() != self._digest(layer, arrays):
                return None
            return _finished(layer, scheme, arrays)
        except (OSError, ValueError, OverflowError, DataError, WeightError):
            return None

    def write(self, layer: Layer, finished: Finished) -> None:
        """Keep what became of a layer; a kill meanwhile leaves no half of it.

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        weight, bias, warnings, check = finished
        arrays: dict[str, NDArray[Any]] = {"group": weight.group, "row_scale": weight.row_scale}
        arrays["warnings"] = np.array(warnings, np.str_)
        for index, plane in enumerate(weight.planes):
            arrays |= {f"codes{index}": plane.codes, f"alpha{index}": plane.alpha}
        if bias is not None:
            arrays["bias"] = bias
        if check is not None:
            arrays["check"] = np.array(check, np.float64)
        arrays["digest"] = np.frombuffer(self._digest(layer, arrays), np.uint8)
        path = self._path(layer)
        try:
            if self._found_key() != self._text:
                self.folder.mkdir(exist_ok=True)
                self._key.with_suffix(".new").write_bytes(self._text)
                self._key.with_suffix(".new").replace(self._key)
            npz.write_arrays(path.with_suffix(".new"), arrays)
            path.with_suffix(".new").replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None

    def remove(self) -> None:
        """Remove the files that were made here, and the folder."""
        _remove(self.folder)

    def _found_key(self) -> bytes:
        try:
            with self._key.open("rb") as file:
                return file.read(len(self._text) + 1)
        except OSError:
            return b""

    def _digest(self, layer: Layer, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        """Return what tells a layer's arrays from damaged ones, other layers' and other conversions'."""
        digest = hashlib.sha256(self._text + f"{layer.name}\n".encode())
        for name in sorted(arrays):
            digest.update(f"{name}:{arrays[name].dtype}{arrays[name].shape};".encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
        return digest.digest()

    def _path(self, layer: Layer) -> Path:
        # a layer's name may be longer than a file's, or hold what no file's may
        return self.folder / f"{hashlib.sha256(layer.name.encode()).hexdigest()[:32]}.npz"


def tidied(folder: Path) -> int:
    """Return how many finished layers a folder keeps, and remove what a conversion has left half done.

    Parameters
    ----------
    folder : Path
        Of a checkpoint; it may be missing, and is removed where it keeps no layer. One of other files is not
        touched.
    """
    if not _is_own(folder):
        return 0
    finished = sum(path.suffix == ".npz" for path in _files(folder))
    if not finished:
        _remove(folder)
    for path in _files(folder):
        if path.suffix == ".new":
            path.unlink()
    return finished


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_own(folder: Path) -> bool:
    """Tell whether a folder is missing, or holds nothing but files that are made here."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return False
    return all(_OWN.fullmatch(path.name) and path.is_file() for path in _files(folder))


def _remove(folder: Path) -> None:
    with suppress(OSError):
        for path in _files(folder):
            path.unlink()
        folder.rmdir()


def _wanted(layer: Layer, names: Iterable[str]) -> dict[str, Callable[[npz.Header], bool]]:
    """Return which arrays a layer's file holds, and what tells whether each is one to read."""
    shape, rows = layer.shape, layer.shape[layer.channel_axis]

    def array(dtype: str, *shapes: tuple[int, ...]) -> Callable[[npz.Header], bool]:
        return lambda header: header.dtype == dtype and header.shape in shapes

    def alpha(header: npz.Header) -> bool:
        fits = len(header.shape) == len(shape) and all(
            a <= b for a, b in zip(header.shape, shape, strict=True)
        )
        return header.dtype == "u1" and fits

    def warnings(header: npz.Header) -> bool:
        return header.dtype.kind == "U" and len(header.shape) == 1 and _bytes(header) <= _MOST_TEXT

    wanted = {
        "group": array("<i4", (shape[layer.group_axis],)),
        "row_scale": array("<f4", (), (rows,)),
        "warnings": warnings,
        "digest": array("u1", (hashlib.sha256().digest_size,)),
    }
    if "check" in names:
        wanted["check"] = array("<f8", (len(LayerCheck._fields),))
    if "bias" in names:
        wanted["bias"] = array("<f4", (rows,))
    for index in range(2 if "codes1" in names else 1):
        wanted |= {f"codes{index}": array("i1", shape), f"alpha{index}": alpha}
    return wanted


def _bytes(header: npz.Header) -> int:
    return math.prod(header.shape) * header.dtype.itemsize


def _finished(layer: Layer, scheme: WeightScheme, arrays: Mapping[str, NDArray[Any]]) -> Finished | None:
    bias = arrays.get("bias")
    if bias is not None and not np.isfinite(bias).all():
        return None
    weight = QuantizedTensor(
        planes=tuple(
            Plane(codes=arrays[f"codes{index}"], alpha=arrays[f"alpha{index}"])
            for index in range(2 if "codes1" in arrays else 1)
        ),
        group=arrays["group"],
        group_axis=layer.group_axis,
        channel_axis=layer.channel_axis,
        row_scale=arrays["row_scale"],
        scheme=scheme,
    )
    weight.validate()
    check = LayerCheck.from_array(arrays["check"]) if "check" in arrays else None
    return Finished(weight, bias, tuple(printable(str(warning)) for warning in arrays["warnings"]), check)


def fingerprint(model: ir.Model, options: object, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> str:
    """Return what tells a conversion from every other: a hash of the model, the options and the data.

    Parameters
    ----------
    model : onnx_ir.Model
    options : object
        Whose ``repr`` says all that matters.
    feeds : iterable of mapping of str to ndarray
    """
    digest = hashlib.sha256(repr(options).encode())
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if (tensor := value.const_value) is not None:
                digest.update(f"{name}:{tensor.dtype}{tensor.shape};".encode())
                digest.update(tensor.tobytes())
    for node in model.graph:
        digest.update(ir.serde.serialize_node(node).SerializeToString(deterministic=True))
    for function in model.functions.values():
        digest.update(ir.serde.serialize_function(function).SerializeToString(deterministic=True))
    digest.update(repr(sorted(model.opset_imports.items())).encode())
    for feed in feeds:
        for name, array in feed.items():
            digest.update(f"{name}:{array.dtype}{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
