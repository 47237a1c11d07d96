"""Multiplication-free matrix product for a few rows, AVX-512: lanes are output channels, tables are permuted.

Algorithm
    Three ternary weights make one of 27 codes. For three activations a table of the 27 sums that they can
    give is one register of 32 int16, and one vpermw looks up 32 output channels in it; its index is the
    low five bits of a lane, so that shifting a word of three codes is all the decoding. The sums of a
    segment are added in int16; two segments' sums, interleaved, are multiplied by their scales and added
    into int32 by one vpmaddwd: one multiplication per segment and output channel.

    ::

        16-bit lane:   15    14..10   9..5    4..0         64 weights: 7 words of 3 x 3 weights, and the last
                      spare   code    code    code                     one in two spare bits, "+" and "-"

        weights [conv group][pass][64 outputs][pair of segments][words of the one, words of the other,
                                                                 scales][2 vectors][32 lanes]

    The weights are read once, from front to back. A pass is as many pairs of segments as keep their
    tables in the nearest cache; it runs over all outputs, whose int32 sums wait in between. Tables are
    made anew in each pass, three activations at a time, with masked additions. Two to eight rows of
    activations share the loads and shifts of the codes. Scales are bytes: two of an output channel lie
    side by side in the order in which unpacking interleaves two registers.

Accumulators
    int16 in a segment of 64 positions at most: 64 * 255 < 2**15. A pair of products is below
    2 * 16320 * 255 < 2**24, and the sum over K is exact in int32 for whatever :mod:`fgq.kernels.weights`
    admits. Places behind the end of a group have code 0, for which a table's entry does not depend on the
    activation there.

Cost
    64 weights of 32 outputs take 21 permutes, 14 shifts, 20 additions, 2 masks and 2 masked additions for
    the 64th weight, and 3.5 instructions for the scale: 0.031 instructions per MAC, 1.875 bits per weight.

Instruction sets: AVX-512 BW, and those above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.driver import Engine, Plan, aligned
from fgq.kernels.simd.emit import Emitter, emitted, i8, i16, i32, i64
from fgq.kernels.simd.isa import INSTRUCTION_SETS, InstructionSet, index_of
from fgq.kernels.ternary_segments import Segments, cheapest, cut
from fgq.kernels.weights import Weight

ROWS = 8
"""Most rows in a block; more are taken in several blocks."""

LENGTHS = (4, 9, 18, 33, 64)
"""Segment lengths: what fills one, one, two, four and seven words a segment, at 4 a word for two."""

_TABLE_BYTES = 24 << 10
"""Tables of a pass, which share the nearest cache with the stream of weights."""

_LINE, _VECTORS, _LANES = 64, 2, 32
_OUTPUTS = _VECTORS * _LANES

_ORDER = np.array([8 * (m % 16 // 4) + 4 * (m // 16) + m % 4 for m in range(_LANES)])
"""The lane of each output, chosen so that unpacking leaves sums 0..15 in one register and 16..31 in the next."""


@dataclass(frozen=True, slots=True)
class Field:
    """Where the code of up to three neighbouring weights lies.

    Parameters
    ----------
    position : int
        Of the first weight within the segment.
    trits : int
        How many weights: 3 in five bits, 2 in four, 1 in two.
    word, shift : int
        Which word of the segment, and the lowest bit in it.
    """

    position: int
    trits: int
    word: int
    shift: int


@dataclass(frozen=True, slots=True)
class Format:
    """How the codes of a pair of segments lie in words.

    Parameters
    ----------
    words : int
        Words of both segments together.
    fields : tuple of tuple of Field
        Of each of the two segments; positions and trits are the same in both.
    spare : bool
        Whether the last weight of a segment lies in the top bits of its first two words.
    """

    words: int
    fields: tuple[tuple[Field, ...], tuple[Field, ...]]
    spare: bool

    @property
    def tables(self) -> int:
        """Registers of tables that one segment needs, the spare weight's activation included."""
        return len(self.fields[0]) + self.spare

    @property
    def lines(self) -> int:
        """Registers of codes and scales in a pair of segments, for each vector of outputs."""
        return self.words + 1


