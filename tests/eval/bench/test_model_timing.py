import time

import numpy as np
import pytest

from fgq.eval.bench.model_timing import measure_latencies
from fgq.eval.bench.timing import OthersLoad


def load_of(*processors):
    """Return what pretends that others use so many processors, sitting by sitting; the last one goes on."""
    waiting = list(processors)

    class Pretended(OthersLoad):
        def processors(self):
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return Pretended


def test_latencies_are_those_of_the_functions():
    functions = {"slow": lambda: time.sleep(0.01), "fast": lambda: None}
    found = measure_latencies(functions, seconds=0.0, load=load_of(0.0))
    assert list(found) == ["slow", "fast"]
    assert found["slow"].p90 >= found["slow"].median >= 0.01
    assert found["fast"].median < 0.001
    assert not found["slow"].busy


def test_the_90th_percentile_is_that_of_all_counted_calls(monkeypatch):
    """A call takes as many seconds as calls came before it, by a clock that only calls move."""
    clock, taken = [0.0], []

    def call():
        clock[0] += len(taken)
        taken.append(float(len(taken)))

    monkeypatch.setattr("fgq.eval.bench.timing.time.perf_counter", lambda: clock[0])
    found = measure_latencies({"f": call}, sittings=1, seconds=0.0, load=load_of(0.0))["f"]
    # one call and a turn of 1 + 2 to learn how long it takes; then turns of 1 + 3, the first not counted
    turns = np.reshape(taken[4:], (-1, 4))[:, 1:]
    assert found.median == pytest.approx(np.median(turns))
    assert found.p90 == pytest.approx(np.quantile(turns, 0.9))


def test_disturbed_sittings_are_repeated_and_at_last_told():
    steps = []
    found = measure_latencies(
        {"f": lambda: None}, sittings=2, seconds=0.0, load=load_of(1.0, 0.0, 0.0),
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert found["f"].busy is False
    assert steps == [(0, 2), (0, 2), (1, 2)]
    busy = measure_latencies({"f": lambda: None}, sittings=1, retries=1, seconds=0.0, load=load_of(1.0))
    assert busy["f"].busy is True


def test_where_the_system_does_not_tell_nothing_is_claimed():
    found = measure_latencies({"f": lambda: None}, sittings=1, seconds=0.0, load=load_of(None))
    assert found["f"].busy is None
