"""Layers that an interrupted conversion has finished, in a folder, so that it can go on from there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq import npz
from fgq.converters.layers import Layer
from fgq.errors import ConfigError, DataError, OutputError, WeightError
from fgq.qtensor import Plane, QuantizedTensor
from fgq.report import LayerCheck
from fgq.scheme import WeightScheme

_KEY = "conversion.txt"
"""The file of the conversion's fingerprint."""


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
        If it is one that was not made here.
    """

    def __init__(self, folder: Path, key: str, *, resume: bool) -> None:
        self.folder = folder
        self._key = folder / _KEY
        self._text = f"{key}\n"
        if folder.exists() and not self._key.exists() and not _is_begun(folder):
            raise OutputError(
                f"{folder}: found a folder of other files where unfinished layers go; move it away"
            )
        if not resume:
            self.remove()
        elif self._key.exists() and self._key.read_text(encoding="utf-8") != self._text:
            raise ConfigError(
                f"{folder}: found layers of another model, other options or other data, wanted those of this "
                "conversion; convert without --resume to begin anew"
            )

    def read(self, layer: Layer, scheme: WeightScheme) -> Finished | None:
        """Return what became of a layer, or None if it was not finished.

        Raises
        ------
        DataError
            If its file is damaged.
        """
        path = self._path(layer)
        if not (self._key.exists() and path.exists()):
            return None
        arrays = {name: npz.read_array(path, name) for name in npz.read_headers(path)}
        try:
            planes = tuple(
                Plane(codes=arrays[f"codes{index}"], alpha=arrays[f"alpha{index}"])
                for index in range(sum(name.startswith("codes") for name in arrays))
            )
            weight = QuantizedTensor(
                planes=planes,
                group=arrays["group"],
                group_axis=layer.group_axis,
                channel_axis=layer.channel_axis,
                row_scale=arrays["row_scale"],
                scheme=scheme,
            )
            warnings = tuple(map(str, arrays["warnings"]))
            check = LayerCheck.from_array(arrays["check"]) if "check" in arrays else None
            weight.validate()
            if weight.shape != layer.shape:
                raise WeightError(f"found the shape {list(weight.shape)}, wanted {list(layer.shape)}")
        except (KeyError, TypeError, ValueError, WeightError) as error:
            raise DataError(
                f"{path}: found no weight of {layer.name} ({error}); convert without --resume to begin anew"
            ) from None
        return Finished(weight, arrays.get("bias"), warnings, check)

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
        path = self._path(layer)
        try:
            if not self._key.exists():
                self.folder.mkdir(exist_ok=True)
                written = self._key.with_suffix(".new")
                written.write_text(self._text, encoding="utf-8")
                written.replace(self._key)
            npz.write_arrays(path.with_suffix(".new"), arrays)
            path.with_suffix(".new").replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, layer: Layer) -> Path:
        # a layer's name may be longer than a file's, or hold what no file's may
        return self.folder / f"{hashlib.sha256(layer.name.encode()).hexdigest()[:32]}.npz"


def tidied(folder: Path) -> int:
    """Return how many finished layers a folder keeps, and remove what a conversion has left half done.

    Parameters
    ----------
    folder : Path
        Of a checkpoint; it may be missing, and is removed where it keeps no layer.
    """
    if not ((folder / _KEY).exists() or _is_begun(folder)):
        return 0
    for half in folder.glob("*.new"):
        half.unlink()
    finished = len(list(folder.glob("*.npz")))
    if not finished:
        shutil.rmtree(folder, ignore_errors=True)
    return finished


def _is_begun(folder: Path) -> bool:
    """Tell whether a folder holds nothing but files that were being written."""
    return folder.is_dir() and all(entry.suffix == ".new" for entry in folder.iterdir())


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
    for feed in feeds:
        for name, array in feed.items():
            digest.update(f"{name}:{array.dtype}{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
