"""Run a converted file in onnxruntime and in fgq, and measure the difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from fgq.errors import ModelError, first_line
from fgq.format import onnx_file
from fgq.graph import ort
from fgq.quantization.weights import signal_to_noise_db
from fgq.report import OutputCheck, SelfCheck
from fgq.runtime import Session

Feed = Mapping[str, NDArray[Any]]


def onnxruntime_session(
    model: str | Path | bytes | ir.Model, name: str, *, optimized: bool = True
) -> onnxruntime.InferenceSession:
    """Return an onnxruntime session on the CPU that prints nothing.

    Parameters
    ----------
    model : path-like, bytes or onnx_ir.Model
    name : str
        What an error calls the model.
    optimized : bool
        Whether onnxruntime may change the graph before it runs it.

    Raises
    ------
    ModelError
        If onnxruntime refuses the model.
    """
    if isinstance(model, ir.Model):
        with onnx_file.on_disk(model) as path:
            return onnxruntime_session(path, name, optimized=optimized)
    return ort.open_session(model, name, optimized=optimized)


def self_check(path: Path, feed: Feed, exact: Mapping[str, Any], *, data: str) -> SelfCheck:
    """Run a converted file twice in onnxruntime and once in fgq.

    Parameters
    ----------
    path : Path
        The converted model.
    feed : mapping of str to ndarray
        A few samples.
    exact : mapping of str to ndarray
        What the model that came in gives for them, by the names of its outputs.
    data : str
        What the samples are, for the report.

    Raises
    ------
    ModelError
        If onnxruntime or fgq cannot run the file.
    """
    session = ort.open_session(path, "converted model", stock=True)
    try:
        first, second = (session.run(None, dict(feed)) for _ in range(2))
    except Exception as error:
        raise ModelError(f"converted model: onnxruntime cannot run it ({first_line(error)})") from None
    names = [output.name for output in session.get_outputs()]
    precise = _run_exactly(path, feed, first)
    every = (precise, first, second, Session(path).run(None, feed), [exact.get(name) for name in names])
    theirs, default, again, ours, wanted = (_tensors(names, values) for values in every)
    numbers = {name: array for name, array in theirs.items() if array.dtype.kind in "fiub"}
    apart = [_difference(array, default.get(name)) for name, array in numbers.items()]
    return SelfCheck(
        samples=next((array.shape[0] for array in feed.values() if array.ndim), 1),
        data=data,
        repeatable=default.keys() == again.keys()
        and all(np.array_equal(a, again[name], equal_nan=_is_float(a)) for name, a in default.items()),
        by_default=max(apart, default=0.0),
        outputs=tuple(
            _compare(name, array, ours.get(name), wanted.get(name)) for name, array in numbers.items()
        ),
    )


def _tensors(names: Iterable[str], values: Iterable[Any]) -> dict[str, NDArray[Any]]:
    """Return the tensors among some values by name, those of a sequence as ``name[0]``, ``name[1]``, .."""
    found: dict[str, NDArray[Any]] = {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, list):
            found |= _tensors([f"{name}[{index}]" for index in range(len(value))], value)
    return found


def _run_exactly(path: Path, feed: Feed, otherwise: list[Any]) -> list[Any]:
    """Run a file with the options of `fgq.graph.ort`; return `otherwise` where onnxruntime cannot.

    With them it refuses to run products with a constant on the left.
    """
    try:
        results: list[Any] = ort.open_session(path, "converted model").run(None, dict(feed))
    except Exception:  # onnxruntime's exceptions share no other base
        return otherwise
    return results


def few_samples(feed: Feed, free_batch: bool, count: int = 2) -> dict[str, NDArray[Any]]:
    """Cut a feed to its first samples, where the model leaves the batch size open and every input has it.

    Parameters
    ----------
    feed : mapping of str to ndarray
    free_batch : bool
        Whether every input has a batch axis of any length.
    count : int
        How many samples to keep.
    """
    lengths = {len(array) for array in feed.values() if array.ndim}
    if not free_batch or len(lengths) > 1:
        return dict(feed)
    return {name: array[:count] if array.ndim else array for name, array in feed.items()}


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f"


def _difference(reference: NDArray[Any], found: NDArray[Any] | None) -> float:
    """Return the largest difference, relative to the largest value of the reference."""
    # sizes may depend on the data: then nothing but the size can be compared
    if found is None or reference.shape != found.shape:
        return float("inf")
    wide = reference.astype(np.float64)
    largest = float(np.abs(wide).max(initial=0.0))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = float(np.abs(wide - found).max(initial=0.0))
    return difference / largest if largest else difference


def _compare(
    name: str, theirs: NDArray[Any], ours: NDArray[Any] | None, exact: NDArray[Any] | None
) -> OutputCheck:
    reference = theirs.astype(np.float64)
    ratio = float("-inf")
    if exact is not None and exact.shape == reference.shape:
        ratio = signal_to_noise_db(exact, reference)
    return OutputCheck(
        name=name,
        engines_difference=_difference(theirs, ours),
        engines_equal=ours is not None and bool(np.array_equal(theirs, ours, equal_nan=_is_float(theirs))),
        signal_to_noise_db=ratio,
    )
