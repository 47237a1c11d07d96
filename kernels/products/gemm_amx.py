"""Matrix product on AMX tiles: int8 weights against uint8 activations, 16,384 products an instruction.

Algorithm
    Two tiles of 16 rows x 64 k, loaded from the rows of a panel, meet two of 16 outputs, which lie ready
    (:mod:`fgq.kernels.products.panels`); four sums of 16 x 16 stay in tile registers while k runs to its
    end::

                 B0        B1             per step of 64 k:  4 tile loads, 4 tdpbusd
        A0    sums 0    sums 1            a last single row tile meets four output tiles:
        A1    sums 2    sums 3                               5 tile loads, 4 tdpbusd

    A product takes 16 cycles whether its rows are 1 or 16, so the last tile's rows are not counted: those
    behind the last one exist and are never looked at. Where K is short, 32 rows stay in the nearest cache
    while all panels of the block pass by. Where it is long, two panels stay while all rows pass, and the
    next two are asked for meanwhile. Rows of a gathered panel are an odd number of cache lines apart, which
    spreads a tile over the sets of the cache.

Compact weights
    are decoded two panels and some steps of k at a time, for the nearest cache, and meet all rows of the
    block there; farther away the decoder would wait for its own writes. Each block of rows decodes the
    weights anew, so blocks are taller than those of unpacked weights, and narrower. Sums wait for the next
    such chunk side by side, 1,024 bytes each.

Accumulators
    int32. They hold K <= 66,000 products, 66,000 * 255 * 127 < 2**31; the instruction wraps and never
    saturates, so partial sums are harmless.

Instructions
    tdpbusd and tileloadd at 1 / 16,384 each per multiplication, and 64 vector instructions or so for each
    1,024 compact weights. Needs AMX-INT8 and AVX-512, and Linux's leave to use the tiles
    (:mod:`fgq.kernels.simd.isa`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.products.driver import Engine, Plan
from fgq.kernels.products.panels import (
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
from fgq.kernels.products.weights import Weight
from fgq.kernels.simd.emit import Emitter, Pointer, Value, emitted, i8
from fgq.kernels.simd.isa import InstructionSet, index_of

_ROWS = 16
"""Rows in a tile."""

_PAIR = 2 * _ROWS
"""Rows in a pair of tiles; blocks are multiples of it."""

_SHAPES = [1] + 15 * [0] + 8 * [DEPTH, 0] + 16 * [0] + 8 * [_ROWS] + 8 * [0]
"""What ldtilecfg reads: palette 1, and for eight registers the bytes of a row and the rows."""

_SETTINGS = len(_SHAPES)
"""Bytes for that at the beginning of the work memory."""

_NEAR = 1024
"""Longest K for which 32 rows of activations stay in the nearest cache while panels of weights pass by."""

_PANEL_BYTES = 1 << 19
"""Memory for a block's activations, and for its weights: each a quarter of a second-level cache."""

_SUMS = 1 << 14
"""Sums in a block."""

_WIDEST = 256
"""Outputs in a block."""

_DECODED_ROWS = 400
"""Rows that compact weights are decoded for at once: decoding takes as long as some two row tiles."""

_FAR_BYTES = 1 << 20
"""Weights beyond this do not stay in the second-level cache from block to block."""

