"""Times of several functions side by side, and whether another process was in the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STAT = Path("/proc/stat")

BUSY_SHARE = 0.1
"""Processors that other processes may use before a timing counts as disturbed; ticks blur some 0.03."""

_LEAST_TURN = 0.004
"""Seconds that a function has the machine to itself before the next one's turn."""

_LEAST_CALLS, _MOST_CALLS = 3, 200
"""Calls in a turn."""

_MOST_SETTLING = 0.2
"""Seconds to wait for threads that spin."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a function takes.

    Parameters
    ----------
    seconds : float
        Median of its calls.
    busy : bool or None
        Whether other processes were at work meanwhile; None where the system does not tell.
    """

    seconds: float
    busy: bool | None


class OthersLoad:
    """Counts the processor time that other processes take from now on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._before = self._others()

    @staticmethod
    def _others() -> float | None:
        """Return seconds that all processors were not idle, less those of this process."""
        try:
            fields = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return None
        # proc(5): user nice system idle iowait irq softirq steal; guests are part of user
        ticks = [int(field) for field in fields[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK") - time.process_time()

    def processors(self) -> float | None:
        """Return how many processors the others used on average; None where the system does not tell."""
        now = self._others()
        if now is None or self._before is None:
            return None
        return (now - self._before) / (time.perf_counter() - self._began)


def time_alternating(functions: Mapping[str, Callable[[], object]], **options: Any) -> dict[str, Timing]:
    """Time functions in turns and take the median of their calls.

    Parameters
    ----------
    functions, options
        As for `times_in_turns`.

    Returns
    -------
    dict of str to Timing
        In the order of `functions`.
    """
    times, busy = times_in_turns(functions, **options)
    return {name: Timing(float(np.median(taken)), busy) for name, taken in times.items()}


def times_in_turns(
    functions: Mapping[str, Callable[[], object]],
    *,
    sittings: int = 3,
    retries: int = 4,
    seconds: float = 0.5,
    spinning: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    load: Callable[[], OthersLoad] = OthersLoad,
) -> tuple[dict[str, list[float]], bool | None]:
    """Time functions in turns, so that whatever slows the machine slows them all.

    A turn is some calls in a row after one that is not counted, so that a function finds its own data in
    the caches. Turns go round, in another order each time, until a sitting is over. Sittings during which
    other processes were busy are repeated, and only where that did not help do they count.

    Parameters
    ----------
    functions : mapping of str to callable
        What to time, by name.
    sittings : int
        How many undisturbed ones are wanted.
    retries : int
        How many disturbed ones may be repeated.
    seconds : float
        Length of a sitting at least; it holds two rounds at least.
    spinning : bool
        Whether functions leave threads that spin for a while, which is then waited for.
    progress : callable
        Called as ``progress(done, total)`` with the undisturbed sittings.
    load : callable
        Begins to count the processor time of others.

    Returns
    -------
    dict of str to list of float
        The seconds of all calls that count, in the order of `functions`.
    bool or None
        Whether other processes were at work meanwhile; None where the system does not tell.
    """
    calls = {name: _calls_in_a_turn(function) for name, function in functions.items()}
    quiet: list[dict[str, list[float]]] = []
    disturbed: list[dict[str, list[float]]] = []
    known, rng = True, np.random.default_rng(0)
    while len(quiet) < sittings and len(disturbed) <= retries:
        progress(len(quiet), sittings)
        others, times, rounds = load(), {name: list[float]() for name in functions}, 0
        began = time.perf_counter()
        while rounds < 2 or time.perf_counter() - began < seconds:
            for name in rng.permutation(list(functions)):
                times[name] += _turn(functions[name], calls[name])
                if spinning:
                    _settle()
            rounds += 1
        processors = others.processors()
        known = known and processors is not None
        (disturbed if processors is not None and processors > BUSY_SHARE else quiet).append(times)
    busy = len(quiet) < sittings
    counted = [*quiet, *disturbed] if busy else quiet
    all_times = {name: [taken for times in counted for taken in times[name]] for name in functions}
    return all_times, busy if known else None


def _turn(function: Callable[[], object], calls: int) -> list[float]:
    function()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return times


def _calls_in_a_turn(function: Callable[[], object]) -> int:
    function()  # compiles, allocates, reads into caches
    once = min(_turn(function, 2))
    return int(np.clip(_LEAST_TURN / max(once, 1e-9), _LEAST_CALLS, _MOST_CALLS))


def _settle() -> None:
    """Wait until this process is idle."""
    began = time.perf_counter()
    while time.perf_counter() - began < _MOST_SETTLING:
        worked, start = time.process_time(), time.perf_counter()
        time.sleep(0.001)
        if time.process_time() - worked < 0.3 * (time.perf_counter() - start):
            return
