"""How long a call of each model of a study takes: all of them in turns, in one run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fgq.errors import KernelError
from fgq.eval.bench.engines import Engine, Runtime, load
from fgq.eval.bench.model_files import Subject, fix_shapes
from fgq.eval.bench.model_timing import measure_latencies
from fgq.eval.datasets import open_dataset
from fgq.eval.study.kept import digest, keep, read_kept
from fgq.support.progress import Progress
from fgq.support.temporary import temporary_folder

ONNXRUNTIME = "onnxruntime"

ENGINES: dict[str, tuple[Runtime, dict[str, str | int]]] = {
    ONNXRUNTIME: (Runtime.ONNXRUNTIME, {}),
    "fgq": (Runtime.FGQ, {"kernels": "auto", "memory": "auto"}),
    "fgq_multiplication_free": (Runtime.FGQ, {"kernels": "multiplication-free", "memory": "auto"}),
}
"""What is timed, with its options; a float model is timed in the first alone."""

FLOAT = "float"
"""The name of the float model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long the models take.

    Parameters
    ----------
    batch : int
        Samples in a call.
    busy : bool or None
        Whether other processes were at work meanwhile; None where this is not known.
    milliseconds : dict of str to dict of str to float
        The median of the calls, by model and engine; an engine that cannot run a model is missing.
    """

    batch: int
    busy: bool | None
    milliseconds: Mapping[str, Mapping[str, float]]


def kept_times(
    model: Path, converted: Mapping[str, Path], data: str, threads: int, folder: Path, progress: Progress
) -> Times:
    """Time the models, or find their times; times that other processes disturbed are not kept.

    Parameters
    ----------
    model : Path
        The float model.
    converted : dict of str to Path
        By name, which says all that the files depend on.
    data : str
        The first sample is what is timed, or the first of the model's fixed batch.
    threads : int
    folder : Path
        Where they are kept.
    progress : callable
        Called as ``progress(stage, done, total)``.
    """
    path = folder / f"times.{digest(models=sorted(converted), threads=threads)}.json"
    if path.exists():
        return read_kept(path, lambda plain: Times(**plain))
    feed = Subject(name=model.name, path=model, samples=open_dataset(data, model, "calibration")).feed(None)
    names = {FLOAT: model} | dict(converted)
    functions: dict[str, Callable[[], object]] = {}
    places: dict[str, tuple[str, str]] = {}
    with temporary_folder() as scratch:
        for done, (name, file) in enumerate(names.items()):
            progress("load", done, len(names))
            fixed = scratch / f"{name}.onnx"
            fix_shapes(file, feed, fixed)
            for engine in ENGINES if name != FLOAT else [ONNXRUNTIME]:
                runtime, options = ENGINES[engine]
                try:
                    run = load(Engine(runtime=runtime, form=name, path=fixed, options=options), threads)
                except KernelError as error:
                    warnings.warn(f"{name}: not timed in {engine} ({error})", stacklevel=2)
                    continue
                key = f"{name}, {engine}"
                functions[key], places[key] = partial(run, feed), (name, engine)
    latencies = measure_latencies(functions, spinning=threads > 1, progress=partial(progress, "time"))
    milliseconds: dict[str, dict[str, float]] = {name: {} for name in names}
    for key, (name, engine) in places.items():
        milliseconds[name][engine] = 1e3 * latencies[key].median
    times = Times(
        batch=len(next(iter(feed.values()))),
        busy=latencies[f"{FLOAT}, {ONNXRUNTIME}"].busy,
        milliseconds=milliseconds,
    )
    if not times.busy:
        keep(path, times)
    return times
