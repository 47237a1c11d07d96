"""Signals at random moments of a small conversion, from the first instruction of `main` to the end.

``python tests/fuzz/signals.py [MOMENTS [SEED]]`` tries every kind, with and without ``--resume``.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("INT", "TERM", "KILL")

TEXT = """<ir_version: 8, opset_import: ["" : 17]> small (float[N,24] x) => (float[N,8] y) {
    a = MatMul(x, u)
    b = Relu(a)
    c = MatMul(b, v)
    d = Relu(c)
    e = MatMul(d, w)
    f = Relu(e)
    y = MatMul(f, z)
}"""

MAIN = """
import os, sys
from fgq.support import stopping
from fgq.cli import main
first, writer = stopping.stop_on_signals, int(sys.argv.pop())
stopping.stop_on_signals = lambda: (first(), os.write(writer, b"."))
main()
"""
"""Tells the moment at which the first instruction of `main` has run."""

OLD = b"an older file"


@dataclass(frozen=True)
class Place:
    """A folder of a small model and its data, and what a conversion of it is."""

    folder: Path
    seconds: float
    wanted: bytes

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"


def prepare(folder: Path) -> Place:
    """Write a model and data; convert it undisturbed, once to compile, once to see how long that takes."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(TEXT)
    for name, shape in {"u": (24, 32), "v": (32, 32), "w": (32, 32), "z": (32, 8)}.items():
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "x.npz", x=rng.standard_normal((128, 24)).astype(np.float32))
    for name in ("out", "temporary"):
        (folder / name).mkdir()
    place = Place(folder, 0.0, b"")
    for _ in range(2):
        process = start(place, resume=False)
        began = time.monotonic()
        _, said = process.communicate(timeout=600)
        seconds = time.monotonic() - began
        if process.returncode:
            raise RuntimeError(f"undisturbed, the conversion fails: {said}")
    return Place(folder, seconds, (place.out / "o.onnx").read_bytes())


def start(place: Place, *, resume: bool) -> "subprocess.Popen[str]":
    """Start a conversion, and return when `main` begins."""
    arguments = ["convert", "m.onnx", "-o", "out/o.onnx", "--calibration-data", "x.npz"]
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments, *["--resume"] * resume, str(writer)],
        cwd=place.folder,
        env=os.environ | {"TMPDIR": str(place.temporary)},
        pass_fds=[writer],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        restore_signals=True,
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as began:
        began.read(1)
    return process


def wrong(place: Place, kind: str, moment: float, *, resume: bool) -> list[str]:
    """Send a signal at a moment, and return what is not as it should be."""
    number = getattr(signal, f"SIG{kind}")
    (place.out / "o.onnx").write_bytes(OLD)
    process = start(place, resume=resume)
    try:
        shown, said = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        shown, said = process.communicate(timeout=600)
    found = []
    content = (place.out / "o.onnx").read_bytes()
    if process.returncode == 0:
        if content != place.wanted:
            found.append("exit code 0, but the file is not the new one")
    elif content not in (OLD, place.wanted):
        found.append(f"the file is neither the old one nor the new one: {len(content)} bytes")
    if kind == "KILL":
        if process.returncode not in (0, -number):
            found.append(f"exit code {process.returncode}")
        return found
    if process.returncode not in (0, 128 + number):
        found.append(f"exit code {process.returncode}")
    if process.returncode:
        *notes, line = said.splitlines() or [""]
        if line != f"fgq: error: stopped by {number.name}" or any(
            "are kept in" not in note for note in notes
        ):
            found.append(f"said {said!r}")
        if shown and content != place.wanted:
            found.append(f"showed {shown!r}")
    return found + left_behind(place)


def left_behind(place: Place) -> list[str]:
    """Return what is left but the output and the finished layers."""
    found = [f"left {path.name}" for path in place.temporary.iterdir()]
    unfinished = place.out / "o.onnx.unfinished"
    found += [
        f"left {path.name}" for path in place.out.iterdir() if path.name not in ("o.onnx", unfinished.name)
    ]
    if unfinished.exists():
        names = {path.name for path in unfinished.iterdir()}
        if "conversion.txt" not in names or len(names) < 2 or any(name.endswith(".new") for name in names):
            found.append(f"left unfinished {sorted(names)}")
    return found


def run(kind: str, moments: int, seed: int, resume: bool) -> list[str]:
    """Try random moments of a small conversion, from the first instruction of `main` to the end.

    Parameters
    ----------
    kind : str
        INT, TERM or KILL.
    moments : int
    seed : int
    resume : bool
        Whether every conversion goes on from what the ones before it have finished.

    Returns
    -------
    list of str
        What went wrong; the old file or the new one must be whole, nothing temporary left but what KILL
        leaves, which the next conversion removes, and the exit code as documented.
    """
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="signals-"))
    failures = []
    try:
        place = prepare(folder)
        for _ in range(moments):
            moment = rng.uniform(0, 1.05) * place.seconds
            if rng.random() < 0.1:
                moment = rng.uniform(0, 0.05)
            found = wrong(place, kind, moment, resume=resume)
            failures += [f"{kind} after {moment:.3f} of {place.seconds:.3f} s: {each}" for each in found]
        # Whatever was left, a later conversion ends well and leaves nothing.
        process = start(place, resume=resume)
        _, said = process.communicate(timeout=600)
        if process.returncode or (place.out / "o.onnx").read_bytes() != place.wanted:
            failures.append(f"{kind}, then undisturbed: exit code {process.returncode}, said {said!r}")
        failures += [f"{kind}, then undisturbed: {each}" for each in left_behind(place)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return failures


if __name__ == "__main__":
    count, first = (int(given) for given in (sys.argv[1:] + ["60", "0"][len(sys.argv) - 1 :]))
    total = 0
    for each in KINDS:
        for going_on in (False, True):
            failed = run(each, count, first, going_on)
            print(f"{each}{' --resume' * going_on}: {count} moments, {len(failed)} failures", flush=True)
            for line in failed:
                print(line, flush=True)
            total += len(failed)
    sys.exit(total > 0)
