"""What the machine can do at most: reading, 8-bit dot products, vector additions. Measured, not looked up.

A layer cannot take less time than reading its weights once, nor than its arithmetic; the longer of the two
binds it. A kernel's arithmetic is that of its own instruction set:

- dot-product kernels: multiply-adds of the set's dot product, weights coming from the nearest cache, or
  of its product of tiles;
- multiplication-free ones: additions of vectors in registers, of 16-bit lanes for 8-bit activations and of
  8-bit lanes for 4-bit ones, each of which adds a tabulated sum of three activations and so stands for three
  weights (as many as the 27 entries of a table in a register allow).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fgq.kernels.products.driver import aligned
from fgq.kernels.simd.emit import Emitter, Pointer, emitted, i8, i16, i32, i64
from fgq.kernels.simd.isa import BY_NAME, available, index_of
from fgq.kernels.threads import spread

WEIGHTS_PER_ADDITION = 3
"""Weights that one addition of a tabulated sum stands for."""

_PROBE_SECONDS = 0.03
_LEAST_PROBES = 5
_TURNS = 20_000
_BYTES_READ = 1 << 25

Probe = Callable[[NDArray[np.int8], NDArray[np.int8], int], None]
"""``probe(memory, out, turns)``: the work; `out` takes what keeps it from being optimized away."""


def read_bandwidth(count: int, threads: int = 1) -> float:
    """Return the rate at which threads read a working set of their own each, over and over.

    Parameters
    ----------
    count : int
        Bytes of the whole working set, of which each thread reads an equal part.
    threads : int
        How many.

    Returns
    -------
    float
        Bytes a second, of all threads together.
    """
    part = max(count // threads, 1)
    part += -part % 512
    memories = [aligned((part,), np.int8) for _ in range(threads)]
    for memory in memories:
        memory.fill(1)  # so that the pages exist
    turns = max(1, _BYTES_READ // part)
    widest = next(isa for isa in available() if not isa.has("amx-tile"))
    seconds = _seconds(_reader(index_of(widest) if widest.width else None), memories, turns)
    return turns * part * threads / seconds


@cache
def dot_rate(tier: str, threads: int = 1) -> float | None:
    """Return the rate of 8-bit multiply-adds of an instruction set.

    Parameters
    ----------
    tier : str
        One that this machine has.
    threads : int
        How many compute at once.

    Returns
    -------
    float or None
        Multiply-adds a second of all threads together; None for the portable set, which has no
        instructions of its own.
    """
    isa = BY_NAME[tier]
    if not isa.width:
        return None
    tiles = isa.has("amx-int8")
    emit, macs = (_tile_dots, 4 * 16 * 16 * 64) if tiles else (_dots, _DOTS * isa.width)
    return _rate(_compiled(emit, index_of(isa)), threads, macs)


@cache
def add_rate(tier: str, bits: int, threads: int = 1) -> float | None:
    """Return the rate of additions of vector lanes of an instruction set.

    Parameters
    ----------
    tier : str
        One that this machine has.
    bits : int
        Of a lane, 8 or 16.
    threads : int
        How many compute at once.

    Returns
    -------
    float or None
        Lanes added a second by all threads together; None for the portable set.
    """
    isa = BY_NAME[tier]
    if not isa.width:
        return None
    emit = _byte_sums if bits == 8 else _word_sums
    return _rate(_compiled(emit, index_of(isa)), threads, 2 * _PAIRS * 8 * isa.width // bits)


def _rate(probe: Probe, threads: int, per_turn: int) -> float:
    memories = [aligned((4096,), np.int8) for _ in range(threads)]
    for memory in memories:
        memory.fill(1)
    return _TURNS * threads * per_turn / _seconds(probe, memories, _TURNS)


def _seconds(probe: Probe, memories: list[NDArray[np.int8]], turns: int) -> float:
    """Return the shortest time that threads took for their turns."""
    outs = [aligned((4096,), np.int8) for _ in memories]

    def work(thread: int, begin: int, end: int) -> None:
        for unit in range(begin, end):
            probe(memories[unit], outs[thread], turns)

    def once() -> float:
        began = time.perf_counter()
        spread(len(memories), len(memories), work)
        return time.perf_counter() - began

    once()
    began, times = time.perf_counter(), list[float]()
    while len(times) < _LEAST_PROBES or time.perf_counter() - began < _PROBE_SECONDS:
        times.append(once())
    return min(times)


@cache
def _reader(tier: int | None) -> Probe:
    return _compiled(_read, tier) if tier is not None else _portable_read


@numba.njit(nogil=True)
def _portable_read(memory: NDArray[np.int8], out: NDArray[np.int8], turns: int) -> None:
    words, total = memory.view(np.int64), 0
    for turn in range(turns):
        for index in range(words.size):
            total ^= words[index] + turn
    out[0] = total & 127


def _compiled(emit: Any, tier: int) -> Probe:
    @numba.njit(nogil=True)
    def probe(memory: NDArray[np.int8], out: NDArray[np.int8], turns: int) -> None:
        emit(tier, memory, memory.size, out, turns)

    return probe


_STREAMS = 8
"""Registers that are read into in turn."""

_DOTS = 12
"""Independent sums, more than a dot product's latency times the units that do it."""

