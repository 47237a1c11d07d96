"""The one loop around every kernel: gather rows of activations, compute a tile of sums, finish it.

A matrix product is a convolution with a 1 x 1 window over an image of one line, so one driver serves both::

    x uint8 NHWC --gather--> panel uint8 [rows, K] --block--> sums int32 [rows, outputs] --finish--> out

Output pixels are taken in blocks of rows, so that a panel stays in the cache: the columns of the whole
image (a full im2col) never exist. A *block* function is what one kernel module provides::

    block(weights, group, panel, rows, first, outputs, sums, work)

        weights   tuple of arrays, as the kernel's ``prepare`` laid them out
        group     the conv group
        panel     uint8 [rows_step, pitch]; the first `rows` rows hold K activations each, in the order
                  (kernel row, kernel column, input channel); the bytes behind K and behind `rows` exist and
                  may be anything
        first     the first output channel within the conv group: a multiple of the plan's `outputs_step`, or
                  of 64 where work was cut smaller for several threads
        outputs   how many; fewer than `outputs_step` only at the end of the conv group
        sums      int32 [rows_step, outputs_step], to be written: sum_k w8[first + m, k] * panel[r, k]
        work      uint8 [work_bytes], aligned to 64 bytes, for whatever the kernel needs

A kernel that wants the activations in another order, or tables made of them, also has a *stage* function,
called once for each panel before its blocks; what it leaves in `work` stays there until the next panel::

    stage(weights, group, panel, rows, work)

Zero points and biases enter in the epilogue, as ``bias[m] - x_zero * sum_k w8[m, k]``. All memory is made
before the first tile, one scratch for each thread, and kept for the calling thread's next layer: the system
takes longer to hand out fresh pages than a small layer takes to run.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.products.epilogue import Epilogue, finisher
from fgq.kernels.products.gather import Geometry, gatherer
from fgq.kernels.simd.atomics import LINE, add
from fgq.kernels.threads import rest, share

ALIGNMENT = 64
"""Bytes to which scratch and prepared weights are aligned: a cache line, and the widest register."""


_LARGE_PAGE = 1 << 21
"""Size of a large page on x86-64 and on most others."""

_LARGE = 1 << 19
"""Arrays from this size on are worth one."""

_PIECES_PER_THREAD = 8
"""Pieces of work for each thread: a late or disturbed one leaves its share to the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a kernel wants its work cut.

    Parameters
    ----------
    rows_step : int
        Most rows of activations in a block.
    outputs_step : int
        Most output channels in a block.
    pitch : int
        Bytes from one row of a gathered panel to the next, K at least.
    work_bytes : int
        Scratch that the kernel needs beside panel and sums.
    direct : bool
        Whether rows of the input may be handed over as they lie, K bytes apart, where nothing needs
        gathering; then no byte behind the last row may be read.
    """

    rows_step: int
    outputs_step: int
    pitch: int
    work_bytes: int = 0
    direct: bool = False


@jit
def _leave(
    weights: Any, group: int, panel: NDArray[np.uint8], rows: int, work: NDArray[np.uint8]
) -> None: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Engine:
    """A layer's weights in the form of one kernel, with the code that runs on them.

    Parameters
    ----------
    block : callable
        The compiled block function.
    tier : int
        Index of the instruction set that it was made for.
    weights : tuple of ndarray
        Its weights, each array with the conv group as first axis.
    plan : callable
        ``plan(rows, outputs)`` returns the :class:`Plan` for that many rows and output channels of a group,
        for one thread; the driver makes smaller blocks where several threads would stand idle.
    stage : callable
        The compiled stage function; nothing is done by default.
    """

    block: Any
    tier: int
    weights: tuple[NDArray[Any], ...]
    plan: Callable[[int, int], Plan]
    stage: Any = _leave


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an uninitialised array whose data begin at a multiple of 64 bytes."""
    memory = np.empty(math.prod(shape) * np.dtype(dtype).itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, memory, _to_alignment(memory))


@jit
def _to_alignment(memory: NDArray[np.uint8]) -> int:
    """Return how many bytes of an array lie before the first aligned one."""
    return -memory.ctypes.data % ALIGNMENT


