import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fgq.kernels import threads
from fgq.kernels.threads import default_threads, spread


@pytest.mark.parametrize("units", [0, 1, 2, 7, 8, 9, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_every_unit_is_done_once(units, count):
    done = np.zeros(units, np.int64)

    def work(thread, begin, end):
        assert 0 <= thread < count
        done[begin:end] += 1

    spread(units, count, work)
    assert (done == 1).all()


def test_a_thread_does_one_piece_at_a_time():
    busy = [0] * 4

    def work(thread, begin, end):
        busy[thread] += 1
        assert busy[thread] == 1
        sum(range(1000))
        busy[thread] -= 1

    spread(64, 4, work)


@pytest.mark.parametrize("failing", [0, 63])
def test_an_error_reaches_the_caller(failing):
    def work(thread, begin, end):
        if begin <= failing < end:
            raise ValueError("of this unit")

    with pytest.raises(ValueError, match="of this unit"):
        spread(64, 4, work)


def test_calls_from_several_threads_at_once():
    def call(number):
        total = []
        spread(50, 3, lambda thread, begin, end: total.extend(range(begin, end)))
        return sorted(total)

    with ThreadPoolExecutor(8) as pool:
        assert all(done == list(range(50)) for done in pool.map(call, range(64)))


def run_in_child(queue):
    total = []
    spread(50, 3, lambda thread, begin, end: total.extend(range(begin, end)))
    queue.put(sorted(total))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own():
    spread(8, 3, lambda thread, begin, end: None)
    assert threads._idle
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=run_in_child, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == list(range(50))


def test_the_number_of_threads_can_be_set(monkeypatch):
    monkeypatch.setenv("FGQ_NUM_THREADS", "3")
    assert default_threads() == 3
    for odd in ("many", "", "0", "-1", "1e9", "1025", "9" * 5000):
        monkeypatch.setenv("FGQ_NUM_THREADS", odd)
        assert 1 <= default_threads() <= 1024
