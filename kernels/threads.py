"""Threads for kernels: a pool of Python threads that take tiles until none is left.

Of Numba's threading layers ``workqueue`` ends the process when two threads enter it together, GNU
``omp`` hangs in a forked child, and ``tbb`` is rarely installed. Kernels release the interpreter lock, so
Python's own threads run them at full speed; a call hands out work in some 30 to 90 microseconds, during
which the calling thread is already at work itself. Any number of threads may call at once, and a forked
child makes a pool of its own.

Each tile is computed whole by one thread, in integers, so the number of threads changes no result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Lock

_CHUNKS_PER_THREAD = 2
"""Pieces of work a thread may take in turn: a late or disturbed one leaves its share to the others."""

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def default_threads() -> int:
    """Return how many threads may be used: ``FGQ_NUM_THREADS``, else the processors of this process."""
    given = os.environ.get("FGQ_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        work(0, 0, units)
        return
    chunks = min(units, _CHUNKS_PER_THREAD * threads)
    taken = count()

    def take(thread: int) -> None:
        while (chunk := next(taken)) < chunks:
            work(thread, units * chunk // chunks, units * (chunk + 1) // chunks)

    helpers = min(threads, chunks) - 1
    pool = _pool_of(helpers)
    waiting = [pool.submit(take, thread) for thread in range(1, helpers + 1)]
    try:
        take(0)
    finally:
        for future in waiting:
            if not future.cancel():  # one that never began has nothing left to do
                future.result()


def _pool_of(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            # an outgrown pool may still be in another thread's hands; it ends when they let go of it
            _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="fgq"), size
        return _pool


def _forget_pool() -> None:
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
