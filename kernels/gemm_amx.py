"""Matrix product on AMX tiles: int8 weights against uint8 activations, 16,384 products an instruction.

Algorithm
    The activations of a panel are brought into tiles of 16 rows x 64 k once (stage), each 1,024 bytes in a
    row, and the weights lie in such tiles from the start (:mod:`fgq.kernels.panels`): a tile that is spread
    over 16 distant rows costs a third of the rate. Two row tiles meet two output tiles, four sums of 16 x 16
    stay in tile registers while k runs to its end::

                 B0        B1             per step of 64 k:  4 tile loads, 4 tdpbusd
        A0    sums 0    sums 1            a last single row tile meets four output tiles:
        A1    sums 2    sums 3                               5 tile loads, 4 tdpbusd

    Row tiles are the inner loop, so that two panels of weights are read from far away once and again from
    the nearest caches; the next two are asked for meanwhile.

Compact weights
    are decoded into work memory by the first pair of row tiles, one step of 64 k ahead of the products, whose
    unit and those of the vectors work side by side.

Accumulators
    int32. They hold K <= 66,000 products, 66,000 * 255 * 127 < 2**31; the instruction wraps and never
    saturates, so partial sums are harmless.

Instructions
    tdpbusd and tileloadd at 1 / 16,384 each per multiplication; needs Linux's leave to use the tiles
    (:mod:`fgq.kernels.simd.isa`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.driver import Engine, Plan
from fgq.kernels.panels import (
    DEPTH,
    OUTPUTS,
    OUTPUTS_MULTIPLE,
    TILE_BYTES,
    Coding,
    decode_tile,
    pack,
    pack_compact,
    steps_of,
)
from fgq.kernels.simd.emit import Emitter, Pointer, Value, emitted, i8, i64
from fgq.kernels.simd.isa import InstructionSet, index_of
from fgq.kernels.weights import Weight

_ROWS = 16
"""Rows in a tile."""

_SETTINGS = 64
"""Bytes that tell the shapes of the tile registers; they come first in the work memory."""

_PANEL_BYTES = 1 << 19
"""Memory for the tiles of activations: a quarter of a second-level cache."""

_SUMS = 1 << 15
"""Sums in a block."""

_PAIR = 2 * _ROWS
"""Rows in a pair of tiles; blocks are multiples of it."""

_MOST_ROWS = 512
"""Rows in a block, where K is small."""

_FAR_BYTES = 1 << 20
"""Weights beyond this do not stay in the second-level cache from block to block."""

_ASKED_LINES = 8
"""Cache lines of the next two panels that are asked for in each step.."""

_ASKING = 4
"""..of the first pairs of row tiles: 8 * 64 * 4 = 2 * 1,024 bytes."""


def prepare(matrices: list[Weight], isa: InstructionSet, *, compact: bool = False) -> Engine:
    """Lay out the weights.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights, [M / groups, K] each.
    isa : InstructionSet
        One with AMX.
    compact : bool
        Keep the codes and scales, and decode them as they are used.

    Raises
    ------
    KernelError
        If the weights cannot be packed (:func:`fgq.kernels.panels.pack_compact`).
    """
    reduction = matrices[0].shape[1]
    steps, tier = steps_of(reduction), index_of(isa)
    coding, weights = pack_compact(matrices) if compact else (None, pack(matrices))
    numbers = (0, 0, 0) if coding is None else (coding.bits, coding.run, coding.planes)

    def plan(rows: int, outputs: int) -> Plan:
        most = min(_MOST_ROWS, max(_PAIR, _PANEL_BYTES // (steps * DEPTH)))
        rows_step = min(_up(rows, _PAIR), most - most % _PAIR)
        widest = max(OUTPUTS_MULTIPLE, _SUMS // rows_step)
        outputs_step = min(_up(outputs, OUTPUTS_MULTIPLE), widest - widest % OUTPUTS_MULTIPLE)
        decoded = 4 * (steps + 1) * TILE_BYTES if compact else 0
        work_bytes = _SETTINGS + rows_step // _ROWS * steps * TILE_BYTES + decoded
        return Plan(
            rows_step=rows_step,
            outputs_step=outputs_step,
            pitch=reduction,
            work_bytes=work_bytes,
            direct=True,
        )

    return Engine(block=_block(tier, *numbers), tier=tier, weights=(weights,), plan=plan, stage=_stage(tier))


def _up(count: int, multiple: int) -> int:
    return count + -count % multiple


@cache
def _stage(tier: int) -> Any:
    @jit
    def stage(weights: Any, group: int, panel: NDArray[np.uint8], rows: int, work: NDArray[np.uint8]) -> None:
        _tile_rows(tier, panel, panel.shape[1], rows, work)

    return stage


@cache
def _block(tier: int, bits: int, run: int, planes: int) -> Any:
    @jit
    def block(
        weights: Any,
        group: int,
        panel: NDArray[np.uint8],
        rows: int,
        first: int,
        outputs: int,
        sums: NDArray[np.int32],
        work: NDArray[np.uint8],
    ) -> None:
        _multiply(
            tier, bits, run, planes, weights[0][group], weights[0].shape[1], panel.shape[1], rows, first,
            outputs, sums, sums.shape[1], sums.shape[0], work,
        )  # fmt: skip

    return block


@emitted
def _tile_rows(e: Emitter, panel: Any, reduction: Any, rows: Any, work: Any) -> None:
    """Write rows of K bytes into tiles, and zeros behind K; nothing is written behind the last row."""
    shape = [1] + 15 * [0] + 8 * [DEPTH, 0] + 16 * [0] + 8 * [_ROWS] + 8 * [0]
    e.store(work, e.constant(shape, i8))
    steps = (reduction + (DEPTH - 1)) // DEPTH
    whole = reduction // DEPTH
    for row in e.range(0, rows):
        source = panel + row * reduction
        tile = work + (row // _ROWS * (steps * TILE_BYTES) + row % _ROWS * DEPTH + _SETTINGS)
        for step in e.range(0, whole):
            e.store(tile + step * TILE_BYTES, e.load(source + step * DEPTH, i8))
        for step in e.range(whole, steps):
            e.store(tile + step * TILE_BYTES, e.load_first(source + step * DEPTH, reduction % DEPTH, i8))


@emitted
def _multiply(
    e: Emitter, bits: Any, run: Any, planes: Any, weights: Any, weight_bytes: Any, reduction: Any, rows: Any,
    first: Any, outputs: Any, sums: Any, widest: Any, rows_step: Any, work: Any,
) -> None:  # fmt: skip
    coding = Coding(bits=bits, run=run, planes=planes) if bits else None
    steps = (reduction + (DEPTH - 1)) // DEPTH
    record = coding.record_bytes if coding else TILE_BYTES
    weights = weights + first // OUTPUTS * (steps * record)
    rows_tiles = Tiles(work + _SETTINGS, steps * TILE_BYTES)
    decoded = work + (rows_step // _ROWS * (steps * TILE_BYTES) + _SETTINGS)
    row_tiles = (rows + (_ROWS - 1)) // _ROWS
    pairs, pitch = row_tiles // 2, widest * 4
    asking = e.choose(e.number(weight_bytes) > _FAR_BYTES, e.smaller(pairs, _ASKING), 0)

    e.tile_configure(work)
    for wide in e.range(0, outputs, OUTPUTS_MULTIPLE):
        for output in e.range(wide, e.smaller(wide + OUTPUTS_MULTIPLE, outputs), 2 * OUTPUTS):
            given = weights + output // OUTPUTS * (steps * record)
            out = sums + output * 4
            if coding:
                stride = (steps + 1) * TILE_BYTES
                panels = Tiles(decoded + (output - wide) // OUTPUTS * stride, stride)
                _products(e, rows_tiles, 2, panels, 2, steps, out, pitch, decoding=(given, coding))
                begin: Any = 1
            else:
                panels = Tiles(given, steps * TILE_BYTES)
                for pair in e.range(0, asking):
                    far = given + (steps * (2 * TILE_BYTES) + pair * (steps * (64 * _ASKED_LINES)))
                    _products(
                        e, rows_tiles.at(2 * pair), 2, panels, 2, steps, out + pair * _PAIR * pitch, pitch,
                        asked=far,
                    )  # fmt: skip
                begin = asking
            for pair in e.range(begin, pairs):
                _products(e, rows_tiles.at(2 * pair), 2, panels, 2, steps, out + pair * _PAIR * pitch, pitch)
        with e.when((row_tiles % 2 + (row_tiles > (1 if coding else 0)).unsigned(i64)).equals(2)):
            if coding:
                panels = Tiles(decoded, (steps + 1) * TILE_BYTES)
            else:
                panels = Tiles(weights + wide // OUTPUTS * (steps * TILE_BYTES), steps * TILE_BYTES)
            last = row_tiles - 1
            out = sums + (last * _ROWS * pitch + wide * 4)
            _products(e, rows_tiles.at(last), 1, panels, 4, steps, out, pitch)
    e.tile_release()


@dataclass(frozen=True)
class Tiles:
    """Rows of tiles in memory: where the first begins, and the bytes from one row of tiles to the next."""

    begin: Pointer
    stride: Value

    def at(self, index: Any) -> Tiles:
        """Return the same from another row of tiles on."""
        return Tiles(self.begin + index * self.stride, self.stride)


def _products(
    e: Emitter, left: Tiles, height: int, right: Tiles, width: int, steps: Value, out: Pointer, pitch: Value,
    *, asked: Pointer | None = None, decoding: tuple[Pointer, Coding] | None = None,
) -> None:  # fmt: skip
    """Emit sums of `height` x `width` tiles over all of k.

    Meanwhile ask for the cache lines from `asked` on, or decode the right tiles from records.
    """

    def decode(step: Any) -> None:
        if decoding:
            records, coding = decoding
            for panel in range(width):
                place = records + (panel * steps + step) * coding.record_bytes
                decode_tile(e, place, coding, right.at(panel).begin + step * TILE_BYTES)

    # sums in tiles 0..3, left tiles behind them, right tiles in what is left
    rights = [4 + height + column % (4 - height) for column in range(width)]
    for tile in range(4):
        e.tile_zero(tile)
    decode(0)
    for step in e.range(0, steps):
        offset = step * TILE_BYTES
        decode(step + 1)
        for row in range(height):
            for column in range(width):
                if row == 0:
                    e.tile_load(rights[column], right.at(column).begin + offset, DEPTH)
                if column == 0:
                    e.tile_load(4 + row, left.at(row).begin + offset, DEPTH)
                e.tile_dot(row * width + column, 4 + row, rights[column])
        if asked is not None:
            for line in range(_ASKED_LINES):
                e.prefetch(asked + (step * (64 * _ASKED_LINES) + 64 * line), level=2)
    for row in range(height):
        for column in range(width):
            e.tile_store(row * width + column, out + (row * _ROWS * pitch + column * (4 * OUTPUTS)), pitch)
