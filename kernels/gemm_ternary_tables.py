"""Matrix product of many rows with ternary weights by tables of sums: one vector addition for three weights.

The lanes of a vector are rows of activations. The reduction is cut into segments of one scale each, a segment
into units of up to four positions, most often three. For each unit all signed sums of its activations are
tabulated,

    entry (t0, t1, t2) = t0 * x[k] + t1 * x[k + 1] + t2 * x[k + 2]         t = -1, 0, 1: 27 vectors

and every output channel adds the one entry that its codes name. An addition so stands for three weights of
all rows in the vector, and tables are made once for all output channels. A unit's code is the offset of its
entry in bytes, hence nothing is decoded. One multiplication by alpha brings a segment's sum into the int32
sums::

    codes   uint16 [batch, plane, output, segment, unit]      offsets from the first of the batch's tables
    scales  int16  [batch, plane, output, segment, 2] = (0, alpha), and one more 0
    acc     int32  [output, row]                               even lanes of the 16-bit sums, then odd ones

The tables of a batch of segments fill most of the first-level cache; codes are read four at a time.

vpmaddwd with (alpha, 0) in all pairs of lanes multiplies the even lanes and widens them, with (0, alpha) the
odd ones. Rows i and i + R (R 32-bit lanes) sit in lanes 2 i and 2 i + 1, so that acc comes out in order.

8-bit activations: 16-bit lanes. A segment adds at most 64 values of magnitude 255 at most: 16,320 < 2**15.

4-bit activations: 8-bit lanes, twice the rows. The activations are centred, x - 8, so that an entry of three
lies in -24..24 and, stored as 0..48, five entries still fit a byte (240). Every five the bytes are widened:
``w += v; h += v >> 8`` in 16-bit lanes gives both bytes' sums, low ``w - (h << 8)`` and high ``h``, exactly,
since each stays below 2**16. Centre and offset are constants of each output channel, with which acc begins.

The int32 sums wrap modulo 2**32, harmlessly, since the final value fits (:mod:`fgq.kernels.weights`).

Instructions for 64 weights x 32 rows of 8-bit activations, N = 64, AVX-512: 22 index loads, 22 additions from
memory, 2 vpmaddwd, 2 additions: 0.023 a multiply-add, two loads for every 96 of which bind.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.driver import Engine, Plan, aligned
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8, i16, i32, i64
from fgq.kernels.simd.isa import INSTRUCTION_SETS, InstructionSet, index_of
from fgq.kernels.weights import Weight

_TABLE_BYTES = 38 << 10
"""Size of the tables in use at one time: most of a first-level cache of 48 KiB."""

_MOST_SEGMENTS = 16
"""Most segments in a batch: their look-ups are one straight line of code."""

_OUTPUTS = 1024
"""Output channels in a block: their sums stay in the second-level cache."""

_FEW_OUTPUTS = 128
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
"""Segment lengths, and the units that they are cut into."""

_LARGE_UNITS = {4: (4,), 8: (4, 4)}
"""The same where there are many output channels for each table."""


def prepare(matrices: list[Weight], isa: InstructionSet, *, activation_bits: int = 8) -> Engine:
    """Write down which entries each output channel adds.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights, [M / groups, K] each, in planes of codes -1..1.
    isa : InstructionSet
        AVX-512 or AVX2.
    activation_bits : int
        8 or 4.
    """
    outputs, reduction = matrices[0].shape
    lengths = np.bincount(matrices[0].group)
    choices = dict(_UNITS)
    if outputs > _FEW_OUTPUTS and activation_bits == 8:
        choices |= _LARGE_UNITS
    # a segment costs its look-ups, and about four more operations for its scale
    length = min(choices, key=lambda size: float((-(-lengths // size)).sum()) * (len(choices[size]) + 4))
    units = choices[length]

    batch = max(1, min(_TABLE_BYTES // (_entries(units) * isa.width), _MOST_SEGMENTS))
    packed = [_pack(matrix, length, units, batch, isa.width) for matrix in matrices]
    starts = packed[0][0]
    codes, scales = (_stacked([part[index] for part in packed]) for index in (1, 2))
    first = np.zeros((len(matrices), _rounded(outputs)), np.int32)
    if activation_bits == 4:
        for group, matrix in enumerate(matrices):
            sums = matrix.int8().sum(axis=1, dtype=np.int64)
            first[group, :outputs] = (_CENTRE * (sums - length * packed[group][3])).astype(np.int32)

    rows_step = isa.width // (2 if activation_bits == 8 else 1)
    reach = int(starts.max()) + length + -length % isa.width
    pitch = max(reduction, reach)
    vectors = 2 if activation_bits == 8 else 4

    def plan(rows: int, outputs: int) -> Plan:
        step = min(_rounded(outputs), _OUTPUTS)
        work = (128 + batch * _entries(units) + step * vectors) * isa.width
        return Plan(
            rows_step=rows_step, outputs_step=step, pitch=pitch, work_bytes=work, direct=pitch == reduction
        )

    return Engine(
        block=make(index_of(isa), activation_bits, units, int(batch)),
        tier=index_of(isa),
        weights=(codes, scales, first, np.tile(starts, (len(matrices), 1))),
        plan=plan,
    )


def _entries(units: tuple[int, ...]) -> int:
    """Return how many vectors the tables of one segment take."""
    return sum(3**size for size in units)


def _rounded(outputs: int) -> int:
    return outputs + -outputs % 16


def _stacked(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    stacked = aligned((len(arrays), *arrays[0].shape), arrays[0].dtype)
    for index, array in enumerate(arrays):
        stacked[index] = array
    return stacked


def _pack(
    weight: Weight, length: int, units: tuple[int, ...], batch: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.int16], NDArray[np.int64]]:
    """Return where segments start, codes, scales, and the sum of the scales int64 [M].

    The last batch is filled up with segments of scale 0 that begin where the first one does.
    """
    outputs, reduction = weight.shape
    lengths = np.bincount(weight.group)
    counts = -(-lengths // length)
    of_group = np.repeat(np.arange(lengths.size), counts)
    within = np.arange(of_group.size) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.cumsum(lengths) - lengths)[of_group] + length * within
    segment = np.searchsorted(starts, np.arange(reduction), side="right") - 1
    place = np.arange(reduction) - starts[segment]

    segments, padded, planes = len(starts) + -len(starts) % batch, _rounded(outputs), len(weight.planes)
    shape = (planes, padded, segments // batch, batch)
    codes = np.zeros((*shape, len(units)), np.uint16)
    alpha = np.zeros((planes, padded, segments), np.uint8)
    for index, plane in enumerate(weight.planes):
        trits = np.zeros((padded, segments, length), np.int8)
        trits[:outputs, segment, place] = plane.codes
        alpha[index, :outputs, : len(starts)] = plane.alpha[:, of_group]
        begin, offset = 0, np.arange(batch) * _entries(units) * width
        for unit, size in enumerate(units):
            entry = (trits[:, :, begin : begin + size] + 1) @ 3 ** np.arange(size - 1, -1, -1)
            codes[index, ..., unit] = entry.reshape(shape[1:]) * width + offset
            begin, offset = begin + size, offset + 3**size * width
    lookups = batch * len(units)
    by_batch = np.zeros((shape[2], planes, padded, lookups + -lookups % _TOGETHER), np.uint16)
    by_batch[..., :lookups] = codes.transpose(2, 0, 1, 3, 4).reshape(*by_batch.shape[:3], lookups)
    scales = np.zeros(2 * alpha.size + 2, np.int16)
    scales[1:-1:2] = alpha.reshape(shape).transpose(2, 0, 1, 3).reshape(-1)
    starts = np.append(starts, np.zeros(segments - len(starts), np.int64))
    return starts, by_batch, scales, alpha[:, :outputs].sum(axis=(0, 2), dtype=np.int64)


@cache
def make(tier: int, bits: int, units: tuple[int, ...], batch: int) -> Any:
    """Return the block function for an instruction set, a width of activations and a cut into units."""
    length, lookups = sum(units), len(units)
    width = INSTRUCTION_SETS[tier].width
    table_bytes = _entries(units) * width
    size, rest = units[0], units[-1] if units[-1] != units[0] else 0
    alike = lookups - 1 if rest else lookups

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
        codes, scales, begins, starts = weights
        batches, planes, padded, per_code = codes.shape[1], codes.shape[2], codes.shape[3], 2 * codes.shape[4]
        wide = outputs + -outputs % 16
        tables = 128 * width  # within `work`, behind the turned activations
        acc = tables + batch * table_bytes
        _begin(tier, begins, 4 * (group * padded + first), work, acc, wide, bits)
        for index in range(batches):
            for b in range(batch):
                own = tables + b * table_bytes
                begin = starts[group, index * batch + b]
                _turn_activations(tier, panel, panel.shape[1], begin, length, work, bits)
                _tabulate(tier, work, 0, own, alike, size, bits)
                if rest:
                    turned = alike * size * width
                    _tabulate(tier, work, turned, own + alike * 3**size * width, 1, rest, bits)
            for plane in range(planes):
                line = (index * planes + plane) * padded + first
                code = (group * batches * planes * padded + line) * per_code
                scale = 2 * group * scales.shape[1] + 4 * batch * line
                _look_up(tier, codes, code, scales, scale, work, tables, acc, wide, lookups, batch, bits)
        _turn_sums(tier, work, acc, sums, sums.shape[1], wide, bits)

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
def _begin(e: Emitter, first: Any, offset: Any, work: Any, acc: Any, outputs: Any, bits: int) -> None:
    """Fill the sums of each output channel with what they begin with."""
    first, acc = first + offset, work + acc
    vectors = 2 if bits == 8 else 4
    for m in e.range(0, outputs):
        value = e.load_spread(first + m * 4, i32)
        for i in range(vectors):
            e.store(acc + m * (vectors * e.isa.width) + i * e.isa.width, value)


@emitted
def _turn_activations(
    e: Emitter, panel: Any, pitch: Any, start: Any, length: Any, out: Any, bits: int
) -> None:
    """Bring positions start, .. of the panel's rows side by side: one vector for each position."""
    lanes, width = e.lanes(i32), e.isa.width
    low_half, even_bytes = 0xFFFF, 0x00FF00FF
    for k in e.range(0, length, width):
        parts = []
        for quarter in range(2 if bits == 8 else 4):
            rows = [e.load(panel + (quarter * lanes + r) * pitch + start + k, i32) for r in range(lanes)]
            parts.append(_transposed(e, rows))
        for four in range(lanes):
            place = out + (k + 4 * four) * width
            pairs = []
            for lower, upper in zip(parts[::2], parts[1::2], strict=True):
                a, b = lower[four], upper[four]
                pairs.append(((a & low_half) | (b << 16), a.shifted_in_zeros(16) | (b & ~low_half)))
            for half in range(2):
                if bits == 8:
                    value = pairs[0][half]
                    e.store(place + 2 * half * width, value & even_bytes)
                    e.store(place + (2 * half + 1) * width, value.bits_as(i16).shifted_in_zeros(8))
                else:
                    one, other = pairs[0][half], pairs[1][half]
                    even = (one & even_bytes) | ((other & even_bytes) << 8)
                    odd = (one.shifted_in_zeros(8) & even_bytes) | (other & ~even_bytes)
                    e.store(place + 2 * half * width, even.bits_as(i8) - _CENTRE)
                    e.store(place + (2 * half + 1) * width, odd.bits_as(i8) - _CENTRE)


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
def _look_up(
    e: Emitter, codes: Any, code: Any, scales: Any, scale: Any,
    work: Any, tables: Any, acc: Any, outputs: Any, lookups: int, batch: int, bits: int,
) -> None:  # fmt: skip
    """Add the entries that the codes name, and bring them into the sums: the multiplication-free loop."""
    element, vectors, width = (i16, 2, e.isa.width) if bits == 8 else (i8, 4, e.isa.width)
    steps = -(-batch * lookups // _TOGETHER)
    codes, scales, tables, acc = codes + code, scales + scale, work + tables, work + acc
    for m in e.range(0, outputs):
        place = acc + m * (vectors * width)
        totals = [e.load(place + i * width, i32) for i in range(vectors)]
        code, scale = codes + m * (2 * _TOGETHER * steps), scales + m * (4 * batch)
        offsets: list[Value] = []
        for segment in range(batch):
            found = []
            for _ in range(lookups):
                if not offsets:
                    offsets = _offsets(e, code)
                    code = code + 2 * _TOGETHER
                found.append(e.load(tables + offsets.pop(0), element))
            halves = [_sum(found)] if bits == 8 else _sum_bytes(e, found)
            even, odd = (e.load_spread(scale + 4 * segment + at, i32).bits_as(i16) for at in (2, 0))
            for i, half in enumerate(halves):
                totals[2 * i] += e.pair_sums(half, even)
                totals[2 * i + 1] += e.pair_sums(half, odd)
        for i in range(vectors):
            e.store(place + i * width, totals[i])


def _offsets(e: Emitter, code: Any) -> list[Value]:
    """Read four codes with one load: loads are what the loop has least of."""
    four = e.load_number(code, i64)
    return [four.shifted_in_zeros(16 * i) & 0xFFFF for i in range(_TOGETHER)]


def _sum(values: list[Value]) -> Value:
    """Add in two chains, so that an addition need not wait for the one before."""
    chains = values[:2]
    for index, value in enumerate(values[2:]):
        chains[index % 2] = chains[index % 2] + value
    return chains[0] if len(chains) == 1 else chains[0] + chains[1]


def _sum_bytes(e: Emitter, values: list[Value]) -> list[Value]:
    """Return the sums of the even and of the odd bytes in 16-bit lanes."""
    both, high = e.zeros(i16), e.zeros(i16)
    for begin in range(0, len(values), _WIDEN_EVERY):
        five = _sum(values[begin : begin + _WIDEN_EVERY]).bits_as(i16)
        both, high = both + five, high + five.shifted_in_zeros(8)
    return [both - (high << 8), high]


@emitted
def _turn_sums(e: Emitter, work: Any, acc: Any, sums: Any, pitch: Any, outputs: Any, bits: int) -> None:
    """Bring sums [output, row] into [row, output]."""
    acc = work + acc
    lanes, width = e.lanes(i32), e.isa.width
    vectors = 2 if bits == 8 else 4
    for m in e.range(0, outputs, lanes):
        for i in range(vectors):
            rows = [e.load(acc + (m + j) * (vectors * width) + i * width, i32) for j in range(lanes)]
            for r, value in enumerate(_transposed(e, rows)):
                e.store(sums + ((i * lanes + r) * pitch + m) * 4, value)
