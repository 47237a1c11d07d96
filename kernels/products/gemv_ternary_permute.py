"""Multiplication-free matrix product for a few rows: outputs look sums of activations up in registers.

Algorithm
    Three ternary weights make one of 27 codes, and the activations that they belong to a table of the 27
    sums that they can give. The codes of as many output channels as a register has bytes look their sums up
    in one instruction: vpermb, or, where there is only vpshufb, two weights a time in tables of 9. A sum is
    10 bits long, so there is a table of its low five bits and one of the bits above; bytes of up to eight
    lookups are added before they are widened to 16 bits (even and odd bytes apart). 4-bit activations need
    one table only. The int16 sums of two segments, interleaved, are multiplied by their scales and added
    into int32 by one vpmaddwd: one multiplication per segment and output channel.

    ::

        weights [conv group][pass][block of outputs][pair of segments][codes of the one, codes of the other,
                                                                       scales][one register]

    The codes (:mod:`fgq.kernels.products.ternary_bytes`) are read once, from front to back. A pass is as many
    pairs of segments as keep their tables in the nearest cache; it runs over all outputs, whose sums wait in
    between. Tables are made anew in each pass, by masked additions. Further rows of activations find the
    codes of a block in the nearest cache. Codes further on are asked for meanwhile: additions that wait for
    codes would fill the processor's scheduler before it came to enough loads. Scales are bytes, two
    registers of 16-bit lanes for a pair: those of outputs in the first or third quarter of a block low, those
    of the second or fourth high.

Accumulators
    Table entries are made non-negative: activations count from their middle (128 or 8), and 512 (or 32) is
    added. What this changes is known beforehand and is where the int32 sums begin. An entry is at most
    512 + 4 * 128, so eight of its high parts make at most 7 * 28 + 32 < 256, eight low parts 8 * 31 < 256;
    of 4-bit entries four make 3 * 56 + 64 < 256. A segment has at most 64 positions in 32 lookups of two or
    21 of three: its sum is below 32 * 768 < 2**15. The sum over K is exact modulo 2**32, and the final value
    fits (:mod:`fgq.kernels.products.weights`). Places behind the end of a group have code 0, for which a
    table's entry does not depend on the activation there.

Cost
    With vpermb 64 weights of 64 outputs take 42 lookups, 36 additions, 21 instructions for the third codes,
    20 for widening and 8 for the scale: 0.031 instructions per MAC, 1.875 bits per weight. With vpshufb:
    64 lookups, 56 additions, 48 for nibbles, 29 for widening, 8 for the scale: 0.05, 2.125 bits.

Instruction sets: AVX-512 VBMI (vpermb); AVX-512 BW and AVX2 (vpshufb).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.products.driver import Engine, Plan, aligned
from fgq.kernels.products.ternary_bytes import PAIR_LENGTHS, TRIPLE_LENGTHS, Field, format_of, pack_segments
from fgq.kernels.products.ternary_segments import Segments, cheapest, cut
from fgq.kernels.products.weights import Weight
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8, i16, i32, i64
from fgq.kernels.simd.isa import INSTRUCTION_SETS, InstructionSet, index_of

ROWS = 4
"""Most rows in a block; more are taken in several blocks."""

_LOW_BITS = 5
"""Bits of a sum in the low one of two tables."""

_SCALES = 2
"""Registers of scales in a pair of segments."""

_LINE = 64
"""Bytes of a cache line."""

_AHEAD = 1 << 10
"""Bytes that the codes which are asked for lie ahead of those which are looked up."""

_TABLE_BYTES = 12 << 10
"""Tables of a pass, which share the nearest cache with the stream of weights."""


def prepare(matrices: list[Weight], isa: InstructionSet, *, activation_bits: int = 8) -> Engine:
    """Lay out weights for this kernel.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights [M, K]: planes of ternary or tied codes.
    isa : InstructionSet
        With vectors.
    activation_bits : int
        8, or 4 where all activations are 0..15.

    Raises
    ------
    KernelError
        If codes are larger than 4, or the instruction set has no vectors.
    """
    if not isa.width:
        raise KernelError(f"ternary permute: found instruction set {isa.name}, wanted one with vectors")
    tier, triples = index_of(isa), _triples(isa)
    lengths = TRIPLE_LENGTHS if triples else PAIR_LENGTHS
    length = cheapest(matrices[0], lengths, lambda n: format_of(n, triples).size + 1)
    pair_tables = _pair_tables(tier, length, activation_bits)
    parts = [cut(matrix.ternary(), length) for matrix in matrices]
    reduction = matrices[0].shape[1]
    pitch = reduction + lengths[-1]
    step = _pairs_in_pass(pair_tables)
    codes = _stack([_pack(part, isa, step) for part in parts])
    origins = _stack([_origins(part, isa, activation_bits) for part in parts])
    starts = _stack([_paired(part.starts) for part in parts])

    def plan(rows: int, outputs: int) -> Plan:
        held = max(1, min(rows, ROWS))
        return Plan(
            rows_step=held,
            outputs_step=outputs + -outputs % isa.width,
            pitch=pitch + -pitch % 64,
            work_bytes=max(step, held) * pair_tables,
        )

    block = make(tier, length, activation_bits)
    return Engine(block=block, tier=tier, weights=(codes, origins, starts), plan=plan)


def _triples(isa: InstructionSet) -> bool:
    return isa.has("avx512vbmi")


def _pair_tables(tier: int, length: int, bits: int) -> int:
    """Return the bytes of the tables of a pair of segments."""
    isa = INSTRUCTION_SETS[tier]
    return 2 * len(format_of(length, _triples(isa)).fields) * _parts(bits) * isa.width


def _parts(bits: int) -> int:
    """Return how many tables hold a sum."""
    return 2 if bits == 8 else 1


def _pairs_in_pass(pair_tables: int) -> int:
    return max(1, _TABLE_BYTES // pair_tables)


def _middle(bits: int) -> int:
    """Return the activation that tables count from; entries have four times as much added."""
    return 1 << (bits - 1)


def _stack(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    made = aligned((len(arrays), *arrays[0].shape), arrays[0].dtype)
    return np.stack(arrays, out=made)


def _paired(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return as many starts as there are segments in pairs; that of a missing one may be any."""
    return np.concatenate([starts, starts[: starts.size % 2]])


