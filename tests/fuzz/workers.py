"""Many cases in few processes: a crash, a hang or a lack of memory ends one case, and the rest go on.

A worker is forked from a parent that has imported everything, takes one index after the other, and tells over
a pipe which one it begins and what came of it. If it ends, or says nothing for too long, that index is the
culprit, and a new worker goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# One thread each: a fork carries over no threads, and cases are small.
for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "FGQ_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from fgq.errors import FgqError  # noqa: E402  after the number of threads is set


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case.

    Parameters
    ----------
    index : int
    verdict : str
        ``ok``; ``skipped``, where the case is none; ``refused``, where fgq said no in one line;
        ``onnxruntime crashes``, where it does so by itself; else a fault.
    kind : str
        What faults of one cause share.
    detail : str
    """

    index: int
    verdict: str
    kind: str = ""
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether the case shows a fault."""
        return self.verdict not in ("ok", "skipped", "refused", "onnxruntime crashes")


Case = Callable[[int], Outcome]

_NOT_OURS = ("drawing", "float model", "onnxruntime load", "onnxruntime run")
"""Stages in which onnxruntime alone runs."""

_pipe = -1


def stage(name: str) -> None:
    """Say what the case is about to do, so that a crash can be laid at the right door."""
    _tell({"stage": name})


def run_cases(
    case: Case,
    indices: Sequence[int],
    *,
    seconds: float = 60.0,
    megabytes: int | None = None,
    minutes: float | None = None,
) -> Iterator[Outcome]:
    """Run cases in forked workers, one at a time.

    Parameters
    ----------
    case : callable
        Takes an index. It may end the process, hang or run out of memory.
    indices : sequence of int
    seconds : float
        How long a case may take on the processor.
    megabytes : int, optional
        How much memory a worker may take beyond what the parent has.
    minutes : float, optional
        When to stop, whatever is left.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    position = 0
    while position < len(indices):
        for outcome in _one_worker(case, indices[position:], seconds, megabytes, end):
            position += 1
            yield outcome
        if end is not None and time.monotonic() > end:
            return


def _one_worker(
    case: Case, indices: Sequence[int], seconds: float, megabytes: int | None, end: float | None
) -> Iterator[Outcome]:
    """Yield outcomes up to the one that ends the worker, that one included."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _work(case, indices, write, megabytes)
    os.close(write)
    begun, at, buffer = indices[0], "start", b""
    told_at, used = time.monotonic(), _processor_seconds(child)
    try:
        while True:
            ready, _, _ = select.select([read], [], [], 1.0)
            if not ready:
                taken, waited = _processor_seconds(child) - used, time.monotonic() - told_at
                if max(taken, waited / 20) > seconds:  # a machine may be busy with other things
                    detail = f"nothing for {waited:.0f} s, {taken:.0f} s of them on the processor"
                    yield Outcome(begun, "hang", f"hang in {at}", detail)
                    return
                continue
            told_at, used = time.monotonic(), _processor_seconds(child)
            chunk = os.read(read, 1 << 16)
            if not chunk:
                status = os.waitpid(child, 0)[1]
                child = -1
                if status:
                    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status >> 8}"
                    verdict = "onnxruntime crashes" if at in _NOT_OURS else "crash"
                    yield Outcome(begun, verdict, f"{verdict} in {at} ({how})")
                return
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "begin" in told:
                    begun, at = told["begin"], "case"
                elif "stage" in told:
                    at = told["stage"]
                else:
                    yield Outcome(**told)
                    if end is not None and time.monotonic() > end:
                        return
    finally:
        os.close(read)
        if child > 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(case: Case, indices: Sequence[int], pipe: int, megabytes: int | None) -> None:
    """Run cases, and never return."""
    global _pipe
    _pipe = pipe
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    if "FGQ_FUZZ_SHOW" not in os.environ:
        os.dup2(sink, 2)  # what glibc says when it ends a process
    try:
        if megabytes is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (megabytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for index in indices:
            _tell({"begin": index})
            try:
                outcome = case(index)
            except BaseException as error:
                outcome = Outcome(index, "harness", kind_of(error), traceback.format_exc()[-3000:])
            _tell({name: getattr(outcome, name) for name in ("index", "verdict", "kind", "detail")})
            if outcome.kind.startswith("MemoryError"):
                break
        os._exit(0)
    finally:
        os._exit(3)


def _tell(what: dict[str, object]) -> None:
    if _pipe >= 0:
        os.write(_pipe, json.dumps(what).encode() + b"\n")


def kind_of(error: BaseException) -> str:
    """Return an exception's type and the innermost place of this project that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    apart = ("site-packages", str(Path(__file__).parent), "importlib", "contextlib")
    here = [frame for frame in frames if not any(part in frame.filename for part in apart)]
    frame = (here or list(frames))[-1]
    place = "/".join(Path(frame.filename).parts[-2:])
    return f"{type(error).__name__} in {place}:{frame.name}"


