"""Engines that run whole models: this runtime, onnxruntime, and OpenVINO where it is installed.

Each takes arrays by name and gives arrays, as an application would call it. ::

    python -P -m fgq.eval.bench.engines < job.json

loads one engine in a process of its own, runs it once, and prints how long that took and what it holds.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.data import npz
from fgq.data.feed import Feed
from fgq.errors import ModelError

Run = Callable[[Feed], list[NDArray[Any]]]
"""Computes all outputs of a model; the next call may overwrite them."""

_SMAPS = Path("/proc/self/smaps_rollup")

_MOST_SECONDS = 600
"""How long a process of its own may take to load an engine and run it once."""


class Runtime(StrEnum):
    """What runs a model."""

    FGQ = "fgq"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "OpenVINO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A runtime with one file.

    Parameters
    ----------
    runtime : Runtime
    form : str
        What the file holds: ``ternary``, ``float``, ``int8`` or ``dynamic int8``.
    path : Path
        The file.
    options : dict of str to str or int
        Of fgq: ``group_size`` where it is known, ``kernels`` and ``memory``.
    """

    runtime: Runtime
    form: str
    path: Path
    options: dict[str, str | int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The runtime, and the form where the runtime alone does not say it."""
        return str(self.runtime) if self.runtime is Runtime.FGQ else f"{self.runtime} {self.form}"

    def __str__(self) -> str:
        return label(self.name, self.options)


def label(name: str, options: Mapping[str, str | int]) -> str:
    """Return an engine's name with its options, as in ``fgq, N=64, auto, fast``."""
    values = (f"N={value}" if key == "group_size" else str(value) for key, value in options.items())
    return ", ".join([name, *values])


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What it takes to have an engine ready.

    Parameters
    ----------
    load_s : float
        Seconds from the file to the first result, all libraries being imported.
    resident_bytes : int or None
        Memory that the process holds more than before; None where the system does not tell.
    """

    load_s: float
    resident_bytes: int | None


def load(engine: Engine, threads: int) -> Run:
    """Make an engine ready.

    Parameters
    ----------
    engine : Engine
    threads : int
        How many it may use.

    Raises
    ------
    Exception
        Whatever the runtime raises where it cannot run the file; ImportError where it is not installed.
    """
    loaders = {
        Runtime.FGQ: _load_fgq,
        Runtime.ONNXRUNTIME: _load_onnxruntime,
        Runtime.OPENVINO: _load_openvino,
    }
    return loaders[engine.runtime](engine, threads)


def _load_fgq(engine: Engine, threads: int) -> Run:
    from fgq.runtime import Session

    wishes: dict[str, Any] = {name: engine.options[name] for name in ("kernels", "memory")}
    session = Session(engine.path, threads=threads, **wishes)
    return lambda feed: session.run(None, feed)


def _load_onnxruntime(engine: Engine, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()  # stock, threads spinning: not those of `fgq.graph.ort`
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(engine.path), options, providers=["CPUExecutionProvider"])

    def run(feed: Feed) -> list[NDArray[Any]]:
        results: list[NDArray[Any]] = session.run(None, feed)
        return results

    return run


def _load_openvino(engine: Engine, threads: int) -> Run:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if engine.form == "float":  # its own choice on machines with AMX is bfloat16
        options["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.compile_model(str(engine.path), "CPU", options)
    request, outputs = compiled.create_infer_request(), range(len(compiled.outputs))

    def run(feed: Feed) -> list[NDArray[Any]]:
        request.infer(feed, share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(index).data for index in outputs]

    return run


def measure_footprint(engine: Engine, threads: int, feed: Path) -> Footprint:
    """Load an engine in a process of its own and run it once.

    Kernels that were never compiled on this machine are compiled there: run the engine here first.

    Parameters
    ----------
    engine : Engine
    threads : int
    feed : Path
        An .npz file with an array for each input.

    Raises
    ------
    ModelError
        If the process fails.
    """
    job = json.dumps({"engine": asdict(engine), "threads": threads, "feed": str(feed)}, default=str)
    # -P: in a checkout its own folders must not stand before the installed packages
    command = [sys.executable, "-P", "-m", "fgq.eval.bench.engines"]
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{engine}: found no result after {_MOST_SECONDS} s in its own process") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"{engine}: cannot run in a process of its own ({last})")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def resident_bytes() -> int | None:
    """Return the memory of this process, shared pages in proportion; None where the system does not tell."""
    gc.collect()
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", _SMAPS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def _import(runtime: Runtime) -> None:
    if runtime is Runtime.FGQ:
        import fgq.runtime  # noqa: F401
    elif runtime is Runtime.ONNXRUNTIME:
        import onnxruntime  # noqa: F401
    else:
        import openvino  # noqa: F401


def _footprint(job: Mapping[str, Any]) -> Footprint:
    described = job["engine"]
    engine = Engine(
        runtime=Runtime(described["runtime"]),
        form=described["form"],
        path=Path(described["path"]),
        options=described["options"],
    )
    path = Path(job["feed"])
    feed = {name: npz.read_array(path, name) for name in npz.read_headers(path)}
    _import(engine.runtime)
    before, began = resident_bytes(), time.perf_counter()
    run = load(engine, job["threads"])
    outputs = run(feed)
    seconds, after = time.perf_counter() - began, resident_bytes()
    if not all(np.size(output) for output in outputs):
        raise ModelError(f"{engine}: found an empty output, wanted numbers")
    return Footprint(
        load_s=seconds, resident_bytes=None if before is None or after is None else after - before
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_footprint(json.load(sys.stdin)))))
