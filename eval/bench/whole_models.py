"""Whole models in this runtime, onnxruntime and OpenVINO, timed in turns."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.converters.survey import model_bytes
from fgq.data import npz
from fgq.data.feed import Feed
from fgq.errors import ConfigError, KernelError, first_line
from fgq.eval.bench.engines import Engine, Footprint, Run, Runtime, load, measure_footprint
from fgq.eval.bench.kernels import WISHES, machine
from fgq.eval.bench.model_files import FLOAT, INT8, Forms, Subject, fix_shapes, make_forms, open_subject
from fgq.eval.bench.model_timing import Latency, measure_latencies
from fgq.format import onnx_file
from fgq.support.progress import Progress
from fgq.support.temporary import temporary_folder

GROUP_SIZE = 64
"""N where none is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A model, and how it is run.

    Parameters
    ----------
    model : str
        A file, or the name of a built-in model.
    data : str or None
        Its calibration data; built-in models bring their own.
    batches : tuple of int
        Samples in a call; empty for the model's fixed batch, or one.
    threads : tuple of int
    group_sizes : tuple of int
        N; empty for `GROUP_SIZE`, and for a converted model.
    """

    model: str
    data: str | None = None
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (1,)
    group_sizes: tuple[int, ...] = ()


FULL_PLAN: tuple[Trial, ...] = (
    Trial(model="resnet50", group_sizes=(64, 4)),
    Trial(model="minilm"),
    Trial(model="cnn", batches=(1, 32)),
)
"""All that `fgq.eval.bench.model_claims` asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine on one model.

    Parameters
    ----------
    model : str
    engine : str
        `fgq.eval.bench.engines.Engine.name`.
    options : dict of str to str or int
        Of fgq: group_size where it is known, kernels and memory.
    batch : int
        Samples in a call.
    threads : int
    median_ms, p90_ms : float
        Median and 90th percentile of the time of a call, in milliseconds.
    throughput : float
        Samples a second, by the median.
    load_s : float
        Seconds from the file to the first result, in a process of its own.
    resident_bytes : int or None
        Memory that this process then holds more than before.
    file_bytes : int
        Size of the file, external data counted.
    busy : bool or None
        Whether other processes were at work in spite of repetitions; None where this is not known.
    """

    model: str
    engine: str
    options: dict[str, str | int]
    batch: int
    threads: int
    median_ms: float
    p90_ms: float
    throughput: float
    load_s: float
    resident_bytes: int | None
    file_bytes: int
    busy: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that a run found.

    Parameters
    ----------
    machine : dict
        Processor, instruction sets and versions.
    rows : list of Row
    notes : dict of str to str
        What a reader must know of a model.
    missing : dict of str to str
        Engines and models that did not run, and why.
    """

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Result:
        """Return what :meth:`to_dict` was called on."""
        return cls(**{**plain, "rows": [Row(**row) for row in plain["rows"]]})


def bench_models(plan: Sequence[Trial], progress: Progress, *, quick: bool = False) -> Result:
    """Time models in every engine that runs them.

    Parameters
    ----------
    plan : sequence of Trial
    progress : callable
        Called as ``progress(stage, done, total)``.
    quick : bool
        One short sitting for each setting instead of several that are repeated when disturbed.

    Raises
    ------
    FgqError
        If a model or its data cannot be used, or its kernels do not give the same results. Where the plan
        has several models, one whose packages are not installed is left out.
    """
    timing: dict[str, Any] = {"sittings": 1, "retries": 1, "seconds": 0.2} if quick else {}
    result = Result(machine=machine([]))
    for trial in plan:
        with temporary_folder() as folder:
            progress(f"{trial.model}: open", 0, None)
            try:
                subject = open_subject(trial.model, trial.data, folder)
            except ConfigError as error:
                if len(plan) == 1:
                    raise
                result.missing[trial.model] = str(error)
                continue
            _bench(subject, trial, folder, progress, timing, result)
    return result


