"""How long whole models take: the median and the 90th percentile of their calls, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fgq.eval.bench.timing import BUSY_SHARE, OthersLoad, _calls_in_a_turn, _settle, _turn


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a call takes.

    Parameters
    ----------
    median, p90 : float
        Seconds: of all calls, and of the slowest tenth of them the fastest.
    busy : bool or None
        Whether other processes were at work meanwhile; None where the system does not tell.
    """

    median: float
    p90: float
    busy: bool | None


def measure_latencies(
    functions: Mapping[str, Callable[[], object]],
    *,
    sittings: int = 3,
    retries: int = 4,
    seconds: float = 4.0,
    spinning: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    load: Callable[[], OthersLoad] = OthersLoad,
) -> dict[str, Latency]:
    """Time functions in turns, as `fgq.eval.bench.timing.time_alternating` does.

    Parameters
    ----------
    functions, sittings, retries, seconds, spinning, load
        As there; sittings are longer, for more calls of functions that take longer.
    progress : callable
        Called as ``progress(done, total)`` with the undisturbed sittings.

    Returns
    -------
    dict of str to Latency
        In the order of `functions`.
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
    found = {}
    for name in functions:
        taken = np.concatenate([times[name] for times in counted])
        found[name] = Latency(
            float(np.median(taken)), float(np.quantile(taken, 0.9)), busy if known else None
        )
    return found