_CHUNK = 9
"""Most steps of k for which compact weights are decoded at a time, so that they stay in the nearest cache."""

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
        If the weights cannot be packed (:func:`fgq.kernels.products.panels.pack_compact`).
    """
    reduction = matrices[0].shape[1]
    steps, tier = steps_of(reduction), index_of(isa)
    depth = steps * DEPTH
    pitch = depth + DEPTH * (1 - steps % 2)
    direct = reduction % DEPTH == 0 and reduction < _NEAR
    coding, weights = pack_compact(matrices) if compact else (None, pack(matrices))
    numbers = (0, 0, 0) if coding is None else (coding.bits, coding.run, coding.planes)

    def outputs_of(room: int, outputs: int) -> int:
        widest = max(OUTPUTS_MULTIPLE, min(_WIDEST, room))
        return min(_up(outputs, OUTPUTS_MULTIPLE), widest - widest % OUTPUTS_MULTIPLE)

    def plan(rows: int, outputs: int) -> Plan:
        most = max(_PAIR, _PANEL_BYTES // depth)
        if compact:
            # as few blocks as can be, all alike
            blocks = -(-rows // min(most, _DECODED_ROWS))
            rows_step = _up(-(-rows // blocks), _PAIR)
            outputs_step = outputs_of(_SUMS // rows_step, outputs)
            decoded = (2 * _CHUNK + 2 * rows_step // _ROWS) * TILE_BYTES
        else:
            outputs_step = outputs_of(_PANEL_BYTES // depth, outputs)
            most = max(_PAIR, min(_SUMS // outputs_step, most))
            rows_step = min(_up(rows, _PAIR), most - most % _PAIR)
            if direct and 4 * _PAIR <= rows < rows_step and outputs * depth <= _FAR_BYTES:
                rows_step -= _PAIR  # the rest is gathered, rather than all
            decoded = 0
        return Plan(
            rows_step=rows_step, outputs_step=outputs_step, pitch=pitch, direct=direct,
            work_bytes=_SETTINGS + decoded,
        )  # fmt: skip

    return Engine(
        block=_block(tier, *numbers),
        tier=tier,
        weights=(weights, np.full((len(matrices), 1), reduction, np.int64)),
        plan=plan,
    )


def _up(count: int, multiple: int) -> int:
    return count + -count % multiple


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
            tier, bits, run, planes, weights[0][group], weights[0].shape[1], weights[1][group, 0], panel,
            panel.shape[1], rows, first, outputs, sums, sums.shape[1], work,
        )  # fmt: skip

    return block


@emitted
def _multiply(
    e: Emitter, bits: Any, run: Any, planes: Any, weights: Any, weight_bytes: Any, reduction: Any,
    panel: Any, pitch: Any, rows: Any, first: Any, outputs: Any, sums: Any, widest: Any, work: Any,
) -> None:  # fmt: skip
    coding = Coding(bits=bits, run=run, planes=planes) if bits else None
    steps = (reduction + (DEPTH - 1)) // DEPTH
    row_of_tiles = steps * TILE_BYTES
    rows_in_tiles = Tiles(panel, stride=pitch * _ROWS, step=DEPTH, line=pitch)
    sums_in_tiles = Tiles(sums, stride=widest * (4 * _ROWS), step=4 * OUTPUTS, line=widest * 4)
    row_tiles = (rows + (_ROWS - 1)) // _ROWS
    columns = (outputs + (2 * OUTPUTS - 1)) // (2 * OUTPUTS)
    e.store(work, e.constant(_SHAPES, i8))
    e.tile_configure(work)
    if coding:
        weights = weights + first // OUTPUTS * (steps * coding.record_bytes)
        decoded = Tiles(work + _SETTINGS, stride=_CHUNK * TILE_BYTES)
        waiting = Tiles(decoded.at(2).begin, stride=2 * TILE_BYTES)
        chunks = (steps + (_CHUNK - 1)) // _CHUNK
        for column in e.range(0, columns):
            for chunk in e.range(0, chunks):
                begin = steps * chunk // chunks
                count = steps * (chunk + 1) // chunks - begin
                records = weights + (2 * column * steps + begin) * coding.record_bytes
                for step in e.range(0, count):
                    for index in e.range(0, 2):
                        record = records + (index * steps + step) * coding.record_bytes
                        decode_tile(e, record, coding, decoded.at(index, step).begin)
                # sums wait for their next chunk side by side, and go to their rows at the end
                last = (chunk + 1).equals(chunks)
                for pair in e.range(0, (row_tiles + 1) // 2):
                    left, out = rows_in_tiles.at(2 * pair, begin), sums_in_tiles.at(2 * pair, 2 * column)
                    kept = waiting.at(2 * pair)
                    out = Tiles(
                        Pointer(e, e.builder.select(last.ir, out.begin.ir, kept.begin.ir)),
                        stride=e.choose(last, out.stride, kept.stride),
                        step=e.choose(last, e.number(out.step), kept.step),
                        line=e.choose(last, out.line, kept.line),
                    )
                    _products(e, left, 2, decoded, 2, count, out, kept=(chunk, kept))
    else:
        weights = Tiles(weights, row_of_tiles).at(first // OUTPUTS)
        near, pairs = reduction <= _NEAR, row_tiles // 2
        far = e.choose(near, e.number(0), weight_bytes) > _FAR_BYTES
        asking = e.choose(far, e.number(_ASKING), 0)
        for outer in e.range(0, e.choose(near, pairs, columns)):
            for inner in e.range(0, e.choose(near, columns, pairs)):
                pair, column = e.choose(near, outer, inner), e.choose(near, inner, outer)
                left, right = rows_in_tiles.at(2 * pair), weights.at(2 * column)
                out = sums_in_tiles.at(2 * pair, 2 * column)
                asks = pair < asking
                with e.when(asks):
                    following = right.at(2).begin + pair * (steps * (64 * _ASKED_LINES))
                    _products(e, left, 2, right, 2, steps, out, asked=following)
                with e.when(~asks):
                    _products(e, left, 2, right, 2, steps, out)
        with e.when((row_tiles % 2).equals(1)):
            last = row_tiles - 1
            for column in e.range(0, (outputs + (OUTPUTS_MULTIPLE - 1)) // OUTPUTS_MULTIPLE):
                right, out = weights.at(4 * column), sums_in_tiles.at(last, 4 * column)
                _products(e, rows_in_tiles.at(last), 1, right, 4, steps, out)
    e.tile_release()


@dataclass(frozen=True)
class Tiles:
    """Rows of tiles in memory.

    Parameters
    ----------
    begin : Pointer
        Where the first tile begins.
    stride, step, line : Value or int
        Bytes from one row of tiles to the next, from one tile of a row to the next, and from one line of a
        tile to the next.
    """

    begin: Pointer
    stride: Any
    step: Any = TILE_BYTES
    line: Any = DEPTH

    def at(self, index: Any, step: Any = 0) -> Tiles:
        """Return the same from another row of tiles on, and from a later step."""
        return replace(self, begin=self.begin + index * self.stride + step * self.step)

    def load(self, e: Emitter, register: int, index: int, step: Any) -> None:
        """Load a tile."""
        e.tile_load(register, self.at(index, step).begin, self.line)


def _products(
    e: Emitter, left: Tiles, height: int, right: Tiles, width: int, steps: Value, out: Tiles, *,
    kept: tuple[Value, Tiles] | None = None, asked: Pointer | None = None,
) -> None:  # fmt: skip
    """Emit sums of `height` x `width` tiles over some steps of k, which go to `out`.

    They start from the tiles `kept` unless the number before these is zero. Meanwhile the cache lines from
    `asked` on are asked for.
    """
    places = [(row, column) for row in range(height) for column in range(width)]
    if kept is not None:
        with e.when(kept[0] > 0):
            for tile, (row, column) in enumerate(places):
                kept[1].load(e, tile, row, column)
    with e.when(e.number(0 if kept is None else kept[0]) < 1):
        for tile in range(4):
            e.tile_zero(tile)
    # left tiles behind the sums, right tiles in the registers that are left
    rights = [4 + height + column % (4 - height) for column in range(width)]
    for step in e.range(0, steps):
        for column in range(2):
            right.load(e, rights[column], column, step)
        for row in range(height):
            left.load(e, 4 + row, row, step)
            for column in range(width):
                if column > 1:
                    right.load(e, rights[column], column, step)
                e.tile_dot(row * width + column, 4 + row, rights[column])
        if asked is not None:
            for line in range(_ASKED_LINES):
                e.prefetch(asked + (step * (64 * _ASKED_LINES) + 64 * line), level=2)
    for tile, (row, column) in enumerate(places):
        e.tile_store(tile, out.at(row, column).begin, out.line)
