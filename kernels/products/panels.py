"""Weights in the order of integer dot products: panels of 16 outputs, tiles of 64 k.

A dot-product instruction takes four neighbouring k of each output, so four k of 16 outputs make a line of
64 bytes, and 16 such lines a tile, which is at once the right operand of an AMX product and 16 registers
for vector kernels (half a line each where registers have 32 bytes)::

    tile[k4, m, j] = w8[16 * panel + m, 64 * step + 4 * k4 + j]          int8 [16, 16, 4], 1,024 bytes
    weights        = tile[panel, step]                                   panel-major: a panel is one stream

Outputs are filled up with zeros to a multiple of 64, and k to a multiple of 64.

*Compact* weights keep the codes and the scales instead, and are decoded into tiles as they are used. A record
stands for a tile: for each plane its codes and then its scales. Line by line of 64 bytes, the codes hold
several of the lines above on top of each other::

    2 bits (codes -1..1)    byte = c[4 q] | c[4 q + 1] << 2 | c[4 q + 2] << 4 | c[4 q + 3] << 6     4 lines
    4 bits (codes -7..7)    byte = c[2 q] | c[2 q + 1] << 4                                         8 lines
    with c[k4] = code + 1 or code + 7, and q the line

    scales uint8 [64 / run, m]: one for each run of 4, 8, .., 64 k, the longest that no group ends within;
    so resident bits per weight are 2 or 4, and 8 / run.

Decoding two bits: ``(line >> 2 s & 3) | 4 * (m % 4)`` looks up the bytes -alpha, 0, alpha, which lie four
outputs to each 16 bytes of a register: a shift, a vpternlog and a vpshufb for 64 weights.

Decoding four bits: with two weights in an int16 lane, ``lane * alpha - 7 * 257 * alpha`` is
``alpha * code0 + 256 * alpha * code1`` modulo 2**16; adding 128 before and flipping that bit after keeps
the low byte, of magnitude 127 at most, from borrowing of the high one.

A weight that is a sum of planes is decoded plane by plane and added as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.products.driver import aligned
from fgq.kernels.products.weights import Plane, Weight
from fgq.kernels.simd.emit import Emitter, Pointer, Value, i8, i16, i32

OUTPUTS = 16
"""Outputs in a panel."""

DEPTH = 64
"""k in a tile."""

TILE_BYTES = OUTPUTS * DEPTH
"""Bytes in a tile of int8 weights."""

OUTPUTS_MULTIPLE = 64
"""Outputs are filled up to a multiple of this."""

LARGEST_CODE = 7
"""Largest magnitude of a code that compact weights hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How compact weights are coded; compiled code is specialised on it.

    Parameters
    ----------
    bits : int
        Bits of a code, 2 or 4.
    run : int
        k that share a scale: 4, 8, 16, 32 or 64.
    planes : int
        How many planes are added.
    """

    bits: int
    run: int
    planes: int

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a plane of a tile."""
        return TILE_BYTES * self.bits // 8

    @property
    def plane_bytes(self) -> int:
        """Bytes of a plane of a tile."""
        return self.code_bytes + TILE_BYTES // self.run

    @property
    def record_bytes(self) -> int:
        """Bytes of a tile."""
        return self.planes * self.plane_bytes