_PAIRS = 6
"""Pairs of registers that are added to each other in turn, so that no two additions can be merged."""


@emitted
def _read(e: Emitter, memory: Pointer, size: Any, out: Pointer, turns: Any) -> None:
    width = e.isa.width
    totals = [e.variable(e.zeros(i64)) for _ in range(_STREAMS)]
    for _ in e.range(0, turns):
        for place in e.range(0, size, _STREAMS * width):
            for index, total in enumerate(totals):
                total.value = total.value ^ e.load(memory + place + index * width, i64)
    for index, total in enumerate(totals):
        e.store(out + index * width, total)


@emitted
def _dots(e: Emitter, memory: Pointer, size: Any, out: Pointer, turns: Any) -> None:
    totals = [e.variable(e.zeros(i32)) for _ in range(_DOTS)]
    unsigned = e.load(memory, i8)
    for turn in e.range(0, turns):
        # operands that change, or LLVM would multiply once where the set has no one dot-product instruction
        place = memory + (turn & 1) * e.isa.width
        for index, total in enumerate(totals):
            total.value = e.dot(total, unsigned, e.load(place + index * e.isa.width, i8))
    for index, total in enumerate(totals):
        e.store(out + index * e.isa.width, total)


@emitted
def _tile_dots(e: Emitter, memory: Pointer, size: Any, out: Pointer, turns: Any) -> None:
    e.tile_configure(_tile_settings(e, out))
    for tile in range(4):
        e.tile_zero(tile)
        e.tile_load(4 + tile, memory, 64)
    for _ in e.range(0, turns):
        for tile in range(4):
            e.tile_dot(tile, 4 + tile // 2, 6 + tile % 2)
    for tile in range(4):
        e.tile_store(tile, out, 64)
    e.tile_release()


def _tile_settings(e: Emitter, place: Pointer) -> Pointer:
    """Write down eight tiles of 16 rows of 64 bytes, palette 1 (Intel SDM, LDTILECFG)."""
    row_bytes, rows = [64] * 8, [16] * 8
    settings = [1, *[0] * 15, *(b for count in row_bytes for b in (count, 0)), *[0] * 16, *rows, *[0] * 8]
    e.store(place, e.constant(settings, i8))
    return place


def _sums(e: Emitter, memory: Pointer, out: Pointer, turns: Any, lane: Any) -> None:
    width = e.isa.width
    pairs = [
        [e.variable(e.load(memory + (2 * pair + half) * width, lane)) for half in range(2)]
        for pair in range(_PAIRS)
    ]
    for _ in e.range(0, turns):
        for one, other in (*pairs, *(pair[::-1] for pair in pairs)):
            one.value = one.value + other.value
    for pair, (one, other) in enumerate(pairs):
        e.store(out + pair * width, one.value ^ other.value)


@emitted
def _byte_sums(e: Emitter, memory: Pointer, size: Any, out: Pointer, turns: Any) -> None:
    _sums(e, memory, out, turns, i8)


@emitted
def _word_sums(e: Emitter, memory: Pointer, size: Any, out: Pointer, turns: Any) -> None:
    _sums(e, memory, out, turns, i16)