_BITS = {1: 2, 2: 4, 3: 5}


@cache
def format_of(length: int) -> Format:
    """Return how segments of a length are stored."""
    triples, rest = divmod(length, 3)
    spare = rest == 1 and triples % 3 == 0 and triples >= 6
    sizes = [3] * triples + ([rest] if rest and not spare else [])
    if 2 * sum(_BITS[trits] for trits in sizes) <= 16:  # both segments in one word
        halves, shift = [], 0
        for _ in range(2):
            fields, position = [], 0
            for trits in sizes:
                fields.append(Field(position, trits, 0, shift))
                position, shift = position + trits, shift + _BITS[trits]
            halves.append(tuple(fields))
        return Format(1, (halves[0], halves[1]), False)
    words = -(-len(sizes) // 3)
    halves = [
        tuple(Field(3 * i, trits, half * words + i // 3, 5 * (i % 3)) for i, trits in enumerate(sizes))
        for half in range(2)
    ]
    return Format(2 * words, (halves[0], halves[1]), spare)


def prepare(matrices: list[Weight], isa: InstructionSet, *, activation_bits: int = 8) -> Engine:
    """Lay out weights for this kernel.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights [M, K]: planes of ternary or tied codes.
    isa : InstructionSet
        AVX-512 BW or better.

    Raises
    ------
    KernelError
        If codes are larger than 4, or the instruction set lacks vpermw.
    """
    if not isa.has("avx512bw"):
        raise KernelError(f"ternary permute: found instruction set {isa.name}, wanted one with avx512bw")
    length = cheapest(matrices[0], LENGTHS, lambda n: format_of(n).lines)
    planes = [matrix.ternary() for matrix in matrices]
    parts = [cut(matrix, length) for matrix in planes]
    pitch = matrices[0].shape[1] + LENGTHS[-1]
    starts = np.stack([_paired(part.starts) for part in parts])
    packed = [_pack(part, length) for part in parts]
    codes = aligned((len(parts), packed[0].size), np.uint16)
    for line, words in zip(codes, packed, strict=True):
        line[:] = words

    pair_bytes = 2 * format_of(length).tables * _LINE

    def plan(rows: int, outputs: int) -> Plan:
        held = max(1, min(rows, ROWS))
        return Plan(
            rows_step=held,
            outputs_step=outputs + -outputs % _OUTPUTS,
            pitch=pitch + -pitch % _LINE,
            work_bytes=max(_pairs_in_pass(length), held) * pair_bytes,
        )

    return Engine(block=make(index_of(isa), length), tier=index_of(isa), weights=(codes, starts), plan=plan)


def _pairs_in_pass(length: int) -> int:
    return max(1, _TABLE_BYTES // (2 * format_of(length).tables * _LINE))


def _paired(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([starts, starts[: starts.size % 2]])


def _pack(segments: Segments, length: int) -> NDArray[np.uint16]:
    """Return the words of one conv group, in the order in which the kernel reads them."""
    form = format_of(length)
    outputs, count, _ = segments.trits.shape
    pairs, blocks = -(-count // 2), -(-outputs // _OUTPUTS)
    # behind the last segment and the last output there are zeros
    trits = np.zeros((blocks * _OUTPUTS, 2 * pairs, length), np.int8)
    trits[:outputs, :count] = segments.trits
    scale = np.zeros((blocks * _OUTPUTS, 2 * pairs), np.uint16)
    scale[:outputs, :count] = segments.scale
    trits = trits.reshape(-1, pairs, 2, length)

    lines = np.zeros((blocks * _OUTPUTS, pairs, form.lines), np.uint16)
    for half, fields in enumerate(form.fields):
        for field in fields:
            code = np.zeros(lines.shape[:2], np.uint16)
            for position in range(field.position, field.position + field.trits):
                code = 3 * code + (trits[:, :, half, position] + 1).astype(np.uint16)
            lines[:, :, field.word] |= code << np.uint16(field.shift)
        if form.spare:
            first = fields[0].word
            lines[:, :, first] |= (trits[:, :, half, -1] > 0).astype(np.uint16) << np.uint16(15)
            lines[:, :, first + 1] |= (trits[:, :, half, -1] < 0).astype(np.uint16) << np.uint16(15)
    # [blocks, vectors, lanes, pairs, lines], and the scales of outputs 0..15 below those of 16..31
    lines = lines.reshape(blocks, _VECTORS, _LANES, pairs, -1)[:, :, np.argsort(_ORDER)]
    wide = scale.reshape(blocks, _VECTORS, 2, 16, pairs, 2)
    both = wide[:, :, 0] | wide[:, :, 1] << np.uint16(8)
    lines[..., -1] = both.transpose(0, 1, 2, 4, 3).reshape(blocks, _VECTORS, _LANES, pairs)

    streamed = lines.transpose(0, 3, 4, 1, 2)  # [blocks, pairs, lines, vectors, lanes]
    step = _pairs_in_pass(length)
    return np.concatenate([streamed[:, begin : begin + step].reshape(-1) for begin in range(0, pairs, step)])


@emitted
def build_tables(e: Emitter, length: int, panel: Any, starts: Any, count: Any, tables: Any) -> None:
    """Write the tables of `count` segments; panel: uint8 activations, starts: int64."""
    form = format_of(length)
    for segment in e.range(0, count):
        x = panel + e.load_number(starts + segment * 8, i64)
        out = tables + segment * (form.tables * _LINE)
        for index, field in enumerate(form.fields[0]):
            total = e.zeros(i16)
            for trit in range(field.trits):
                value = e.filled(e.load_number(x + (field.position + trit), i8).unsigned(i16), i16)
                weights = [_weight(entry, field.trits, trit) for entry in range(_LANES)]
                total = e.choose(e.constant(weights, i16) > 0, total + value, total)
                total = e.choose(e.constant(weights, i16) < 0, total - value, total)
            e.store(out + index * _LINE, total, align=_LINE)
        if form.spare:
            value = e.filled(e.load_number(x + (length - 1), i8).unsigned(i16), i16)
            e.store(out + (form.tables - 1) * _LINE, value, align=_LINE)


def _weight(entry: int, trits: int, trit: int) -> int:
    """Return what an entry of a table counts an activation: bits above the code do not matter."""
    code = entry % (1 << _BITS[trits])
    return code // 3 ** (trits - 1 - trit) % 3 - 1 if code < 3**trits else 0


@emitted
def multiply(
    e: Emitter, length: int, vectors: int, rows: int, codes: Any, pairs: Any,
    tables: Any, table_pitch: Any, sums: Any, sums_pitch: Any, add: Any,
) -> None:  # fmt: skip
    """Add to (or write) the sums of a block of outputs for some pairs of segments and some rows.

    codes: the words of the first pair; tables, sums: of the first row, `table_pitch` and `sums_pitch` bytes
    from one row to the next; add: whether there are sums from earlier passes.
    """
    form = format_of(length)
    cells = [(row, vector) for row in range(rows) for vector in range(vectors)]
    places = {
        (row, vector, side): sums + (sums_pitch * row + (vector * 2 + side) * _LINE)
        for row, vector in cells
        for side in range(2)
    }
    totals = {place: e.variable(e.zeros(i32)) for place in places}
    with e.when(add > 0):
        for place, pointer in places.items():
            totals[place].value = e.load(pointer, i32)
    for pair in e.range(0, pairs):
        line = codes + pair * (form.lines * _VECTORS * _LINE)
        table = tables + pair * (2 * form.tables * _LINE)

        def word(index: int, vector: int, line: Any = line) -> Any:
            return e.load(line + (index * _VECTORS + vector) * _LINE, i16)

        halves = [_segment_sums(e, form, half, rows, vectors, word, table, table_pitch) for half in range(2)]
        for vector in range(vectors):
            scales = word(form.words, vector)
            for row in range(rows):
                one, other = halves[0][row, vector], halves[1][row, vector]
                for side, scale in enumerate((scales & 255, scales.shifted_in_zeros(8))):
                    mixed = one.shuffled(_unpacked(side), other)
                    totals[row, vector, side] += e.pair_sums(mixed, scale)
    for place, pointer in places.items():
        e.store(pointer, totals[place])


def _segment_sums(
    e: Emitter, form: Format, half: int, rows: int, vectors: int, word: Any, table: Any, table_pitch: Any
) -> dict[tuple[int, int], Any]:
    """Emit the int16 sums of one segment of a pair, by row and vector."""
    totals: dict[tuple[int, int], Any] = {}

    def add(row: int, vector: int, value: Any) -> None:
        totals[row, vector] = totals[row, vector] + value if (row, vector) in totals else value

    def line(row: int, index: int) -> Any:
        return e.load(table + (table_pitch * row + (half * form.tables + index) * _LINE), i16)

    for index, field in enumerate(form.fields[half]):
        for vector in range(vectors):
            code = word(field.word, vector)
            code = code.shifted_in_zeros(field.shift) if field.shift else code
            for row in range(rows):
                add(row, vector, e.permuted(line(row, index), code))
    if form.spare:
        first = form.fields[half][0].word
        for vector in range(vectors):
            plus, minus = word(first, vector) < 0, word(first + 1, vector) < 0
            for row in range(rows):
                x, total = line(row, form.tables - 1), totals[row, vector]
                total = e.choose(plus, total + x, total)
                totals[row, vector] = e.choose(minus, total - x, total)
    return totals


def _unpacked(side: int) -> list[int]:
    """Return the lanes of vpunpcklwd (0) or vpunpckhwd (1)."""
    return [
        lane
        for part in range(4)
        for i in range(4)
        for lane in (8 * part + 4 * side + i, _LANES + 8 * part + 4 * side + i)
    ]


@cache
def make(tier: int, length: int) -> Any:
    """Return the block function for an instruction set and a segment length."""
    form = format_of(length)
    tables, lines, step = form.tables, form.lines, _pairs_in_pass(length)

    @jit
    def block(
        weights: Any, group: int, panel: NDArray[np.uint8], rows: int, first: int, outputs: int,
        sums: NDArray[np.int32], work: NDArray[np.uint8],
    ) -> None:  # fmt: skip
        codes, starts = weights[0][group], weights[1][group]
        pairs = starts.size // 2
        pair_words = lines * _OUTPUTS
        blocks = codes.size // (pairs * pair_words)
        begin, end = first // _OUTPUTS, (first + outputs + _OUTPUTS - 1) // _OUTPUTS
        here = max(1, step // rows)  # pairs whose tables for all rows fit into the cache
        table_pitch = here * 2 * tables * _LINE
        sums_pitch = 4 * sums.shape[1]
        for passed in range(0, pairs, step):
            held = min(step, pairs - passed)
            for pair in range(0, held, here):
                count = min(here, held - pair)
                at = passed + pair
                for row in range(rows):
                    build_tables(
                        tier, length, panel[row], starts[2 * at :], 2 * count, work[row * table_pitch :]
                    )
                add = at > 0
                for index in range(begin, end):
                    words = codes[((passed * blocks + index * held) + pair) * pair_words :]
                    made = (index - begin) * _OUTPUTS
                    row = 0
                    while row + 4 <= rows:
                        for vector in range(_VECTORS):
                            multiply(
                                tier, length, 1, 4, words[vector * _LANES :], count, work[row * table_pitch :],
                                table_pitch, sums[row, made + vector * _LANES :], sums_pitch, add,
                            )  # fmt: skip
                        row += 4
                    if row + 2 <= rows:
                        multiply(
                            tier, length, _VECTORS, 2, words, count, work[row * table_pitch :],
                            table_pitch, sums[row, made:], sums_pitch, add,
                        )  # fmt: skip
                        row += 2
                    if row < rows:
                        multiply(
                            tier, length, _VECTORS, 1, words, count, work[row * table_pitch :],
                            table_pitch, sums[row, made:], sums_pitch, add,
                        )  # fmt: skip

    return block
