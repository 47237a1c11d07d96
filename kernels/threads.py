"""Threads for kernels: teams of Python threads that take tiles until none is left.

Of Numba's threading layers ``workqueue`` ends the process when two threads enter it together, GNU
``omp`` hangs in a forked child, and ``tbb`` is rarely installed. Kernels release the interpreter lock, so
Python's own threads run them at full speed. Any number of threads may call at once, each with a team of its
own, and a forked child makes new ones.

A sleeping thread wakes in 50 to 200 microseconds, as much as a layer takes. So a helper that has done its
share watches for the next call, in compiled code without the interpreter lock, for some 200 microseconds
before it goes to sleep: within a network, and in calls that follow each other, it begins in 10. The calling
thread waits for its helpers in the same way.

Each tile is computed whole by one thread, in integers, so the number of threads changes no result.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock, Thread

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.simd.atomics import LINE, load, pause

_CHUNKS_PER_THREAD = 2
"""Pieces of work a thread may take in turn: a late or disturbed one leaves its share to the others."""

_LOOKS = 3000
"""How often a thread looks for what it waits for before it sleeps: 200 microseconds."""

_BEHIND = 200
"""Pauses before a helper follows its caller: by then that has left the interpreter, which lets one in."""

_CALLER = 0

_NONE = np.empty(0, np.int64)

_lock = Lock()
_idle: list[_Team] = []


MOST_THREADS = 1024
"""Each is one of the system's, and waits for work in a stack of its own."""


def default_threads() -> int:
    """Return how many threads may be used: ``FGQ_NUM_THREADS``, else the processors of this process.

    What is no number from 1 to `MOST_THREADS` is passed over.
    """
    given = os.environ.get("FGQ_NUM_THREADS", "")
    if re.fullmatch("[0-9]{1,4}", given) and 1 <= int(given) <= MOST_THREADS:
        return int(given)
    return _processors()


def spread(units: int, threads: int, work: Callable[[int, int, int], None]) -> None:
    """Do units of work with several threads, of which the calling one is the first.

    Parameters
    ----------
    units : int
        How many there are.
    threads : int
        How many threads to use at most.
    work : callable
        ``work(thread, begin, end)`` does the units from `begin` to `end`; calls with the same `thread`
        never overlap.
    """
    if threads <= 1 or units <= 1:
        work(_CALLER, 0, units)
        return
    chunks = min(units, _CHUNKS_PER_THREAD * threads)
    next_chunk, done = count(), np.zeros(1, np.int64)

    def take(thread: int) -> None:
        while (chunk := next(next_chunk)) < chunks:
            work(thread, units * chunk // chunks, units * (chunk + 1) // chunks)
            with _lock:
                done[0] += 1

    with _helped(min(threads, chunks) - 1, take) as team:
        take(_CALLER)
        team.wait(done, 0, chunks)


def share(units: int, threads: int, work: Callable[[int, NDArray[np.int64]], None]) -> None:
    """Do units of work with several threads that take them in compiled code.

    In the interpreter, whose own code has left the near caches after a large layer, taking a piece of work
    takes as long as waking a thread.

    Parameters
    ----------
    units : int
        How many there are.
    threads : int
        How many threads to use at most.
    work : callable
        ``work(thread, taken)`` takes units until none is left: adds to ``taken[0]``, in one step, how many it
        takes, and to ``taken[LINE]`` how many it has done; then helpers, threads from 1 on, `rest`. Calls
        with the same `thread` never overlap.
    """
    taken = np.zeros(3 * LINE, np.int64)
    with _helped(threads - 1, lambda helper: work(helper, taken), taken) as team:
        work(_CALLER, taken)
        team.wait(taken, LINE, units)


@jit
def rest(taken: NDArray[np.int64]) -> None:
    """Wait in compiled code for the team's next call, so as not to be in the caller's way to it."""
    for _ in range(_LOOKS):
        if load(taken, 2 * LINE):
            for _ in range(_BEHIND):
                pause()
            return
        pause()


@contextmanager
def _helped(helpers: int, take: Callable[[int], None], taken: NDArray[np.int64] = _NONE) -> Iterator[_Team]:
    """Let helpers take work, as long as there is any."""
    with _lock:
        fitting = (place for place, team in enumerate(_idle) if team.helpers >= helpers)
        place = next(fitting, None)
        team = None if place is None else _idle.pop(place)
    team = team or _Team(helpers)
    try:
        team.invite(helpers, take, taken)
        yield team
    finally:
        team.withdraw()
        _idle.append(team)


class _Team:
    """Helpers of one caller at a time.

    The number of calls is what helpers watch in compiled code. Everything else is read and written under the
    interpreter lock, whose single steps (of a dict, of a list) are atomic.
    """

    def __init__(self, helpers: int) -> None:
        self.helpers = helpers
        self._calls = np.zeros(1, np.int64)
        self._invited: dict[int, Callable[[int], None]] = {}
        self._asleep: dict[int, Lock] = {}
        self._errors: list[BaseException] = []
        self._taken = _NONE
        _watch(
            self._calls, 0, 0, 0
        )  # compiled here, not by all helpers at once, and not while somebody forks
        _reach(self._calls, 0, 0, 0)
        for helper in range(1, helpers + 1):
            Thread(target=self._serve, args=(helper,), name=f"fgq-{helper}", daemon=True).start()

    def invite(self, helpers: int, take: Callable[[int], None], taken: NDArray[np.int64]) -> None:
        """Let some helpers call ``take(helper)``, once each; those that rest after the last call too."""
        self._errors.clear()
        for helper in range(1, helpers + 1):
            self._invited[helper] = take
        self._calls[0] += 1
        self._taken[2 * LINE :] = 1
        self._taken = taken
        for helper in range(1, helpers + 1):
            if (gate := self._asleep.pop(helper, None)) is not None:
                gate.release()

    def withdraw(self) -> None:
        """Let helpers that have not begun do so no more."""
        self._invited.clear()

    def wait(self, done: NDArray[np.int64], place: int, wanted: int) -> None:
        """Wait until ``done[place]`` is as large as wanted, or raise what a helper has raised."""
        while not _reach(done, place, wanted, _LOOKS):
            if self._errors:
                raise self._errors[0]
            time.sleep(0)

    def _serve(self, helper: int) -> None:
        gate, calls = Lock(), 0
        gate.acquire()
        while True:
            if not _watch(self._calls, calls, _LOOKS if _processors() > 1 else 0, _BEHIND):
                self._asleep[helper] = gate
                # Called meanwhile, it takes its name off the list, unless the caller has, and opens the gate.
                if self._calls[0] == calls or self._asleep.pop(helper, None) is None:
                    gate.acquire()
            calls = int(self._calls[0])
            if (take := self._invited.pop(helper, None)) is not None:
                try:
                    take(helper)
                except BaseException as error:
                    self._errors.append(error)


@jit
def _watch(calls: NDArray[np.int64], known: int, looks: int, behind: int) -> bool:
    """Look for a call other than the known one, and let its caller begin first."""
    for _ in range(looks):
        if load(calls, 0) != known:
            for _ in range(behind):
                pause()
            return True
        pause()
    return False


@jit
def _reach(done: NDArray[np.int64], place: int, wanted: int, looks: int) -> bool:
    """Look whether a number has become as large as wanted."""
    for _ in range(looks + 1):
        if load(done, place) >= wanted:
            return True
        pause()
    return False


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget_teams() -> None:
    global _idle, _lock
    _idle, _lock = [], Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)
