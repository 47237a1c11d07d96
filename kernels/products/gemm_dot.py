"""Matrix product for many rows on vectors: int8 dot products, or multiply-adds where there are none.

Algorithm
    Four k of a row of activations are spread over a register and meet four k of 16 outputs (8 in 32 bytes),
    a line of the panels of :mod:`fgq.kernels.products.panels`. A block of rows and lines of outputs keeps its
    sums in registers over a chunk of k, in which the weights stay in the nearest cache for all rows of a
    panel::

        64 bytes    4 rows x 4 panels of 16 outputs           vpdpbusd or vpmaddwd
        32 bytes    4 rows x 2 half lines of one panel        the same

    Rows are computed in whole blocks: what lies behind the last one exists and is never looked at.

Compact weights
    are decoded a chunk at a time into work memory, once for all rows of a panel.

Accumulators
    int32. They hold K <= 66,000 products, 66,000 * 255 * 127 < 2**31. Without VNNI, bytes are widened to
    int16 before vpmaddwd, whose sums of two products are exact; nothing saturates on any tier.

Instructions per multiplication
    With VNNI 1.5 / 64 at 512 bits, 2 / 32 at 256: a dot product and its share of the loads. Without, four
    in its place, and the widening.
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
from fgq.kernels.simd.emit import Emitter, Pointer, Value, emitted, i32
from fgq.kernels.simd.isa import InstructionSet, index_of

_LINE = 4 * OUTPUTS
"""Bytes of four k of a panel."""

_HELD = 4
"""Rows that registers hold the sums of."""

_ROWS_MULTIPLE = 32
"""Rows in a block are a multiple of this, also where the driver makes smaller ones."""

_CHUNK = 8
"""Most steps of 64 k in a chunk: four panels of it are 32 KB."""

_PANEL_BYTES = 1 << 18
"""Memory for the rows of a block: an eighth of a second-level cache."""

_SUMS = 1 << 14
"""Sums in a block."""

_WIDEST = 256
"""Outputs in a block."""


def prepare(matrices: list[Weight], isa: InstructionSet, *, compact: bool = False) -> Engine:
    """Lay out the weights.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights, [M / groups, K] each.
    isa : InstructionSet
        With vectors.
    compact : bool
        Keep the codes and scales, and decode them as they are used.

    Raises
    ------
    KernelError
        If the instruction set has no vectors, or the weights cannot be packed
        (:func:`fgq.kernels.products.panels.pack_compact`).
    """
    if not isa.width:
        raise KernelError(f"dot product: found instruction set {isa.name}, wanted one with vectors")
    reduction = matrices[0].shape[1]
    depth = steps_of(reduction) * DEPTH
    tier = index_of(isa)
    coding, weights = pack_compact(matrices) if compact else (None, pack(matrices))
    numbers = (0, 0, 0) if coding is None else (coding.bits, coding.run, coding.planes)

    def plan(rows: int, outputs: int) -> Plan:
        outputs_step = min(_up(outputs, OUTPUTS_MULTIPLE), _WIDEST)
        most = max(_ROWS_MULTIPLE, min(_SUMS // outputs_step, _PANEL_BYTES // depth))
        return Plan(
            rows_step=min(_up(rows, _ROWS_MULTIPLE), most - most % _ROWS_MULTIPLE),
            outputs_step=outputs_step,
            pitch=depth,
            work_bytes=_panels(isa.width) * _CHUNK * TILE_BYTES if compact else 0,
            direct=reduction == depth,
        )

    return Engine(block=_block(tier, *numbers), tier=tier, weights=(weights,), plan=plan)


def _up(count: int, multiple: int) -> int:
    return count + -count % multiple


def _panels(width: int) -> int:
    """Return how many panels of outputs are taken together."""
    return 4 if width == _LINE else 1


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
            tier, bits, run, planes, weights[0][group], panel, panel.shape[1], rows, first, outputs, sums,
            sums.shape[1], work,
        )  # fmt: skip

    return block


@emitted
def _multiply(
    e: Emitter, bits: Any, run: Any, planes: Any, weights: Any, panel: Any, pitch: Any, rows: Any,
    first: Any, outputs: Any, sums: Any, widest: Any, work: Any,
) -> None:  # fmt: skip
    coding = Coding(bits=bits, run=run, planes=planes) if bits else None
    panels = _panels(e.isa.width)
    steps = pitch // DEPTH
    record = coding.record_bytes if coding else TILE_BYTES
    weights = weights + first // OUTPUTS * (steps * record)
    chunks = (steps + (_CHUNK - 1)) // _CHUNK
    for column in e.range(0, (outputs + (OUTPUTS * panels - 1)) // (OUTPUTS * panels)):
        for chunk in e.range(0, chunks):
            begin = steps * chunk // chunks
            count = steps * (chunk + 1) // chunks - begin
            given = weights + (column * panels * steps + begin) * record
            if coding:
                for step in e.range(0, count):
                    for index in e.range(0, panels):
                        place = given + (index * steps + step) * record
                        decode_tile(e, place, coding, work + (step + index * _CHUNK) * TILE_BYTES)
                lines = [work + index * _CHUNK * TILE_BYTES for index in range(panels)]
            else:
                lines = [given + index * steps * TILE_BYTES for index in range(panels)]
            vectors = [line + half for line in lines for half in range(0, _LINE, e.isa.width)]
            for row in e.range(0, rows, _HELD):
                x = panel + (row * pitch + begin * DEPTH)
                out = sums + (row * (widest * 4) + column * (_LINE * panels))
                _products(e, x, pitch, vectors, count * (DEPTH // 4), out, widest * 4, begin > 0)


def _products(
    e: Emitter, x: Pointer, pitch: Value, vectors: list[Pointer], fours: Value, out: Pointer,
    out_pitch: Value, added: Value,
) -> None:  # fmt: skip
    """Emit sums of a few rows and some vectors of outputs over a chunk of k; `added` to those in `out`."""
    kept = e.filled(e.number(e.choose(added, e.number(-1), 0), i32), i32)
    places = [
        [out + row * out_pitch + index * e.isa.width for index in range(len(vectors))] for row in range(_HELD)
    ]
    totals = [[e.variable(e.load(place, i32) & kept) for place in line] for line in places]
    rows = [x + row * pitch for row in range(_HELD)]
    for four in e.range(0, fours):
        weights = [e.load(vector + four * _LINE, i32) for vector in vectors]
        for sums, row in zip(totals, rows, strict=True):
            spread = e.load_spread(row + four * 4, i32)
            for total, weight in zip(sums, weights, strict=True):
                total.value = e.dot(total, spread, weight)
    for line, sums in zip(places, totals, strict=True):
        for place, total in zip(line, sums, strict=True):
            e.store(place, total)
