"""Whole files in, whole files out: run a model on arrays, write a converted model in another form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from fgq.config import ExportForm
from fgq.converters.compatibility import minimum_onnxruntime
from fgq.converters.export import export
from fgq.converters.self_check import onnxruntime_session
from fgq.data import npz
from fgq.data.inputs import input_specs
from fgq.errors import DataError, FgqError, ModelError, OutputError, first_line
from fgq.format import container, onnx_file
from fgq.runtime import Session, StepTime


class Exported(NamedTuple):
    """What was written.

    Parameters
    ----------
    bytes : int
        External data counted.
    minimum_onnxruntime : str
        The oldest version of onnxruntime that runs the file.
    """

    bytes: int
    minimum_onnxruntime: str


class Run(NamedTuple):
    """What a run gave.

    Parameters
    ----------
    shapes : dict of str to list of int
        The shape of each output.
    times : list of fgq.runtime.StepTime
        Of each step, where that was asked for.
    """

    shapes: dict[str, list[int]]
    times: list[StepTime]


def export_file(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], form: ExportForm | str
) -> Exported:
    """Write a converted model in another form, whole or not at all.

    Parameters
    ----------
    source, destination : path-like
    form : ExportForm or str

    Returns
    -------
    Exported

    Raises
    ------
    FgqError
        If the model is not a converted one, or the result cannot be written or loaded by onnxruntime.
    """
    model = container.load(source)
    refuse_model_files(source, model, destination)
    export(model, ExportForm(form))
    with onnx_file.staged(destination) as path:
        onnx_file.save(model, path)
        onnxruntime_session(path, "exported model")
        size = sum(file.stat().st_size for file in path.parent.iterdir())
    return Exported(size, minimum_onnxruntime(model))


def run_file(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    engine: str = "fgq",
    profile: bool = False,
    **options: Any,
) -> Run:
    """Run a model on the arrays of an .npz file and write its outputs to another.

    Parameters
    ----------
    model : path-like
    source : path-like
        An .npz file with an array for each input.
    destination : path-like
        Written with an array for each output.
    engine : str
        ``fgq`` or ``onnxruntime``.
    profile : bool
        For ``fgq``: whether to time every step.
    **options
        For ``fgq``: ``kernels``, ``memory`` and ``threads`` of `fgq.Session`.

    Returns
    -------
    Run

    Raises
    ------
    FgqError
        If the model or the arrays cannot be used, or the outputs cannot be written.
    """
    for read in (model, source):
        refuse_same_file(read, destination)
    feed = _read_feed(Path(source), model)
    session: Any = (
        Session(model, **options) if engine == "fgq" else onnxruntime_session(Path(model), str(model))
    )
    try:
        results = session.run(None, feed)
    except FgqError:
        raise
    except Exception as error:
        raise DataError(f"{source}: the model cannot run on it ({first_line(error)})") from None
    outputs = dict(zip([output.name for output in session.get_outputs()], results, strict=True))
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            raise ModelError(
                f"{model}: output {name!r}: found strings or a sequence, wanted a tensor of numbers"
            )
    with onnx_file.staged(destination) as path:
        npz.write_arrays(path, outputs)
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    return Run(shapes, session.profile(feed) if profile else [])


def refuse_model_files(
    source: str | os.PathLike[str], model: ir.Model, destination: str | os.PathLike[str]
) -> None:
    """Refuse to write over a model or its external data.

    Raises
    ------
    OutputError
        If `destination` is one of the model's files.
    """
    for path in onnx_file.files_of(source, model):
        refuse_same_file(path, destination)


def refuse_same_file(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """Refuse to write over another file of the same command.

    Raises
    ------
    OutputError
        If both are the same file, links followed.
    """
    one, other = Path(source), Path(destination)
    try:
        same = one.samefile(other) if one.exists() and other.exists() else one.resolve() == other.resolve()
    except (OSError, RuntimeError):  # no such place, a ring of links: whoever opens it says so
        return
    if same:
        raise OutputError(f"{destination}: found the same file as {source}, wanted another one to write")


def _read_feed(path: Path, model: str | os.PathLike[str]) -> dict[str, Any]:
    specs = input_specs(onnx_file.load(model))
    found = npz.read_headers(path)
    wanted = [spec.name for spec in specs]
    if set(found) != set(wanted):
        raise DataError(f"{path}: found the keys {sorted(found)}, wanted {wanted} (the model's inputs)")
    feed = {}
    for spec in specs:
        header = found[spec.name]
        fixed = [a == b for a, b in zip(header.shape, spec.shape, strict=False) if isinstance(b, int)]
        if header.dtype != spec.dtype or len(header.shape) != len(spec.shape) or not all(fixed):
            raise DataError(f"{path}: found {spec.name}: {header}, wanted {spec}")
        feed[spec.name] = npz.read_array(path, spec.name, header)
    return feed