def _lanes(width: int) -> NDArray[np.int64]:
    """Return the byte of each output of a block, so that unpacked sums are in order quarter by quarter."""
    quarter, index = np.divmod(np.arange(width), width // 4)
    lanes: NDArray[np.int64] = 2 * (8 * (index // 4) + 4 * (quarter % 2) + index % 4) + quarter // 2
    return lanes


def _pack(segments: Segments, isa: InstructionSet, step: int) -> NDArray[np.uint8]:
    """Return the weights of one conv group, in the order in which the kernel reads them."""
    outputs, count, length = segments.codes.shape
    form = format_of(length, _triples(isa))
    width, pairs, blocks = isa.width, -(-count // 2), -(-outputs // isa.width)
    # behind the last segment and the last output there are zeros
    trits = np.zeros((blocks * width, 2 * pairs, length), np.int8)
    trits[:outputs, :count] = segments.codes
    scale = np.zeros((blocks * width, 2 * pairs), np.uint8)
    scale[:outputs, :count] = segments.scale

    lines = np.empty((blocks, pairs, 2 * form.size + _SCALES, width), np.uint8)
    codes = pack_segments(trits, form).reshape(blocks, width, pairs, 2 * form.size)
    lines[:, :, :-_SCALES, _lanes(width)] = codes.transpose(0, 2, 3, 1)
    # [blocks, two registers, low and high bytes, outputs, pairs, segments]
    wide = scale.reshape(blocks, 2, 2, width // 4, pairs, 2)
    lines[:, :, -_SCALES:] = wide.transpose(0, 4, 1, 3, 5, 2).reshape(blocks, pairs, _SCALES, width)
    return np.concatenate([lines[:, begin : begin + step].reshape(-1) for begin in range(0, pairs, step)])


def _origins(segments: Segments, isa: InstructionSet, bits: int) -> NDArray[np.int32]:
    """Return where the sums begin: what counting from the middle and keeping entries positive changes."""
    outputs, _, length = segments.codes.shape
    surplus = 4 * _middle(bits) * len(format_of(length, _triples(isa)).fields)
    each = _middle(bits) * segments.codes.sum(axis=2, dtype=np.int32) - surplus
    total = (each.astype(np.int64) * segments.scale).sum(axis=1)
    whole = np.zeros(outputs + -outputs % isa.width, np.int32)
    whole[:outputs] = total.astype(np.int32)  # modulo 2**32
    return whole


@emitted
def build_tables(
    e: Emitter, length: int, bits: int, panel: Any, starts: Any, count: Any, tables: Any
) -> None:
    """Write the tables of `count` segments; panel: uint8 activations, starts: int64."""
    form, width = format_of(length, _triples(e.isa)), e.isa.width
    entries = 32 if _triples(e.isa) else 16
    for segment in e.range(0, count):
        x = panel + e.load_number(starts + segment * 8, i64)
        out = tables + segment * (len(form.fields) * _parts(bits) * width)
        for index, field in enumerate(form.fields):
            sums = _sums_of(e, x, field, entries, _middle(bits))
            above = sums
            if field.spare:
                last = _activation(e, x, length - 1, entries)
                above = sums + (last - _middle(bits) if field.spare > 0 else _middle(bits) - last)
            for part in range(_parts(bits)):
                both = [
                    (half if bits == 4 else half >> _LOW_BITS if part else half & ((1 << _LOW_BITS) - 1))
                    for half in (sums, above)
                ]
                low, high = (half.unsigned(i8) for half in both)
                table = low.joined(high).shuffled([lane % (2 * entries) for lane in range(width)])
                e.store(out + (index * _parts(bits) + part) * width, table)


def _activation(e: Emitter, x: Any, position: int, lanes: int) -> Value:
    return e.filled(e.load_number(x + position, i8).unsigned(i16), i16, lanes)


def _sums_of(e: Emitter, x: Any, field: Field, entries: int, middle: int) -> Value:
    """Return the entries of a table as int16."""
    weights = [field.weights(entry) for entry in range(entries)]
    total = e.constant([4 * middle - middle * sum(each) for each in weights], i16)
    for trit in range(field.trits):
        value = _activation(e, x, field.position + trit, entries)
        signs = e.constant([each[trit] for each in weights], i16)
        total = e.choose(signs > 0, total + value, total)
        total = e.choose(signs < 0, total - value, total)
    return total


@emitted
def multiply(e: Emitter, length: int, bits: int, codes: Any, pairs: Any, tables: Any, sums: Any) -> None:
    """Add to the sums of a block of outputs for some pairs of segments; codes, tables: of the first pair."""
    form, width = format_of(length, _triples(e.isa)), e.isa.width
    segment_tables, pair_bytes = len(form.fields) * _parts(bits) * width, (2 * form.size + _SCALES) * width
    totals = [e.variable(e.load(sums + quarter * width, i32)) for quarter in range(4)]
    for pair in e.range(0, pairs):
        line = codes + pair * pair_bytes
        table = tables + pair * (2 * segment_tables)
        one, other = (
            _segment_sums(
                e,
                length,
                bits,
                line + half * form.size * width,
                table + half * segment_tables,
                line + (_AHEAD + half * pair_bytes // 2),
                pair_bytes // 2,
            )
            for half in range(2)
        )
        for odd in range(2):
            scales = e.load(line + (2 * form.size + odd) * width, i16)
            for high, scale in enumerate((scales & 255, scales.shifted_in_zeros(8))):
                mixed = one[odd].shuffled(_unpacked(width // 2, high), other[odd])
                totals[2 * odd + high] += e.pair_sums(mixed, scale)
    for quarter in range(4):
        e.store(sums + quarter * width, totals[quarter])


def _segment_sums(
    e: Emitter, length: int, bits: int, codes: Any, tables: Any, asked: Any, asked_bytes: int
) -> tuple[Value, Value]:
    """Emit the int16 sums of a segment: those of the even bytes and of the odd ones.

    In between, the `asked_bytes` from `asked` on are asked for.
    """
    form, width, parts = format_of(length, _triples(e.isa)), e.isa.width, _parts(bits)
    find = e.permuted if _triples(e.isa) else e.permuted_in_16
    lines = -(-asked_bytes // _LINE)
    batches = -(-len(form.fields) // (8 if bits == 8 else 4))
    # for each table the sums of 16-bit lanes as they are, and of their high bytes
    wide: list[tuple[Value, Value]] = []
    for batch in range(batches):
        begin, end = (len(form.fields) * n // batches for n in (batch, batch + 1))
        narrow: list[Value] = []
        for number in range(begin, end):
            index = _index(e, form.fields[number], codes)
            for line in range(number * lines // len(form.fields), (number + 1) * lines // len(form.fields)):
                e.prefetch(asked + line * _LINE)
            found = [find(e.load(tables + (number * parts + p) * width, i8), index) for p in range(parts)]
            narrow = [a + b for a, b in zip(narrow, found, strict=True)] if narrow else found
        lanes = [total.bits_as(i16) for total in narrow]
        both = [(lane, lane.shifted_in_zeros(8)) for lane in lanes]
        wide = [(a + c, b + d) for (a, b), (c, d) in zip(wide, both, strict=True)] if wide else both
    whole, odd = wide[0]
    if parts == 2:
        whole, odd = whole + (wide[1][0] << _LOW_BITS), odd + (wide[1][1] << _LOW_BITS)
    return whole - (odd << 8), odd


def _index(e: Emitter, field: Field, codes: Any) -> Value:
    """Return a code of each output where a lookup wants it; the bits above may be anything for vpermb."""

    def shifted(byte: int, count: int) -> Value:
        return e.load(codes + byte * e.isa.width, i16).shifted_in_zeros(count).bits_as(i8)

    if field.split:
        low, high = shifted(field.byte, 5), shifted(field.byte + 1, 2)
        return e.bits_chosen(7, low, high)
    index = shifted(field.byte, field.shift) if field.shift else e.load(codes + field.byte * e.isa.width, i8)
    return index if _triples(e.isa) else index & 15


def _unpacked(lanes: int, high: int) -> list[int]:
    """Return the lanes of vpunpcklwd (0) or vpunpckhwd (1)."""
    firsts = [8 * part + 4 * high + i for part in range(lanes // 8) for i in range(4)]
    return [lane for first in firsts for lane in (first, lanes + first)]


@cache
def make(tier: int, length: int, bits: int) -> Any:
    """Return the block function for an instruction set, a segment length and activations of 8 or 4 bits."""
    isa = INSTRUCTION_SETS[tier]
    width = isa.width
    pair_tables = _pair_tables(tier, length, bits)
    step = _pairs_in_pass(pair_tables)
    pair_bytes = (2 * format_of(length, _triples(isa)).size + _SCALES) * width

    @jit
    def block(
        weights: Any, group: int, panel: NDArray[np.uint8], rows: int, first: int, outputs: int,
        sums: NDArray[np.int32], work: NDArray[np.uint8],
    ) -> None:  # fmt: skip
        codes, origins, starts = weights[0][group], weights[1][group], weights[2][group]
        blocks, pairs = origins.size // width, starts.size // 2
        begin, end = first // width, (first + outputs + width - 1) // width
        for row in range(rows):
            for output in range((end - begin) * width):
                sums[row, output] = origins[first + output]
        here = max(1, step // rows)  # pairs whose tables for all rows fit into the cache
        table_pitch = here * pair_tables
        for passed in range(0, pairs, step):
            held = min(step, pairs - passed)
            for pair in range(0, held, here):
                count, at = min(here, held - pair), 2 * (passed + pair)
                for row in range(rows):
                    tables = work[row * table_pitch :]
                    build_tables(tier, length, bits, panel[row], starts[at:], 2 * count, tables)
                for index in range(begin, end):
                    line = codes[(passed * blocks + index * held + pair) * pair_bytes :]
                    for row in range(rows):
                        into = sums[row, (index - begin) * width :]
                        multiply(tier, length, bits, line, count, work[row * table_pitch :], into)

    return block
