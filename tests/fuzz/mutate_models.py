"""Converted files, changed field by field and byte by byte: whatever they are, a session ends in one line.

::

    python tests/fuzz/mutate_models.py --seed 0 --count 50000 --minutes 60

Each file is loaded and run, on arrays that end at forbidden pages, in a process of limited memory and time. A
crash, a hang, an exception that is no FgqError, and a result that differs from what onnxruntime makes of the
same file, are faults. Float files are changed too, and converted.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import workers  # first: it sets the number of threads
from comparison import Reference, compare, distance
from drawing import Array, Feeds, draw
from graphs import convert, draw_options, valid_feeds
from mutating import byte_by_byte, field_by_field
from stated import adds_by_address, is_misread_somewhere, quantizes_nan
from workers import Case, Outcome, judge, run_cases, stage

import fgq
from fgq.kernels import warmup  # noqa: F401  everything is loaded before workers are forked
from fgq.runtime.segments import SegmentStep
from fgq.runtime.steps import step

SEEDS_OF_FILES = 24
"""Files that mutations start from."""

MOST_BYTES = 24_000
MOST_INPUT = 200_000
"""Elements of an input that a changed file may ask for and is given."""

MEGABYTES = 1500

_REALS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True, slots=True)
class Origin:
    """A file to change, and the feeds of its model.

    Parameters
    ----------
    converted, original : bytes
    feeds : list of dict of str to ndarray
    """

    converted: bytes
    original: bytes
    feeds: list[Feeds]


def make(seed: int) -> Case:
    """Return the case of a seed: its index gives everything else."""
    origins = load_origins(seed)
    guard()

    def case(index: int) -> Outcome:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_case(origins, seed, index)

    return case


@functools.cache
def load_origins(seed: int, count: int = SEEDS_OF_FILES) -> list[Origin]:
    """Convert random models, in processes of their own, so that this one has run nothing yet."""
    origins: list[Origin] = []
    with tempfile.TemporaryDirectory(prefix="fgq-fuzz-") as folder:
        place = Path(folder)

        def case(index: int) -> Outcome:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Outcome(index, "ok" if _write_origin(place, seed, index) else "skipped")

        for outcome in run_cases(case, range(50 * count), seconds=60):
            if outcome.verdict != "ok":
                continue
            feeds: list[Feeds] = []
            for path in sorted(place.glob(f"{outcome.index}.*.npz")):
                with np.load(path) as found:
                    feeds.append({name: found[name] for name in found.files})
            names = (f"{outcome.index}.converted.onnx", f"{outcome.index}.original.onnx")
            converted, original = ((place / name).read_bytes() for name in names)
            origins.append(Origin(converted, original, feeds))
            if len(origins) == count:
                return origins
    raise RuntimeError("found too few models to change")


def _write_origin(folder: Path, seed: int, index: int) -> bool:
    """Convert one random model and write it, if both engines agree on it."""
    modes = ("int8", "int4", "int8-dynamic", "int8-dynamic-token", "int8")
    forms = ("packed", "packed", "inlined", "int8")
    rng = np.random.default_rng([seed, 7, index])
    drawn = draw(rng)
    valid = valid_feeds(drawn)
    options = draw_options(rng)
    options |= {"activations": modes[index % len(modes)], "form": forms[index % len(forms)]}
    options |= {"recipe": "fgq", "x86_without_vnni": True}
    for name in ("granularity", "weights", "smooth"):
        options.pop(name, None)
    if not valid:
        return False
    try:
        converted, _ = convert(drawn, options, exact_ranges=False)
    except Exception:  # graphs.py finds these
        return False
    data, original = converted.SerializeToString(), drawn.model.SerializeToString()
    if len(data) > MOST_BYTES or not _runs_alike(data, valid):
        return False
    (folder / f"{index}.converted.onnx").write_bytes(data)
    (folder / f"{index}.original.onnx").write_bytes(original)
    for number, feeds in enumerate(valid[:2]):
        np.savez(folder / f"{index}.{number}.npz", **feeds)
    return True


def _runs_alike(data: bytes, valid: list[Feeds]) -> bool:
    try:
        session, reference = fgq.Session(data, threads=1), Reference(data)
        steps = session.steps()
        alike = all(not distance(session.run(None, feeds), reference.run(feeds)) for feeds in valid)
    except Exception:
        return False
    return alike and any(step.kernel not in ("onnxruntime", "reorder") for step in steps)


def run_case(origins: list[Origin], seed: int, index: int) -> Outcome:
    """Change a file, and load and run it."""
    rng = np.random.default_rng([seed, index])
    origin = origins[int(rng.integers(len(origins)))]
    if rng.random() < 0.08:
        return _convert_case(origin, rng, index)
    data = change(origin.converted, origins, rng)
    allow_float, fallback = bool(rng.random() < 0.5), bool(rng.random() < 0.9)
    return run_file(data, origin.feeds, rng, index, allow_float=allow_float, fallback=fallback)


def change(data: bytes, origins: list[Origin], rng: np.random.Generator) -> bytes:
    """Return a changed file."""
    if rng.random() < 0.3:
        other = origins[int(rng.integers(len(origins)))].converted
        return byte_by_byte(data, other, rng)
    model = onnx.ModelProto.FromString(data)
    for _ in range(5):
        try:
            return field_by_field(model, rng).SerializeToString()
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError):
            continue  # protobuf or numpy cannot hold that
    return byte_by_byte(data, data, rng)


def _convert_case(origin: Origin, rng: np.random.Generator, index: int) -> Outcome:
    data = change(origin.original, [origin], rng)
    stage("convert")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:
        return Outcome(index, "skipped", "no protobuf")
    activations = str(rng.choice(["int8-dynamic", "none", "int8"]))
    calibration = iter(origin.feeds) if activations == "int8" else None
    try:
        fgq.convert(model, activations=activations, recipe="fgq", calibration=calibration)
    except Exception as error:
        return judge(error, index, "convert")
    return Outcome(index, "ok", "converted")


def run_file(
    data: bytes,
    feeds: list[Feeds],
    rng: np.random.Generator,
    index: int,
    *,
    allow_float: bool = True,
    fallback: bool = True,
) -> Outcome:
    """Load and run a file in both engines."""
    stage("Session")
    try:
        open_file = functools.partial(
            fgq.Session, data, threads=1, allow_float=allow_float, fallback=fallback
        )
        session = open_file()
    except Exception as error:
        return judge(error, index, "Session")
    given = [found for one in feeds if (found := _feeds(session, one, rng)) is not None]
    ours: list[list[Any]] = []
    for one in given:
        stage("run")
        try:
            first, second = _run_twice(session, one)
            if not _same(first, second) and adds_by_address(onnx.ModelProto.FromString(data)):
                with _begun_at_multiples_of(16):
                    first, second = _run_twice(open_file(), one)
        except Exception as error:
            return judge(error, index, "run")
        if not _same(first, second):
            return Outcome(index, "difference", "the second run", _hex(data))
        ours.append(first)
    stage("onnxruntime load")
    try:
        reference = Reference(data)
    except Exception:
        return Outcome(index, "ok", "fgq alone loads it")
    for one, first in zip(given, ours, strict=True):
        stage("onnxruntime run")
        try:
            wanted = reference.run(one)
        except Exception:
            continue
        if not distance(first, wanted) or not (_finite(first) and _finite(wanted)):
            continue  # what becomes of NaN and infinity depends on where they stand (docs/runtime.md)
        stage("comparison")
        model = onnx.ModelProto.FromString(data)
        try:
            if quantizes_nan(model, one):
                continue
            verdict = compare(model, one, first, reference.nearer(one, first))
        except Exception as error:
            return Outcome(
                index,
                "difference",
                f"not compared: {type(error).__name__}",
                f"{distance(first, wanted)}; {error}",
            )
        if verdict.name == "fusion" and is_misread_somewhere(model):
            continue
        if verdict.name not in ("equal", "step"):
            return Outcome(index, "difference", f"{verdict.name}: {verdict.where}", verdict.detail)
    return Outcome(index, "ok", "runs")


def _run_twice(session: fgq.Session, feeds: Feeds) -> tuple[list[Any], list[Any]]:
    first = session.run(None, {name: guarded(array) for name, array in feeds.items()})
    return first, session.run(None, feeds)


def _same(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(map(_is_same, ones, others))


def _is_same(one: Any, other: Any) -> bool:
    if not isinstance(one, np.ndarray) or one.dtype.kind == "O":
        return True
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _finite(arrays: Sequence[Any]) -> bool:
    return all(np.isfinite(array).all() for array in arrays if getattr(array, "dtype", None) in _REALS)


def _hex(data: bytes) -> str:
    return f"{len(data)} bytes"


def _feeds(session: fgq.Session, given: Feeds, rng: np.random.Generator) -> Feeds | None:
    """Return arrays that fit what a changed file says of its inputs, or None for large ones."""
    feeds: Feeds = {}
    for value in session.get_inputs():
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        old = given.get(value.name)
        shape = [dim if isinstance(dim, int) else None for dim in value.shape or ()]
        if old is not None and len(old.shape) == len(shape):
            shape = [size if dim is None else dim for dim, size in zip(shape, old.shape, strict=True)]
        sizes = [2 if dim is None else dim for dim in shape]
        if any(size < 0 for size in sizes) or np.prod([float(size) for size in sizes]) > MOST_INPUT:
            return None
        try:
            if old is not None and list(old.shape) == sizes and old.dtype == dtype:
                feeds[value.name] = old
            else:
                feeds[value.name] = np.asarray(rng.standard_normal(sizes) * 3).astype(dtype)
        except (TypeError, ValueError):
            return None  # strings, sequences
    return feeds


def guarded(array: Array) -> Array:
    """Return a copy of an array behind which a forbidden page lies."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or not array.size:
        return array
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    begin = np.frombuffer(memory, np.uint8).ctypes.data
    if _LIBRARY.mprotect(ctypes.c_void_p(begin + size), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    place = (size - array.nbytes) // _multiple * _multiple
    copy = np.frombuffer(memory, array.dtype, array.size, place).reshape(array.shape)
    copy[...] = array
    return copy


_LIBRARY = ctypes.CDLL(None, use_errno=True)

_multiple = 4
"""Where guarded arrays begin: bytes may hold the scales of rows (`fgq.kernels.operators.dynamic.Rows`)."""


@contextmanager
def _begun_at_multiples_of(count: int) -> Iterator[None]:
    """Let guarded arrays begin at multiples of so many bytes; a few more than theirs may then be read."""
    global _multiple
    before, _multiple = _multiple, count
    try:
        yield
    finally:
        _multiple = before


def guard() -> None:
    """Let every array of a first run end at a forbidden page."""

    def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
        made = np.full(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize, 0xA5, np.uint8)
        return guarded(made.view(dtype).reshape(shape))

    run = SegmentStep.run

    def run_guarded(self: SegmentStep, arrays: Any) -> list[Any]:
        return [guarded(result) for result in run(self, arrays)]

    step.aligned = aligned  # type: ignore[attr-defined]
    SegmentStep.run = run_guarded  # type: ignore[method-assign]


def save(seed: int, index: int, path: Path) -> None:
    """Write the file of a case, and the feeds of its model, to look at them."""
    origins = load_origins(seed)
    rng = np.random.default_rng([seed, index])
    origin = origins[int(rng.integers(len(origins)))]
    if rng.random() < 0.08:
        data = change(origin.original, [origin], rng)
    else:
        data = change(origin.converted, origins, rng)
    path.write_bytes(data)
    for number, feeds in enumerate(origin.feeds):
        np.savez(path.with_suffix(f".{number}.npz"), **feeds)


if __name__ == "__main__":
    workers.main("mutate_models", make, 50_000, seconds=30, megabytes=MEGABYTES, keep=save)
