import time

import pytest

from fgq.eval.bench import timing
from fgq.eval.bench.timing import OthersLoad, time_alternating

QUICK = {"seconds": 0.0}


def load_of(*processors):
    """Return what pretends that others use so many processors, sitting by sitting; the last one goes on."""
    waiting = list(processors)

    class Pretended(OthersLoad):
        def processors(self):
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return Pretended


class Counted:
    def __init__(self, seconds=0.0):
        self.seconds, self.calls = seconds, 0

    def __call__(self):
        self.calls += 1
        time.sleep(self.seconds)


def test_times_are_those_of_the_functions():
    found = time_alternating({"slow": lambda: time.sleep(0.01), "fast": lambda: None}, load=load_of(0.0))
    assert list(found) == ["slow", "fast"]
    assert found["slow"].seconds >= 0.01
    assert found["fast"].seconds < 0.001
    assert not found["slow"].busy
    assert not found["fast"].busy


def test_a_disturbed_sitting_is_repeated():
    quiet, disturbed = Counted(0.001), Counted(0.001)
    found = time_alternating({"f": quiet}, load=load_of(0.0), **QUICK)
    again = time_alternating({"f": disturbed}, load=load_of(1.0, 0.0, 1.0, 0.0, 0.0), **QUICK)
    assert not found["f"].busy
    assert not again["f"].busy
    # 3 and 5 sittings of 2 rounds, each of some 4 ms after a call that is not counted
    assert disturbed.calls > quiet.calls


def test_a_machine_that_stays_busy_is_told():
    function = Counted()
    found = time_alternating({"f": function}, sittings=1, retries=2, load=load_of(1.0), **QUICK)
    assert found["f"].busy is True
    assert found["f"].seconds >= 0


def test_where_the_system_does_not_tell_nothing_is_claimed(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "_STAT", tmp_path / "none")
    assert time_alternating({"f": lambda: None}, sittings=1, **QUICK)["f"].busy is None


def test_the_load_of_others_is_what_this_process_did_not_use(monkeypatch, tmp_path):
    """proc(5): user nice system idle iowait irq softirq steal guest guest_nice, in ticks of 1/100 s here."""
    stat, clock, own = tmp_path / "stat", [100.0], [5.0]
    monkeypatch.setattr(timing, "_STAT", stat)
    monkeypatch.setattr(timing.os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "process_time", lambda: own[0])
    stat.write_text("cpu  1000 10 200 5000 300 4 5 6 7 8\ncpu0 1 2 3\n")
    load = OthersLoad()
    stat.write_text("cpu  1150 20 230 5900 400 5 6 10 90 90\ncpu0 1 2 3\n")  # 196 ticks more at work
    clock[0], own[0] = 102.0, 6.5  # of which 1.5 s are ours
    assert load.processors() == pytest.approx((1.96 - 1.5) / 2)


def test_threads_that_spin_are_waited_for(monkeypatch):
    """The process uses a whole processor while it looks for the first three times."""
    clock, worked, left = [0.0], [0.0], [3]

    def sleep(seconds):
        clock[0] += seconds
        if left[0]:
            left[0] -= 1
            worked[0] += seconds

    monkeypatch.setattr(timing.time, "sleep", sleep)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "process_time", lambda: worked[0])
    timing._settle()
    assert left == [0]
    assert clock[0] == pytest.approx(0.004)
    left[0] = 10**6  # threads that never rest are not waited for longer than this
    timing._settle()
    assert clock[0] == pytest.approx(0.004 + timing._MOST_SETTLING, abs=0.0011)