def steps_of(reduction: int) -> int:
    """Return how many tiles a panel has for a K."""
    return -(-reduction // DEPTH)


def pack(matrices: Sequence[Weight]) -> NDArray[np.uint8]:
    """Return the int8 panels of each conv group's weights, uint8 [groups, bytes]."""
    outputs, reduction = matrices[0].shape
    out = _zeros((len(matrices), *_tiled(outputs, reduction), DEPTH // 4, 4 * OUTPUTS))
    for group, matrix in enumerate(matrices):
        out[group] = _in_tiles(matrix.int8().view(np.uint8), 0)
    return out.reshape(len(matrices), -1)


def pack_compact(matrices: Sequence[Weight]) -> tuple[Coding, NDArray[np.uint8]]:
    """Return the compact form of each conv group's weights.

    Parameters
    ----------
    matrices : sequence of Weight
        Of one shape and grouping.

    Returns
    -------
    coding : Coding
        How they are coded.
    records : ndarray of uint8, shape (groups, bytes)
        Panel-major; behind the last record there is room for one more.

    Raises
    ------
    KernelError
        If groups begin elsewhere than at multiples of 4, codes are beyond -7..7, or a plane alone beyond an
        int8.
    """
    largest = max(matrix.largest_code for matrix in matrices)
    starts = matrices[0].starts
    if largest > LARGEST_CODE or (starts % 4).any():
        raise KernelError(
            f"compact weights: found codes up to {largest} in groups that begin at "
            f"{', '.join(map(str, starts[:4]))}, ..; wanted codes up to {LARGEST_CODE} and multiples of 4"
        )
    run = DEPTH
    while (starts % run).any():
        run //= 2
    coding = Coding(bits=2 if largest <= 1 else 4, run=run, planes=len(matrices[0].planes))
    tiles = int(np.prod(_tiled(*matrices[0].shape)))
    out = _zeros((len(matrices), (tiles + 1) * coding.record_bytes))
    for made, matrix in zip(out, matrices, strict=True):
        records = made[: tiles * coding.record_bytes].reshape(tiles, coding.planes, -1)
        for index, plane in enumerate(matrix.planes):
            records[:, index, : coding.code_bytes] = _codes(plane, matrix.group, coding).reshape(tiles, -1)
            records[:, index, coding.code_bytes :] = _scales(plane, matrix.group, coding).reshape(tiles, -1)
    return coding, out


def _codes(plane: Plane, group: NDArray[np.int32], coding: Coding) -> NDArray[np.uint8]:
    """Return the codes in lines, several on top of each other."""
    if coding.bits == 4:
        magnitude = np.abs(plane.codes.astype(np.int16)) * np.take(plane.alpha, group, axis=-1)
        if (largest := int(magnitude.max(initial=0))) > 127:
            raise KernelError(
                f"compact weights: found alpha * code up to {largest}, wanted 127 in each plane"
            )
    offset = 1 if coding.bits == 2 else LARGEST_CODE
    each = 8 // coding.bits
    lines = _in_tiles((plane.codes + np.int8(offset)).view(np.uint8), offset)
    lines = lines.reshape(*lines.shape[:2], -1, each, 4 * OUTPUTS)
    stacked = lines[:, :, :, 0].copy()
    for place in range(1, each):
        stacked |= lines[:, :, :, place] << np.uint8(coding.bits * place)
    return stacked


def _scales(plane: Plane, group: NDArray[np.int32], coding: Coding) -> NDArray[np.uint8]:
    """Return the scales, uint8 [panels, steps, 64 / run, 16 outputs]."""
    outputs, reduction = plane.codes.shape
    panels, steps = _tiled(outputs, reduction)
    alpha = np.zeros((panels * OUTPUTS, steps * (DEPTH // coding.run)), np.uint8)
    first = group[:: coding.run]
    alpha[:outputs, : first.size] = plane.alpha[:, first]
    return alpha.reshape(panels, OUTPUTS, steps, -1).transpose(0, 2, 3, 1)


def _tiled(outputs: int, reduction: int) -> tuple[int, int]:
    return -(-outputs // OUTPUTS_MULTIPLE) * (OUTPUTS_MULTIPLE // OUTPUTS), steps_of(reduction)


def _in_tiles(matrix: NDArray[np.uint8], filling: int) -> NDArray[np.uint8]:
    """Bring [M, K] into [panels, steps, 16 k4, 16 outputs x 4]."""
    outputs, reduction = matrix.shape
    panels, steps = _tiled(outputs, reduction)
    whole = np.full((panels * OUTPUTS, steps * DEPTH), filling, np.uint8)
    whole[:outputs, :reduction] = matrix
    fours = whole.view(np.uint32).reshape(panels, OUTPUTS, steps, DEPTH // 4)
    tiles = np.ascontiguousarray(fours.transpose(0, 2, 3, 1))
    return tiles.view(np.uint8)


def _zeros(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    made = aligned(shape, np.uint8)
    made.fill(0)
    return made


def decode_tile(e: Emitter, record: Pointer, coding: Coding, out: Pointer) -> None:
    """Emit the decoding of one tile of compact weights into int8.

    Parameters
    ----------
    e : Emitter
        Of a set with vectors of 32 or 64 bytes.
    record : Pointer
        The tile's codes and scales.
    coding : Coding
        How they are coded.
    out : Pointer
        Where its 1,024 bytes go.
    """
    for half in range(0, 4 * OUTPUTS, e.isa.width):
        readers = [
            _reader(e, coding, record + (plane * coding.plane_bytes), half) for plane in range(coding.planes)
        ]
        for k4 in range(DEPTH // 4):
            total = readers[0](k4)
            for reader in readers[1:]:
                total = total + reader(k4)
            e.store(out + (4 * OUTPUTS * k4 + half), total)


def _reader(e: Emitter, coding: Coding, codes: Pointer, half: int) -> Callable[[int], Value]:
    """Return a function that emits the decoding of the line `k4` of a tile, asked in order."""
    each = 8 // coding.bits
    lanes = e.lanes(i32)
    place = e.constant([4 * (lane % 4) * 0x01010101 for lane in range(lanes)], i32)
    state: dict[str, Value] = {}

    def line(k4: int) -> Value:
        if k4 % each == 0:
            state["codes"] = e.load(codes + (4 * OUTPUTS * (k4 // each) + half), i32)
        if 4 * k4 % coding.run == 0:
            begin = coding.code_bytes + OUTPUTS * (4 * k4 // coding.run) + half // 4
            scale = e.load(codes + begin, i8, lanes).unsigned(i32)
            if coding.bits == 2:
                state["table"] = (((0 - scale) & 255) | (scale << 16)).bits_as(i8)
            else:
                state["scale"] = (scale | (scale << 16)).bits_as(i16)
                state["offset"] = 128 - state["scale"] * (LARGEST_CODE * 257)
        shifted = state["codes"].shifted_in_zeros(coding.bits * (k4 % each))
        if coding.bits == 2:
            return e.permuted_in_16(state["table"], ((shifted & 0x03030303) | place).bits_as(i8))
        pairs = (shifted & 0x0F0F0F0F).bits_as(i16)
        return ((pairs * state["scale"] + state["offset"]) ^ 128).bits_as(i8)

    return line