def in_large_pages(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array, if it is large a copy in pages of 2 MiB where Linux has them.

    Weights are read from front to back once a call, and with small pages the processor looks up where the
    next one lies more often than it needs to wait for the data themselves.
    """
    if array.nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return array
    memory = mmap.mmap(-1, array.nbytes + _LARGE_PAGE)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # this kernel has none
        return array
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % _LARGE_PAGE
    copy = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class _Held(threading.local):
    """Memory that a thread keeps from one layer to the next."""

    def __init__(self) -> None:
        self._memory = aligned((0,), np.uint8)

    def borrow(self, count: int, size: int) -> NDArray[np.uint8]:
        """Return `count` pieces of `size` bytes, which hold anything."""
        if self._memory.size < count * size:
            self._memory = aligned((count * size,), np.uint8)
        return self._memory[: count * size].reshape(count, size)


held = _Held()

_NOTHING = np.empty(0, np.uint8)
_ALL = np.empty(0, np.int64)
"""In place of what is taken: one thread does all."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """How one shape of input is cut into units of work; the same for every call with that shape.

    Parameters
    ----------
    run : callable
        The compiled loop.
    numbers, cut : ndarray of int64
        What it is told of the geometry and of the blocks.
    units : int
        How many blocks there are.
    threads : int
        How many threads share them.
    scratch_bytes : int
        Memory for each.
    """

    run: Any
    numbers: NDArray[np.int64]
    cut: NDArray[np.int64]
    units: int
    threads: int
    scratch_bytes: int


def plan_job(engine: Engine, geometry: Geometry, outputs: int, threads: int) -> Job:
    """Cut the work of a layer into units.

    Parameters
    ----------
    engine : Engine
        The prepared weights.
    geometry : Geometry
        How the window moves over the input.
    outputs : int
        Output channels of one conv group.
    threads : int
        How many threads to use at most.
    """
    plan = engine.plan(max(geometry.rows, 1), outputs)
    rows_step, outputs_step = _shared(plan, geometry, outputs, threads)
    row_blocks, output_blocks = -(-geometry.rows // rows_step), -(-outputs // outputs_step)
    units = geometry.groups * row_blocks * output_blocks
    panel_bytes = _rounded(rows_step * plan.pitch + ALIGNMENT)
    sums_bytes = _rounded(4 * rows_step * plan.outputs_step)
    piece = _piece(geometry.groups * row_blocks, output_blocks, threads)
    cut = np.array(
        [rows_step, outputs_step, plan.pitch, plan.direct and geometry.gapless, panel_bytes, sums_bytes,
         row_blocks, output_blocks, outputs, plan.outputs_step, piece],
        np.int64,
    )  # fmt: skip
    return Job(
        run=compose(engine.tier, engine.block, engine.stage),
        numbers=geometry.numbers,
        cut=cut,
        units=units,
        threads=min(threads, units),
        scratch_bytes=panel_bytes + sums_bytes + _rounded(plan.work_bytes),
    )


def bind(
    job: Job,
    weights: tuple[NDArray[Any], ...],
    x: NDArray[np.uint8],
    bias: NDArray[np.int32],
    epilogue: Epilogue,
    out: NDArray[Any],
    residual: NDArray[Any] | None,
    scratch: NDArray[np.uint8],
) -> Callable[[], None]:
    """Return the call that runs a layer on these arrays, which a network makes again and again.

    Parameters
    ----------
    job : Job
        The work, as :func:`plan_job` cut it.
    weights : tuple of ndarray
        The engine's.
    x : ndarray of uint8
        Activations in C order.
    bias : ndarray of int32, shape (M,)
        Added to the sums, the zero point's share included.
    epilogue : Epilogue
        What becomes of the sums.
    out : ndarray, shape (.., M)
        Written, C order.
    residual : ndarray, shape of `out`, optional
        Added by the epilogue.
    scratch : ndarray of uint8, shape (job.threads, job.scratch_bytes)
        Memory that holds nothing between calls.
    """
    if out.size == 0:
        return _nothing
    flat, result = x.reshape(-1), out.reshape(-1).view(np.uint8)
    added = _NOTHING if residual is None else residual.reshape(-1).view(np.uint8)
    before = weights, flat, job.numbers, job.cut
    after = bias, epilogue.integers, epilogue.factors(bias.size), epilogue.floats, added, result
    if job.threads == 1:
        # large weights leave nothing of the interpreter in the near caches: every step here counts
        return partial(job.run, *before, 0, job.units, _ALL, scratch[0], *after)

    def work(thread: int, taken: NDArray[np.int64]) -> None:
        job.run(*before, thread, job.units, taken, scratch[thread], *after)

    return partial(share, job.units, job.threads, work)


def _nothing() -> None: ...


def _shared(plan: Plan, geometry: Geometry, outputs: int, threads: int) -> tuple[int, int]:
    """Cut smaller, so that each of several threads gets a few units: rows first, then outputs."""
    rows_step, outputs_step = plan.rows_step, plan.outputs_step
    if threads == 1:
        return rows_step, outputs_step
    # each cut of the rows reads the weights once more
    columns = geometry.groups * -(-outputs // outputs_step)
    while rows_step >= 128 and columns * -(-geometry.rows // rows_step) < 4 * threads:
        rows_step //= 2
        rows_step += -rows_step % 32
    # every thread makes panels of its own of the rows, so outputs are cut no finer than need be
    row_units = geometry.groups * -(-geometry.rows // rows_step)
    while outputs_step >= 128 and row_units * -(-outputs // outputs_step) < threads:
        outputs_step //= 2
        outputs_step += -outputs_step % 64
    return rows_step, outputs_step


def _piece(row_units: int, output_blocks: int, threads: int) -> int:
    """Return how many units a thread takes at a time: whole panels of rows, where there are many."""
    units = row_units * output_blocks
    piece = max(1, units // (_PIECES_PER_THREAD * threads))
    return piece - piece % output_blocks or piece


def _rounded(count: int) -> int:
    return count + -count % ALIGNMENT


@cache
def compose(tier: int, block: Any, stage: Any) -> Any:
    """Return the compiled loop around one block and one stage function, for one instruction set."""
    gather, finish = gatherer(tier), finisher(tier)

    @jit
    def run(
        weights: Any,
        x: NDArray[np.uint8],
        geometry: NDArray[np.int64],
        cut: NDArray[np.int64],
        thread: int,
        units: int,
        taken: NDArray[np.int64],
        scratch: NDArray[np.uint8],
        bias: NDArray[np.int32],
        integers: NDArray[np.int64],
        factors: NDArray[np.float32],
        floats: NDArray[np.float32],
        residual: NDArray[np.uint8],
        out: NDArray[np.uint8],
    ) -> None:
        rows_step, outputs_step, pitch = cut[0], cut[1], cut[2]
        direct, panel_bytes, sums_bytes = cut[3] != 0, cut[4], cut[5]
        row_blocks, output_blocks, group_outputs, widest = cut[6], cut[7], cut[8], cut[9]
        all_rows, channels = geometry[0], geometry[3]
        gathered = scratch[: rows_step * pitch].reshape(rows_step, pitch)
        sums = (
            scratch[panel_bytes : panel_bytes + 4 * rows_step * widest]
            .view(np.int32)
            .reshape(rows_step, widest)
        )
        work = scratch[panel_bytes + sums_bytes :]
        held, panel = -1, gathered
        piece, at = units, 0
        if taken.size:
            piece = cut[10]
            at = add(taken, 0, piece)
        while at < units:
            stop = min(at + piece, units)
            for unit in range(at, stop):
                # neighbouring units share their rows
                place, output_block = divmod(unit, output_blocks)
                group, row_block = divmod(place, row_blocks)
                row = row_block * rows_step
                rows = min(rows_step, all_rows - row)
                first = output_block * outputs_step
                outputs = min(outputs_step, group_outputs - first)
                if place != held:
                    if direct and rows == rows_step:
                        panel = x[row * channels : (row + rows) * channels].reshape(rows_step, channels)
                    else:
                        panel = gathered
                        gather(x, geometry, group, row, rows, panel)
                    stage(weights, group, panel, rows, work)
                    held = place
                block(weights, group, panel, rows, first, outputs, sums, work)
                finish(
                    sums,
                    rows,
                    outputs,
                    row,
                    group * group_outputs + first,
                    bias,
                    integers,
                    factors,
                    floats,
                    residual,
                    out,
                )
            if taken.size:
                add(taken, LINE, stop - at)
                at = add(taken, 0, piece)
            else:
                at = units
        if thread:
            rest(taken)

    return run
