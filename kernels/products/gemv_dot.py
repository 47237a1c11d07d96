"""Matrix product for a few rows on integer dot products, with weights as int8 or on packed codes.

Algorithm
    Four neighbouring k of a row of activations are spread over a register; one dot-product instruction
    multiplies them by four k of 16 outputs (8 where registers have 32 bytes). The layout is that of
    :mod:`fgq.kernels.products.panels`, the same for few rows and for many. Each weight is used once for each
    row, so the time goes into reading: packed codes, a quarter of the bytes, are the faster ones.

    Packed codes are not unpacked. With two bits a byte holds four codes c = code + 1 as
    c0 + 4 c1 + 16 c2 + 64 c3, and a mask leaves 4 c1 or 16 c2, an operand as good as c1 or c2: products with
    16 c2 are added first, the sum is shifted right by two, those with 4 c1 are added, and so on; nothing is
    lost, as all terms so far are multiples. c3 would not fit a signed byte and is shifted by two first.
    With four bits the upper code is shifted. The surplus of ``sum of x`` (7 times it with four bits) is
    where the sum of each run begins, so that it costs no instruction. A run of k that shares a scale ends
    with one multiplication by it.

Accumulators
    int32. Within a run of 64 k: 64 * 255 * 32 < 2**31 with two bits, 64 * 255 * 14 < 2**31 with four. The sum
    of a ternary run is below 2**15, so that vpmaddwd multiplies it by its scale.

Cost
    ``fast`` takes 1/64 instruction per MAC and 8 bits a weight; ``compact`` at N=64 takes 0.037 and 2.125
    bits, at 512 bits and for one row.

Instruction sets: all that :meth:`fgq.kernels.simd.emit.Emitter.dot` knows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.products.driver import Engine, Plan
from fgq.kernels.products.panels import (
    DEPTH,
    LARGEST_CODE,
    OUTPUTS,
    OUTPUTS_MULTIPLE,
    TILE_BYTES,
    Coding,
    pack,
    pack_compact,
    steps_of,
)
from fgq.kernels.products.weights import Weight
from fgq.kernels.simd.emit import Emitter, Pointer, Value, Variable, emitted, i8, i16, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, InstructionSet, index_of

ROWS = 8
"""Most rows in a block; more are taken in several blocks."""

_LINE = 64

_OUTPUTS_STEP = 256
"""Outputs in a block: the second half of eight rows finds their weights in the second-level cache."""


def prepare(matrices: list[Weight], isa: InstructionSet, *, compact: bool = False) -> Engine:
    """Lay out weights for this kernel.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights [M, K].
    isa : InstructionSet
        With vectors.
    compact : bool
        Whether to keep the codes packed.

    Raises
    ------
    KernelError
        If the instruction set has no vectors, or packed codes cannot hold the weights: see
        :func:`fgq.kernels.products.panels.pack_compact`.
    """
    if not isa.width:
        raise KernelError(f"dot product: found instruction set {isa.name}, wanted one with vectors")
    reduction = matrices[0].shape[1]
    pitch = steps_of(reduction) * DEPTH
    tier = index_of(isa)
    stage: dict[str, Any] = {}
    if compact:
        coding, weights = pack_compact(matrices)
        block = compact_block(tier, coding.bits, coding.run, coding.planes)
        stage["stage"] = compact_stage(coding.bits, coding.run)
        work_bytes = 4 * pitch // coding.run
    else:
        weights = pack(matrices)
        block = fast_block(tier)
        work_bytes = 0

    def plan(rows: int, outputs: int) -> Plan:
        held = max(1, min(rows, ROWS))
        return Plan(
            rows_step=held,
            outputs_step=min(outputs + -outputs % OUTPUTS_MULTIPLE, _OUTPUTS_STEP),
            pitch=pitch,
            work_bytes=held * work_bytes,
            direct=pitch == reduction,
        )

    return Engine(block=block, tier=tier, weights=(weights,), plan=plan, **stage)


def _vectors(width: int, rows: int) -> int:
    """Return how many vectors of outputs are taken together, as many as registers hold the sums of."""
    return {1: 4, 2: 4, 4: 2}[rows] if width == _LINE else {1: 4, 2: 2, 4: 1}[rows]


class _Tile:
    """The sums of some rows and vectors of outputs, and where their operands lie.

    Parameters
    ----------
    e : Emitter
        Writes the code.
    rows : int
        How many rows.
    x : Pointer
        The first row of activations.
    pitch : Value
        Bytes from one row to the next.
    """

    def __init__(self, e: Emitter, rows: int, x: Pointer, pitch: Value) -> None:
        self.e, self.rows, self.x, self.pitch = e, rows, x, pitch
        parts = _LINE // e.isa.width
        count = _vectors(e.isa.width, rows)
        self.vectors = [(index // parts, index % parts * e.isa.width) for index in range(count)]
        """Panel, and first byte within a line."""
        self.cells = [(row, vector) for row in range(rows) for vector in range(count)]

    def zeros(self) -> dict[tuple[int, int], Variable]:
        """Return a sum for each row and vector."""
        return {cell: self.e.variable(self.e.zeros(i32)) for cell in self.cells}

    def activations(self, offset: Any) -> list[Value]:
        """Return four activations of each row in all lanes."""
        at = self.x + offset
        return [self.e.load_spread(at + self.pitch * row, i32) for row in range(self.rows)]

    def store(self, totals: dict[tuple[int, int], Any], sums: Pointer, sums_pitch: Value) -> None:
        """Write the sums, rows `sums_pitch` bytes apart."""
        for (row, vector), total in totals.items():
            panel, byte = self.vectors[vector]
            self.e.store(sums + (sums_pitch * row + (panel * _LINE + byte)), total)


@emitted
def multiply(
    e: Emitter, rows: int, tiles: Any, steps: Any, x: Any, pitch: Any, sums: Any, sums_pitch: Any
) -> None:
    """Write the sums of a few vectors of outputs; tiles: int8 weights, x: uint8 rows `pitch` bytes apart."""
    tile = _Tile(e, rows, x, pitch)
    # two chains for each sum of a single row, since an instruction waits for the one before it in its chain
    chains = [tile.zeros() for _ in range(2 if rows == 1 else 1)]
    for step in e.range(0, steps):
        line = tiles + step * TILE_BYTES
        for k4 in range(DEPTH // 4):
            totals = chains[k4 % len(chains)]
            seen = tile.activations(step * DEPTH + 4 * k4)
            for vector, (panel, byte) in enumerate(tile.vectors):
                weights = e.load(line + (steps * (TILE_BYTES * panel) + (k4 * _LINE + byte)), i8)
                for row in range(rows):
                    totals[row, vector].value = e.dot(totals[row, vector], seen[row], weights)
    first, others = chains[0], chains[1:]
    tile.store(
        {cell: sum((chain[cell].value for chain in others), first[cell].value) for cell in tile.cells},
        sums, sums_pitch,
    )  # fmt: skip


@cache
def fast_block(tier: int) -> Any:
    """Return the block function for int8 weights."""
    width = INSTRUCTION_SETS[tier].width
    one, two, four = (_vectors(width, rows) * width // 4 for rows in (1, 2, 4))

    @jit
    def block(
        weights: Any, group: int, panel: NDArray[np.uint8], rows: int, first: int, outputs: int,
        sums: NDArray[np.int32], work: NDArray[np.uint8],
    ) -> None:  # fmt: skip
        tiles, pitch, sums_pitch = weights[0][group], panel.shape[1], 4 * sums.shape[1]
        steps = pitch // DEPTH
        row = 0
        while row < rows:
            left = rows - row
            taken = 4 if left >= 4 else 2 if left >= 2 else 1
            x = panel[row:]
            output = 0
            while output < outputs:
                panels, within = divmod(first + output, OUTPUTS)
                at = tiles[panels * steps * TILE_BYTES + 4 * within :]
                made = sums[row, output:]
                if taken == 4:
                    multiply(tier, 4, at, steps, x, pitch, made, sums_pitch)
                    output += four
                elif taken == 2:
                    multiply(tier, 2, at, steps, x, pitch, made, sums_pitch)
                    output += two
                else:
                    multiply(tier, 1, at, steps, x, pitch, made, sums_pitch)
                    output += one
            row += taken

    return block


def _operand(bits: int, run: int, place: int) -> tuple[int, int, int]:
    """Return how the `place`-th code of a byte becomes an operand: shift right, mask, log2 of its weight."""
    if bits == 4 or run == 4:  # nothing to add before the sum is shifted
        return bits * place, (1 << bits) - 1, 0
    return (2, 0x30, 4) if place == 3 else (0, 3 << 2 * place, 2 * place)


def _surplus_shift(bits: int, run: int, index: int) -> int:
    """Return log2 of the largest weight in the `index`-th run of a tile: what its sum begins with has it."""
    places = [k4 % (8 // bits) for k4 in range(index * run // 4, (index + 1) * run // 4)]
    return max(_operand(bits, run, place)[2] for place in places)


@emitted
def multiply_packed(
    e: Emitter, bits: int, run: int, planes: int, rows: int, records: Any, within: Any, steps: Any, x: Any,
    pitch: Any, surplus: Any, surplus_pitch: Any, sums: Any, sums_pitch: Any,
) -> None:  # fmt: skip
    """Write the sums of a few vectors of outputs, from the output `within` a panel on.

    records: packed codes and scales; surplus: int32, rows `surplus_pitch` bytes apart.
    """
    coding = Coding(bits=bits, run=run, planes=planes)
    tile = _Tile(e, rows, x, pitch)
    totals = tile.zeros()
    each, runs = 8 // bits, DEPTH // run
    for step in e.range(0, steps):
        for index in range(runs):
            begin = surplus + (step * runs + index) * 4
            starts = [e.load_spread(begin + surplus_pitch * row, i32) for row in range(rows)]
            for plane in range(planes):
                record = records + (step * coding.record_bytes + plane * coding.plane_bytes)
                ranked = sorted(
                    (-_operand(bits, run, k4 % each)[2], k4)
                    for k4 in range(index * run // 4, (index + 1) * run // 4)
                )
                parts = {(row, vector): starts[row] for row, vector in tile.cells}
                for place, (weight, k4) in enumerate(ranked):
                    shift, mask, _ = _operand(bits, run, k4 % each)
                    seen = tile.activations(step * DEPTH + 4 * k4)
                    following = ranked[place + 1][0] if place + 1 < len(ranked) else 0
                    for vector, (panel, byte) in enumerate(tile.vectors):
                        offset = (
                            within * 4 + steps * (coding.record_bytes * panel) + (k4 // each * _LINE + byte)
                        )
                        line = e.load(record + offset, i32)
                        codes = line.shifted_in_zeros(shift) if shift else line
                        codes = codes & (mask * 0x01010101)
                        for row in range(rows):
                            part = e.dot(parts[row, vector], seen[row], codes)
                            parts[row, vector] = part >> (following - weight) if following > weight else part
                for vector, (panel, byte) in enumerate(tile.vectors):
                    behind = coding.code_bytes + OUTPUTS * index + byte // 4
                    offset = within + steps * (coding.record_bytes * panel) + behind
                    scale = e.load(record + offset, i8, e.lanes(i32)).unsigned(i32)
                    for row in range(rows):
                        part = parts[row, vector]
                        if bits == 2:
                            totals[row, vector] += e.pair_sums(part.bits_as(i16), scale.bits_as(i16))
                        else:
                            totals[row, vector] += part * scale
    tile.store(totals, sums, sums_pitch)


@cache
def compact_stage(bits: int, run: int) -> Any:
    """Return the stage function for packed codes: where the sum of each run begins, int32 [rows, runs]."""
    offset = 1 if bits == 2 else LARGEST_CODE
    even, odd = (_surplus_shift(bits, run, index * (DEPTH // run > 1)) for index in range(2))

    @jit
    def stage(weights: Any, group: int, panel: NDArray[np.uint8], rows: int, work: NDArray[np.uint8]) -> None:
        runs = panel.shape[1] // run
        surplus = work[: 4 * rows * runs].view(np.int32)
        for row in range(rows):
            for index in range(runs):
                total = 0
                for k in range(index * run, (index + 1) * run):
                    total += panel[row, k]
                surplus[row * runs + index] = -(offset * total << (odd if index % 2 else even))

    return stage


@cache
def compact_block(tier: int, bits: int, run: int, planes: int) -> Any:
    """Return the block function for packed codes."""
    width = INSTRUCTION_SETS[tier].width
    one, two, four = (_vectors(width, rows) * width // 4 for rows in (1, 2, 4))
    record_bytes = Coding(bits=bits, run=run, planes=planes).record_bytes

    @jit
    def block(
        weights: Any, group: int, panel: NDArray[np.uint8], rows: int, first: int, outputs: int,
        sums: NDArray[np.int32], work: NDArray[np.uint8],
    ) -> None:  # fmt: skip
        records, pitch, sums_pitch = weights[0][group], panel.shape[1], 4 * sums.shape[1]
        steps, runs = pitch // DEPTH, pitch // run
        row = 0
        while row < rows:
            left = rows - row
            taken = 4 if left >= 4 else 2 if left >= 2 else 1
            x, surplus = panel[row:], work[4 * row * runs :]
            output = 0
            while output < outputs:
                panels, within = divmod(first + output, OUTPUTS)
                at = records[panels * steps * record_bytes :]
                made = sums[row, output:]
                if taken == 4:
                    multiply_packed(
                        tier, bits, run, planes, 4, at, within, steps, x, pitch, surplus, 4 * runs,
                        made, sums_pitch,
                    )  # fmt: skip
                    output += four
                elif taken == 2:
                    multiply_packed(
                        tier, bits, run, planes, 2, at, within, steps, x, pitch, surplus, 4 * runs,
                        made, sums_pitch,
                    )  # fmt: skip
                    output += two
                else:
                    multiply_packed(
                        tier, bits, run, planes, 1, at, within, steps, x, pitch, surplus, 4 * runs,
                        made, sums_pitch,
                    )  # fmt: skip
                    output += one
            row += taken

    return block
