"""Matrix product of many rows with ternary weights by tables of sums: one vector addition for three weights.

The lanes of a vector are rows of activations. The reduction is cut into segments of one scale each, a segment
into units of up to four positions, most often three. For each unit all signed sums of its activations are
tabulated,

    entry (t0, t1, t2) = t0 * x[k] + t1 * x[k + 1] + t2 * x[k + 2]         t = -1, 0, 1: 27 vectors

and every output channel adds the one entry that its codes name. An addition so stands for three weights of
all rows in the vector, and tables are made once for all output channels. A unit's code is the offset of its
entry in bytes, hence nothing is decoded. One multiplication by alpha brings a segment's sum into the int32
sums: vpmaddwd multiplies the sums of two segments, interleaved, by their two scales. ::

    codes   uint16 [pass][plane][part][output][segment][unit]     offsets from the first of the pass's tables
    scales  int16  [pass][plane][output][segment]
    sums    int32  [output][row]

A pass is as many segments as keep their tables in half of the first-level cache: the other half streams codes
and sums. Where the tables of one segment are larger than that, it is taken in two parts, between which the
16-bit sums wait in memory.

8-bit activations: 16-bit lanes. A segment adds at most 64 values of magnitude 255 at most: 16,320 < 2**15.

4-bit activations: 8-bit lanes, twice the rows. The activations are centred, x - 8, so that an entry of three
lies in -24..24 and, stored as 0..48, five entries still fit a byte (240). Every five the bytes are widened:
``w += v; h += v >> 8`` in 16-bit lanes gives both bytes' sums, low ``w - (h << 8)`` and high ``h``, exactly,
since each stays below 2**16. Centre and offset are constants of each output channel; its sum begins there.

The int32 sums wrap modulo 2**32, harmlessly, since the final value fits
(:mod:`fgq.kernels.products.weights`).

A segment on its own is multiplied by (alpha, 0) and by (0, alpha) instead.

Instructions for 64 weights x 32 rows of 8-bit activations, N = 64, AVX-512: 22 additions from memory, 6 loads
and 35 scalar instructions for their offsets, 2 vpmaddwd, 2 additions, loads and stores of the sums: 0.035 a
multiply-add. The additions from memory bind, one in 1.2 cycles.

Instruction sets: AVX-512 BW and AVX2, and those above them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.products.driver import Engine, Plan, aligned
from fgq.kernels.products.ternary_segments import Segments, cheapest, cut
from fgq.kernels.products.weights import Weight
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8, i16, i32, i64
from fgq.kernels.simd.isa import INSTRUCTION_SETS, InstructionSet, index_of

_TABLE_BYTES = 21 << 10
"""Most of the tables in use at one time: less than half of a first-level cache of 48 KiB."""

_MANY_TABLE_BYTES = 38 << 10
"""The same for many output channels, where it matters more to come back to their sums less often."""

_MANY_OUTPUTS = 256
"""From so many output channels on."""

_SPAN = 128
"""Most positions in a pass."""

_OUTPUTS = 1024
"""Output channels in a block: their sums stay in the second-level cache."""

_FEW_OUTPUTS = 48
"""Up to so many output channels, making large tables does not pay."""

_CENTRE = 8
"""What is taken off 4-bit activations."""

_TOGETHER = 4
"""Codes that are read with one load."""

_WIDEN_EVERY = 5
"""Entries of 4-bit activations whose sum fits a byte: 5 * 2 * 3 * 8 = 240."""

_UNITS: dict[int, tuple[int, ...]] = {
    4: (2, 2),
    8: (3, 3, 2),
    16: (3, 3, 3, 3, 3, 1),
    32: (3,) * 10 + (2,),
    64: (3,) * 21 + (1,),
}
"""Segment lengths, and the units that they are cut into: all alike, but for the last."""

_LARGE_UNITS = {4: (4,), 8: (4, 4)}
"""The same where there are many output channels for each table."""

_SHORT = 8
"""Segments up to this length do not gain from 8-bit lanes, whose sums must be widened."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How the segments of a layer are cut, for one width of registers and of activations.

    Parameters
    ----------
    units : tuple of int
        Positions in each unit of a segment.
    width : int
        Bytes in a register.
    bits : int
        Of the activations, 8 or 4.
    most_bytes : int
        Most of the tables in use at one time.
    """

    units: tuple[int, ...]
    width: int
    bits: int
    most_bytes: int

    @property
    def length(self) -> int:
        """Positions in a segment."""
        return sum(self.units)

    @property
    def table_bytes(self) -> int:
        """Size of the tables of a segment."""
        return self.width * sum(int(3**size) for size in self.units)

    @property
    def parts(self) -> int:
        """In how many parts a segment is taken."""
        return 1 if self.table_bytes <= self.most_bytes else 2

    @property
    def lookups(self) -> int:
        """Units in each part of a segment but the last, which may have fewer."""
        return -(-len(self.units) // self.parts)

    @property
    def together(self) -> int:
        """Segments in a turn of the look-up loop: two for one vpmaddwd, four where they are single units."""
        if 2 * self.table_bytes > self.most_bytes:
            return 1
        return 2 if self.lookups > 1 else 4

    @property
    def codes(self) -> int:
        """Codes in a turn, with those that fill the last load."""
        return -(-self.together * self.lookups // _TOGETHER) * _TOGETHER

    @property
    def halves(self) -> int:
        """Registers of 16-bit sums for each register of activations."""
        return 1 if self.bits == 8 else 2

    def held(self, segments: int) -> int:
        """Return how many of a layer's segments make a pass."""
        turns = min(self.most_bytes // self.table_bytes, _SPAN // self.length) // self.together
        passes = -(-segments // (max(1, turns) * self.together))
        even = -(-segments // passes)
        return -(-even // self.together) * self.together


def prepare(matrices: list[Weight], isa: InstructionSet, *, activation_bits: int = 8) -> Engine:
    """Write down which entries each output channel adds.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights, [M / groups, K] each: planes of ternary or tied codes.
    isa : InstructionSet
        AVX-512 or AVX2.
    activation_bits : int
        8 or 4.

    Raises
    ------
    KernelError
        If codes are larger than 4, or the instruction set has no vectors.
    """
    if not isa.width:
        raise KernelError(f"tables of sums: found instruction set {isa.name}, wanted one with vectors")
    matrices = [matrix.ternary() for matrix in matrices]
    outputs, reduction = matrices[0].shape
    planes, padded = len(matrices[0].planes), _rounded(outputs)
    choices = _UNITS | (_LARGE_UNITS if outputs > _FEW_OUTPUTS else {})
    # a segment costs its look-ups, and about three more operations for its scale
    length = cheapest(matrices[0], sorted(choices), lambda size: len(choices[size]) + 3.0)
    units, bits = choices[length], 8 if length <= _SHORT else activation_bits
    cuts = [cut(matrix, length) for matrix in matrices]
    starts = cuts[0].starts[: cuts[0].starts.size // planes]
    many = outputs >= _MANY_OUTPUTS or bits == 4
    most_bytes = _MANY_TABLE_BYTES if many else _TABLE_BYTES
    form = _Form(units, isa.width, bits, most_bytes)
    held = form.held(starts.size)
    starts = np.append(starts, np.full(-starts.size % held, starts[-1]))

    packed = [_pack(segments, planes, form, held) for segments in cuts]
    codes, scales = (_stacked([part[index] for part in packed]) for index in (0, 1))
    first = np.zeros((len(matrices), padded), np.int32)
    if bits == 4:
        for line, matrix, segments in zip(first, matrices, cuts, strict=True):
            alphas = segments.scale.sum(axis=1, dtype=np.int64)
            sums = matrix.int8().sum(axis=1, dtype=np.int64)
            line[:outputs] = (_CENTRE * (sums - length * alphas)).astype(np.int32)

    span = int((starts[held - 1 :: held] + length - starts[::held]).max())
    span += -span % isa.width
    pitch = max(reduction, int(starts[::held].max()) + span)
    table_bytes = held * (form.table_bytes if form.parts == 1 else form.lookups * 3 ** units[0] * isa.width)
    step = min(padded, _OUTPUTS)

    def plan(rows: int, outputs: int) -> Plan:
        return Plan(
            rows_step=isa.width // (2 if bits == 8 else 1),
            outputs_step=step,
            pitch=pitch,
            work_bytes=span * isa.width + table_bytes + step * (2 + planes) * form.halves * isa.width,
            direct=pitch == reduction,
        )

    numbers = np.tile(np.array([span, table_bytes], np.int64), (len(matrices), 1))
    return Engine(
        block=make(index_of(isa), bits, units, most_bytes),
        tier=index_of(isa),
        weights=(codes, scales, first, np.tile(starts, (len(matrices), 1)), numbers),
        plan=plan,
    )


def _rounded(outputs: int) -> int:
    return outputs + -outputs % 16


def _stacked(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    stacked = aligned((len(arrays), *arrays[0].shape), arrays[0].dtype)
    for index, array in enumerate(arrays):
        stacked[index] = array
    return stacked


def _pack(
    segments: Segments, planes: int, form: _Form, held: int
) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
    """Return the codes [pass, plane, part, output, ..] and the scales [pass, plane, output, ..].

    The last pass is filled up with segments of scale 0.
    """
    outputs, count, length = segments.codes.shape
    count //= planes
    passes, padded = -(-count // held), _rounded(outputs)
    trits = np.zeros((padded, planes, passes * held, length), np.int8)
    trits[:outputs, :, :count] = segments.codes.reshape(outputs, planes, count, length)
    trits = trits.reshape(padded, planes, passes, held, length)
    turns, per_turn = held // form.together, form.together * form.lookups
    codes = np.zeros((passes, planes, form.parts, padded, turns, form.codes), np.uint16)
    begin, offset = 0, np.arange(held) * (form.table_bytes if form.parts == 1 else 0)
    for unit, size in enumerate(form.units):
        part, place = divmod(unit, form.lookups)
        if place == 0 and part > 0:
            offset = offset * 0
        entry = (trits[..., begin : begin + size] + 1) @ 3 ** np.arange(size - 1, -1, -1)
        places = (entry * form.width + offset).reshape(padded, planes, passes, turns, form.together)
        codes[:, :, part, :, :, place : per_turn : form.lookups] = places.transpose(2, 1, 0, 3, 4)
        begin, offset = begin + size, offset + 3**size * form.width
    scales = np.zeros((padded, planes, passes * held), np.int16)
    scales[:outputs, :, :count] = segments.scale.reshape(outputs, planes, count)
    scales = scales.reshape(padded, planes, passes, held).transpose(2, 1, 0, 3)
    if form.together == 1:
        scales = np.concatenate([scales, 0 * scales, 0 * scales, scales], axis=3)
    return codes.reshape(*codes.shape[:4], -1), scales


@cache
def make(tier: int, bits: int, units: tuple[int, ...], most_bytes: int) -> Any:
    """Return the block function for an instruction set, a width of activations and a cut into units."""
    width = INSTRUCTION_SETS[tier].width
    form = _Form(units, width, bits, most_bytes)
    table_bytes, length = form.table_bytes, form.length
    parts, lookups, halves = form.parts, form.lookups, form.halves
    size, rest = units[0], units[-1] if units[-1] != units[0] else 0
    alike = len(units) - 1 if rest else len(units)
    last = len(units) - lookups * (parts - 1)
    sums_bytes, together, per_turn = 2 * halves * width, form.together, form.codes

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
        # places are counted in bytes here: cutting arrays would cost more than a short loop
        codes, scales, begins, starts, numbers = weights
        passes, planes, padded = codes.shape[1], codes.shape[2], codes.shape[4]
        per_code, per_scale = 2 * codes.shape[5], 2 * scales.shape[4]
        held, wide = starts.shape[1] // passes, outputs + -outputs % 16
        tables = numbers[group, 0] * width  # within `work`, behind the turned activations
        acc = tables + numbers[group, 1]
        waiting = acc + wide * sums_bytes
        for index in range(passes):
            begin = starts[group, index * held]
            span = starts[group, index * held + held - 1] + length - begin
            _turn_activations(tier, panel, panel.shape[1], begin, span, work, bits)
            for part in range(parts):
                for segment in range(held):
                    turned = (starts[group, index * held + segment] - begin + part * lookups * size) * width
                    own = tables + segment * table_bytes
                    here = lookups if part + 1 < parts else alike - part * lookups
                    _tabulate(tier, work, turned, own, here, size, bits)
                    if rest and part + 1 == parts:
                        _tabulate(
                            tier,
                            work,
                            turned + here * size * width,
                            own + here * 3**size * width,
                            1,
                            rest,
                            bits,
                        )
                for plane in range(planes):
                    line = (group * passes + index) * planes + plane
                    code = ((line * parts + part) * padded + first) * per_code
                    wait = waiting + plane * wide * halves * width
                    if part + 1 < parts:
                        _add_up(tier, codes, code, per_code, work, tables, wait, wide, lookups, bits)
                    else:
                        scale = (line * padded + first) * per_scale
                        origin = 4 * (group * padded + first)
                        _look_up(
                            tier, codes, code, per_code, scales, scale, per_scale, work, tables, wait, acc,
                            begins, origin, index + plane, held, wide, last, together, per_turn, parts, bits,
                        )  # fmt: skip
        _turn_sums(tier, work, acc, sums, sums.shape[1], wide, together, bits)

    return block


def _transposed(e: Emitter, rows: list[Value]) -> list[Value]:
    """Transpose as many vectors as each has 32-bit lanes."""
    count, step = len(rows), 1
    while step < count:
        turned = list(rows)
        for i in range(count):
            if i & step:
                continue
            one, other = rows[i], rows[i + step]
            low = [lane if lane & step == 0 else count + lane - step for lane in range(count)]
            high = [lane + step if lane & step == 0 else count + lane for lane in range(count)]
            turned[i], turned[i + step] = one.shuffled(low, other), one.shuffled(high, other)
        rows, step = turned, 2 * step
    return rows


@emitted
def _turn_activations(
    e: Emitter, panel: Any, pitch: Any, start: Any, length: Any, out: Any, bits: int
) -> None:
    """Bring positions start, .. of the panel's rows side by side: one vector for each position."""
    lanes, width = e.lanes(i32), e.isa.width
    for k in e.range(0, length, width):
        quarters = []
        for quarter in range(2 if bits == 8 else 4):
            rows = [e.load(panel + (quarter * lanes + r) * pitch + start + k, i32) for r in range(lanes)]
            quarters.append(_transposed(e, rows))
        for four in range(lanes):
            for half in range(2):
                parts = [
                    quarter[four].shifted_in_zeros(16) if half else quarter[four] & 0xFFFF
                    for quarter in quarters
                ]
                words = [_packed(e, *parts[i : i + 2]) for i in range(0, len(parts), 2)]
                for odd in range(2):
                    alone = [word.shifted_in_zeros(8) if odd else word & 255 for word in words]
                    value = alone[0] if bits == 8 else _packed(e, *alone) - _CENTRE
                    e.store(out + (k + 4 * four + 2 * half + odd) * width, value)


def _packed(e: Emitter, one: Value, other: Value) -> Value:
    """Emit vpackusdw or vpackuswb: lanes of half the width, every 16 bytes of both vectors by themselves."""
    name, element = ("packusdw", i16) if one.element == i32 else ("packuswb", i8)
    family, suffix = ("avx512", ".512") if e.isa.width == 64 else ("avx2", "")
    return e.call(f"llvm.x86.{family}.{name}{suffix}", e.vector(element), one, other)


def _rows_of(lanes: int, bits: int, together: int) -> list[list[int]]:
    """Return which row each 32-bit lane of an output channel's vectors of sums belongs to."""

    def packed(one: list[int], other: list[int], size: int) -> list[int]:
        return [
            row for at in range(0, len(one), size) for each in (one, other) for row in each[at : at + size]
        ]

    quarters = [list(range(begin, begin + lanes)) for begin in range(0, 4 * lanes, lanes)]
    halves = [packed(quarters[0], quarters[1], 4)]
    if bits == 4:
        both = packed(halves[0], packed(quarters[2], quarters[3], 4), 8)
        halves = [both[::2], both[1::2]]
    if together == 1:  # multiplied by (alpha, 0) and (0, alpha)
        return [half[odd::2] for half in halves for odd in range(2)]
    return [
        [row for at in range(4 * high, len(half), 8) for row in half[at : at + 4]]
        for half in halves
        for high in range(2)
    ]


@emitted
def _tabulate(e: Emitter, work: Any, turned: Any, tables: Any, units: Any, size: int, bits: int) -> None:
    """Tabulate the signed sums of `size` activations, for as many units as there are."""
    turned, tables = work + turned, work + tables
    element, width = (i16, e.isa.width) if bits == 8 else (i8, e.isa.width)
    for u in e.range(0, units):
        table = tables + u * (3**size * width)
        entries = [e.filled(_CENTRE * size if bits == 4 else 0, element)]
        for j in range(size):
            x = e.load(turned + (u * size + j) * width, element)
            entries = [made for entry in entries for made in (entry - x, entry, entry + x)]
        for index, entry in enumerate(entries):
            e.store(table + index * width, entry)


@emitted
def _add_up(
    e: Emitter, codes: Any, code: Any, per_code: Any, work: Any, tables: Any, waiting: Any, outputs: Any,
    lookups: int, bits: int,
) -> None:  # fmt: skip
    """Leave the sums of the first part of a segment."""
    codes, tables, waiting = codes + code, work + tables, work + waiting
    halves, width = 1 if bits == 8 else 2, e.isa.width
    for m in e.range(0, outputs):
        found = _found(e, codes + m * per_code, tables, lookups, bits)
        for i, half in enumerate(_sums(e, found, bits)):
            e.store(waiting + m * (halves * width) + i * width, half)


@emitted
def _look_up(
    e: Emitter, codes: Any, code: Any, per_code: Any, scales: Any, scale: Any, per_scale: Any, work: Any,
    tables: Any, waiting: Any, acc: Any, begins: Any, begin: Any, added: Any, held: Any, outputs: Any,
    lookups: int, together: int, per_turn: int, parts: int, bits: int,
) -> None:  # fmt: skip
    """Add the entries that the codes name, and bring them into the sums: the multiplication-free loop."""
    codes, scales, tables, waiting = codes + code, scales + scale, work + tables, work + waiting
    acc, begins, width, halves = work + acc, begins + begin, e.isa.width, 1 if bits == 8 else 2
    for m in e.range(0, outputs):
        place = acc + m * (2 * halves * width)
        totals = [e.variable(e.zeros(i32)) for _ in range(2 * halves)]
        with e.when(added > 0):
            for i, total in enumerate(totals):
                total.value = e.load(place + i * width, i32)
        with e.when(added.equals(0)):
            for total in totals:
                total.value = e.load_spread(begins + m * 4, i32)
        for segment in e.range(0, held, together) if together > 1 else (0,):
            code = codes + m * per_code + segment * (2 * per_turn // together)
            found = _found(e, code, tables, together * lookups, bits)
            sums = [_sums(e, found[at : at + lookups], bits) for at in range(0, together * lookups, lookups)]
            if parts > 1:
                rest = waiting + m * (halves * width)
                sums[0] = [half + e.load(rest + i * width, i16) for i, half in enumerate(sums[0])]
            if together == 1:
                even, odd = (e.load_spread(scales + m * per_scale + at, i32).bits_as(i16) for at in (0, 4))
                for i, half in enumerate(sums[0]):
                    totals[2 * i] += e.pair_sums(half, even)
                    totals[2 * i + 1] += e.pair_sums(half, odd)
                continue
            for pair in range(0, len(sums), 2):
                both = e.load_spread(scales + m * per_scale + segment * 2 + pair * 2, i32).bits_as(i16)
                for i, (one, other) in enumerate(zip(sums[pair], sums[pair + 1], strict=True)):
                    for high in range(2):
                        mixed = one.shuffled(_unpacked(one.lanes, high), other)
                        totals[2 * i + high] += e.pair_sums(mixed, both)
        for i, total in enumerate(totals):
            e.store(place + i * width, total)


def _found(e: Emitter, code: Any, tables: Any, count: int, bits: int) -> list[Value]:
    """Emit the loads of entries; codes are read four at a time, for loads are what the loop has least of."""
    offsets: list[Value] = []
    for at in range(0, count, _TOGETHER):
        four = e.load_number(code + 2 * at, i64)
        offsets += [four.shifted_in_zeros(16 * i) & 0xFFFF for i in range(_TOGETHER)]
    return [e.load(tables + offset, i16 if bits == 8 else i8) for offset in offsets[:count]]


def _sums(e: Emitter, found: list[Value], bits: int) -> list[Value]:
    """Return the sums of entries in 16-bit lanes; of bytes those of the even ones, then of the odd ones."""
    if bits == 8:
        return [_sum(found)]
    both, high = e.zeros(i16), e.zeros(i16)
    for begin in range(0, len(found), _WIDEN_EVERY):
        five = _sum(found[begin : begin + _WIDEN_EVERY]).bits_as(i16)
        both, high = both + five, high + five.shifted_in_zeros(8)
    return [both - (high << 8), high]


def _sum(values: list[Value]) -> Value:
    """Add in two chains, so that an addition need not wait for the one before."""
    chains = values[:2]
    for index, value in enumerate(values[2:]):
        chains[index % 2] = chains[index % 2] + value
    return chains[0] if len(chains) == 1 else chains[0] + chains[1]


def _unpacked(lanes: int, high: int) -> list[int]:
    """Return the lanes of vpunpcklwd (0) or vpunpckhwd (1)."""
    firsts = [8 * part + 4 * high + i for part in range(lanes // 8) for i in range(4)]
    return [lane for first in firsts for lane in (first, lanes + first)]


@emitted
def _turn_sums(
    e: Emitter, work: Any, acc: Any, sums: Any, pitch: Any, outputs: Any, together: int, bits: int
) -> None:
    """Bring sums [output, row] into [row, output]."""
    acc, lanes, width = work + acc, e.lanes(i32), e.isa.width
    vectors = _rows_of(lanes, bits, together)
    for m in e.range(0, outputs, lanes):
        for i, rows in enumerate(vectors):
            lines = [e.load(acc + (m + j) * (len(vectors) * width) + i * width, i32) for j in range(lanes)]
            for row, value in zip(rows, _transposed(e, lines), strict=True):
                e.store(sums + (row * pitch + m) * 4, value)
