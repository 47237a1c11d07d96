"""How long whole models take: the median and the 90th percentile of their calls, taken in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgq.eval.bench.timing import times_in_turns


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
    functions: Mapping[str, Callable[[], object]], *, seconds: float = 4.0, **options: Any
) -> dict[str, Latency]:
    """Time functions in turns.

    Parameters
    ----------
    functions, seconds, options
        As for `fgq.eval.bench.timing.times_in_turns`; sittings are longer, for more calls of functions that
        take longer.

    Returns
    -------
    dict of str to Latency
        In the order of `functions`.
    """
    times, busy = times_in_turns(functions, seconds=seconds, **options)
    return {
        name: Latency(float(np.median(taken)), float(np.quantile(taken, 0.9)), busy)
        for name, taken in times.items()
    }