def _bench(
    subject: Subject, trial: Trial, folder: Path, progress: Progress, timing: dict[str, Any], result: Result
) -> None:
    if subject.is_converted and trial.group_sizes:
        raise ConfigError(
            f"group size: found {', '.join(map(str, trial.group_sizes))} for {subject.name}, which is "
            "converted already, wanted none"
        )
    feeds = [subject.feed(batch) for batch in trial.batches or (None,)]
    if subject.note:
        result.notes[subject.name] = subject.note
    forms = make_forms(subject, trial.group_sizes or (GROUP_SIZE,), folder, progress)
    result.missing.update(
        {f"{subject.name}, onnxruntime {form}": reason for form, reason in forms.missing.items()}
    )
    for feed, threads in itertools.product(feeds, trial.threads):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            result.rows.extend(
                _time(subject, forms, feed, threads, Path(name), progress, timing, result.missing)
            )


def engines(forms: Forms) -> Iterator[Engine]:
    """Yield every engine for the forms of a model.

    Parameters
    ----------
    forms : Forms
    """
    for (size, path), (kernels, memory) in itertools.product(forms.converted.items(), WISHES):
        known: dict[str, str | int] = {} if size is None else {"group_size": size}
        options = known | {"kernels": kernels, "memory": memory}
        yield Engine(runtime=Runtime.FGQ, form="ternary", path=path, options=options)
    for form, path in forms.others.items():
        yield Engine(runtime=Runtime.ONNXRUNTIME, form=form, path=path)
    for form in (FLOAT, INT8):
        if form in forms.others:
            yield Engine(runtime=Runtime.OPENVINO, form=form, path=forms.others[form])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    engine: Engine
    run: Run
    footprint: Footprint
    file_bytes: int


def _time(
    subject: Subject,
    forms: Forms,
    feed: Feed,
    threads: int,
    folder: Path,
    progress: Progress,
    timing: dict[str, Any],
    missing: dict[str, str],
) -> Iterator[Row]:
    batch = len(next(iter(feed.values())))
    where = f"{subject.name}: batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
    candidates = list(engines(forms))
    ready: dict[str, _Ready] = {}
    for done, engine in enumerate(candidates):
        progress(f"{where}: load", done, len(candidates))
        try:
            ready[str(engine)] = _prepare(engine, feed, threads, folder)
        except Exception as error:  # engines have error types of their own
            missing[f"{subject.name}, {engine}"] = first_line(error)
    _check_equal(subject, list(ready.values()), feed)
    functions: dict[str, Callable[[], object]] = {
        name: partial(each.run, feed) for name, each in ready.items()
    }
    latencies = measure_latencies(
        functions,
        spinning=threads > 1,
        progress=lambda done, total: progress(f"{where}: time", done, total),
        **timing,
    )
    for name, each in ready.items():
        yield _row(subject, each, batch, threads, latencies[name])


def _prepare(engine: Engine, feed: Feed, threads: int, folder: Path) -> _Ready:
    fixed, data = folder / f"{engine.path.stem}.fixed.onnx", folder / "feed.npz"
    if not fixed.exists():
        fix_shapes(engine.path, feed, fixed)
    if not data.exists():
        npz.write_arrays(data, feed)
    timed = Engine(runtime=engine.runtime, form=engine.form, path=fixed, options=engine.options)
    run = load(timed, threads)
    run(feed)
    return _Ready(
        engine=engine,
        run=run,
        footprint=measure_footprint(timed, threads, data),
        file_bytes=model_bytes(engine.path, onnx_file.load(engine.path)),
    )


def _check_equal(subject: Subject, ready: Sequence[_Ready], feed: Feed) -> None:
    """Refuse kernels of fgq that differ on one file."""
    firsts: dict[Path, tuple[Engine, list[NDArray[Any]]]] = {}
    for each in ready:
        if each.engine.runtime is not Runtime.FGQ:
            continue
        outputs = each.run(feed)
        first, expected = firsts.setdefault(each.engine.path, (each.engine, outputs))
        if not all(map(np.array_equal, outputs, expected)):
            raise KernelError(
                f"{subject.name}: found other results from {each.engine} than from {first}, wanted the same"
            )


def _row(subject: Subject, ready: _Ready, batch: int, threads: int, latency: Latency) -> Row:
    return Row(
        model=subject.name,
        engine=ready.engine.name,
        options=ready.engine.options,
        batch=batch,
        threads=threads,
        median_ms=1e3 * latency.median,
        p90_ms=1e3 * latency.p90,
        throughput=batch / latency.median,
        load_s=ready.footprint.load_s,
        resident_bytes=ready.footprint.resident_bytes,
        file_bytes=ready.file_bytes,
        busy=latency.busy,
    )