def judge(error: Exception, index: int, where: str) -> Outcome:
    """Judge what came out of fgq: one line of an FgqError, or a fault."""
    if not isinstance(error, FgqError):
        detail = "".join(traceback.format_exception(error))[-2500:]
        return Outcome(index, "exception", f"{where}: {kind_of(error)}", detail)
    message = str(error)
    if not message or not message.isprintable():
        return Outcome(index, "message", f"{where}: not one line: {plain(message)}", message[:500])
    return Outcome(index, "refused", plain(message), message[:300])


def plain(message: str) -> str:
    """Return a message without the names and numbers of one case."""
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "_", message.splitlines()[0] if message else "")
    return re.sub(r"\[[^\]]*\]|\([^)]*\)|-?\d+(\.\d+)?(e[-+]?\d+)?", "#", message)[:160]


@dataclass(slots=True)
class Tally:
    """Outcomes counted, and the first fault of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, list[Outcome]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> bool:
        """Count an outcome; tell whether its kind is new."""
        self.counts[outcome.verdict] += 1
        key = f"{outcome.verdict}: {outcome.kind}"
        self.times[key] += 1
        first = key not in self.kinds
        self.kinds.setdefault(key, [])
        if len(self.kinds[key]) < 5:
            self.kinds[key].append(outcome)
        return first

    def is_rare(self, outcome: Outcome) -> bool:
        """Tell whether an outcome is among the first three of its kind."""
        return self.times[f"{outcome.verdict}: {outcome.kind}"] <= 3

    @property
    def faults(self) -> list[Outcome]:
        """The first of each kind."""
        return [found[0] for found in self.kinds.values() if found[0].is_fault]

    def line(self, name: str, seed: int) -> str:
        """Return the summary."""
        total = sum(self.counts.values())
        parts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.counts.items()))
        return f"{name}: {total} cases from seed {seed}: {parts}; {len(self.faults)} kinds of fault"


def main(
    name: str,
    make: Callable[[int], Case],
    count: int,
    *,
    seconds: float,
    megabytes: int | None = None,
    keep: Callable[[int, int, Path], None] | None = None,
) -> None:
    """Run a fuzzer from the command line; the exit code is 1 where it has found something.

    Parameters
    ----------
    name : str
    make : callable
        Returns the case of a seed.
    count : int
        How many cases, where the caller says nothing else.
    seconds, megabytes
        See `run_cases`.
    keep : callable, optional
        Called with the seed, the index and a path to write the files of a case beside.
    """
    parser = argparse.ArgumentParser(prog=name, description=make.__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FGQ_FUZZ_SEED") or 0))
    parser.add_argument("--count", type=int, default=int(os.environ.get("FGQ_FUZZ_COUNT") or count))
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--minutes", type=float, default=_environment_minutes())
    parser.add_argument("--log", type=Path, help="a file for each outcome that is not ok, as JSON lines")
    parser.add_argument("--keep", type=Path, help="a folder for the files of the first faults of each kind")
    parser.add_argument("--only", type=int, nargs="*", help="run these cases in this process, and show all")
    given = parser.parse_args()
    case = make(given.seed)
    if given.only is not None:
        for index in given.only:
            outcome = case(index)
            print(index, outcome.verdict, outcome.kind, outcome.detail, sep="\n  ", flush=True)
        return
    tally = Tally()
    log = None if given.log is None else given.log.open("a")
    indices = range(given.first, given.first + given.count)
    begin = time.monotonic()
    for outcome in run_cases(case, indices, seconds=seconds, megabytes=megabytes, minutes=given.minutes):
        new = tally.add(outcome)
        if outcome.is_fault and new:
            print(
                f"{name} {given.seed} {outcome.index}: {outcome.verdict}: {outcome.kind}\n{outcome.detail}",
                flush=True,
            )
        if keep is not None and given.keep is not None and outcome.is_fault and tally.is_rare(outcome):
            given.keep.mkdir(parents=True, exist_ok=True)
            name_of_kind = re.sub(r"\W+", "_", f"{outcome.verdict} {outcome.kind}")[:80].strip("_")
            keep(given.seed, outcome.index, given.keep / f"{name_of_kind}.{given.seed}.{outcome.index}.onnx")
        if log is not None and outcome.verdict != "ok":
            fields = {key: getattr(outcome, key) for key in ("index", "verdict", "kind", "detail")}
            log.write(json.dumps({"seed": given.seed, **fields}) + "\n")
            log.flush()
    refused = [key for key, _ in tally.times.most_common() if key.startswith("refused")]
    for key, times in tally.times.most_common():
        if not key.startswith(("ok", "skipped", "refused")) or key in refused[:10]:
            print(f"{times:6} {key} (first: {tally.kinds[key][0].index})")
    print(tally.line(name, given.seed), f"in {time.monotonic() - begin:.0f} s", flush=True)
    sys.exit(bool(tally.faults))


def _environment_minutes() -> float | None:
    given = os.environ.get("FGQ_FUZZ_MINUTES")
    return float(given) if given else None
