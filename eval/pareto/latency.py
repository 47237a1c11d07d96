"""How long one image takes in each network: all of them in turns, after the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fgq.eval.bench.engines import Engine, Runtime, load
from fgq.eval.bench.model_files import fix_shapes
from fgq.eval.bench.model_timing import measure_latencies
from fgq.eval.characters import load as load_images
from fgq.eval.pareto.points import FLOAT
from fgq.eval.study.kept import keep, read_kept
from fgq.support.progress import Progress
from fgq.support.temporary import temporary_folder

if TYPE_CHECKING:
    from fgq.eval.pareto.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """The median time of a call with one image, on one thread.

    Parameters
    ----------
    milliseconds : dict of str to float
        By `Point.network`: converted networks in `fgq.Session`, float ones in onnxruntime.
    busy : bool or None
        Whether other processes were at work meanwhile; None where this is not known.
    """

    milliseconds: dict[str, float]
    busy: bool | None


def read(folder: Path) -> Latencies:
    """Return the latencies that `measure` has left in a folder; none, if it was not called."""
    path = _path(folder)
    if not path.exists():
        return Latencies(milliseconds={}, busy=None)
    return read_kept(path, lambda plain: Latencies(**plain))


def measure(jobs: Sequence[Job], folder: Path, progress: Progress) -> Latencies:
    """Time the networks of the finished jobs, one seed of each, and keep their latencies.

    Parameters
    ----------
    jobs : sequence of Job
    folder : Path
    progress : callable
        Called as ``progress(stage, done, total)``.
    """
    files = {job.point.network: job for job in reversed(jobs) if job.is_done}
    feed = {"image": load_images("test").images[:1]}
    functions: dict[str, Callable[[], object]] = {}
    with temporary_folder() as scratch:
        for done, (name, job) in enumerate(files.items()):
            progress("load", done, len(files))
            fixed = scratch / f"{name}.onnx"
            fix_shapes(job.model, feed, fixed)
            is_float = job.point.precision == FLOAT
            engine = Engine(
                runtime=Runtime.ONNXRUNTIME if is_float else Runtime.FGQ,
                form=name,
                path=fixed,
                options={} if is_float else {"kernels": "auto", "memory": "auto"},
            )
            functions[name] = partial(load(engine, 1), feed)
        measured = measure_latencies(functions, progress=partial(progress, "time")) if functions else {}
    latencies = Latencies(
        milliseconds={name: 1e3 * latency.median for name, latency in measured.items()},
        busy=next((latency.busy for latency in measured.values()), None),
    )
    keep(_path(folder), latencies)
    return latencies


def _path(folder: Path) -> Path:
    return folder / "latency.json"
