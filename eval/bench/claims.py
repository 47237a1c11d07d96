"""What the kernels are to show, and what a run found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fgq.eval.bench.baselines import FLOAT, MATMUL_INTEGER, NBITS_2, QLINEAR_CONV
from fgq.eval.bench.kernels import Row
from fgq.eval.bench.shapes import GEMM, GEMV, GEMV_WIDE

TQ2_0_GMACS = 62.0
"""llama.cpp's ternary TQ2_0, one scale per 256 weights, measured on one core of a machine with AVX-512
and AMX, 1 x 4096 x 14336. The one figure here that is not of the same run."""

FREE, DOT = "multiplication-free", "dot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One ratio.

    Parameters
    ----------
    what, against : str
        What is measured, and the measure.
    found : float or None
        The ratio; None where the run does not hold both.
    busy : bool
        Whether other processes were at work during any of its timings.
    at_least : float or None
        What is wanted; None where there is an aim alone.
    aim : float
        What is hoped for.
    """

    what: str
    against: str
    found: float | None
    busy: bool
    at_least: float | None
    aim: float

    @property
    def verdict(self) -> str:
        """How it went, in a word or two."""
        if self.found is None:
            return "not measured"
        if self.found >= self.aim:
            return "aim"
        if self.at_least is None:
            return "short of the aim"
        return "met" if self.found >= self.at_least else "missed"


Ratio = tuple[float | None, bool]
"""Of a claim: what was found, and whether other processes were at work."""


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Compare a run with what is to be shown.

    Parameters
    ----------
    rows : sequence of Row

    Returns
    -------
    list of Claim
        Those that the run holds nothing for too.
    """
    gemv, wide, gemm = (_Chosen(rows, "MatMul", str(shape)) for shape in (GEMV, GEMV_WIDE, GEMM))
    convs = _Chosen(rows, "Conv")
    name = {GEMV: f"GEMV {GEMV}", GEMV_WIDE: f"GEMV {GEMV_WIDE}", GEMM: f"GEMM {GEMM}"}
    resnet = "ResNet-50 convolutions, geometric mean,"
    found = list[Claim]()

    def claim(what: str, against: str, ratio: Ratio, at_least: float | None, aim: float) -> None:
        value, busy = ratio
        found.append(Claim(what=what, against=against, found=value, busy=busy, at_least=at_least, aim=aim))

    free = gemv.of(FREE)
    claim(f"{name[GEMV]} multiplication-free", FLOAT, _mean(free, _over(FLOAT)), 12, 15)
    claim(f"{name[GEMV]} multiplication-free", NBITS_2, _mean(free, _over(NBITS_2)), 2, 2.5)
    claim(f"{name[GEMV]} multiplication-free", "read bandwidth", _mean(free, _of_bandwidth), None, 0.9)
    tq2 = _mean(wide.of(FREE), lambda row: row.gmacs / TQ2_0_GMACS)
    claim(f"{name[GEMV_WIDE]} multiplication-free", "llama.cpp TQ2_0, on such a machine", tq2, 1.4, 1.8)
    for memory in ("fast", "compact"):
        dot = gemm.of(DOT, memory)
        claim(f"{name[GEMM]} dot, {memory}", FLOAT, _mean(dot, _over(FLOAT)), 10, 20)
        claim(f"{name[GEMM]} dot, {memory}", MATMUL_INTEGER, _mean(dot, _over(MATMUL_INTEGER)), 1, 2)
    claim(f"{name[GEMM]} multiplication-free", FLOAT, _mean(gemm.of(FREE), _over(FLOAT)), 2.5, 3.5)
    for memory in ("fast", "compact"):
        dot = convs.of(DOT, memory)
        claim(f"{resnet} dot, {memory}", FLOAT, _mean(dot, _over(FLOAT)), 6, 12)
        claim(f"{resnet} dot, {memory}", QLINEAR_CONV, _mean(dot, _over(QLINEAR_CONV)), 2, 4)
    claim(f"{resnet} multiplication-free", FLOAT, _mean(convs.of(FREE), _over(FLOAT)), 2, 3)
    for what, chosen in ((name[GEMM], gemm), (resnet, convs)):
        small = _mean(chosen.of(FREE, group_size=4), _over(FLOAT))
        claim(f"{what} multiplication-free, N=4", FLOAT, small, 1, 1.5)
    four = _speedup(gemm.of(FREE, bits=4), gemm.of(FREE))
    claim(f"{name[GEMM]} multiplication-free, 4-bit activations", "8-bit activations", four, 1.4, 1.8)
    slowest, ratio = _slowest_packed(rows)
    claim(f"every dot row, compact: the slowest, {slowest}", "fast", ratio, 0.7, 0.95)
    for wish, memory in ((DOT, "fast"), (FREE, "compact")):
        two = _speedup(gemm.of(wish, memory, threads=2), gemm.of(wish, memory))
        claim(f"{name[GEMM]} {wish}, two threads", "one thread", two, 1.7, 1.9)
    return found


class _Chosen:
    """The rows of one operator, or one shape of it."""

    def __init__(self, rows: Iterable[Row], op: str, shape: str | None = None) -> None:
        self._rows = [row for row in rows if row.op == op and shape in (None, row.shape)]

    def of(
        self, wish: str, memory: str | None = None, *, group_size: int = 64, bits: int = 8, threads: int = 1
    ) -> list[Row]:
        """Return those of a wish and a setting; 8-bit weights belong to every group size."""
        return [
            row
            for row in self._rows
            if row.wish == wish
            and memory in (None, row.memory)
            and row.group_size in (None, group_size)
            and (row.activation_bits, row.threads) == (bits, threads)
        ]


def _setting(row: Row) -> tuple[object, ...]:
    return row.op, row.shape, row.group_size, row.activation_bits, row.threads


def _slowest_packed(rows: Sequence[Row]) -> tuple[str, Ratio]:
    """Return where packed weights are slowest in units of unpacked ones, and how fast they are there."""
    dots = [row for row in rows if row.wish == DOT]
    fast = {_setting(row): row for row in dots if row.memory == "fast"}
    pairs = [(fast[_setting(row)], row) for row in dots if row.memory == "compact" and _setting(row) in fast]
    if not pairs:
        return "none", (None, False)
    unpacked, packed = min(pairs, key=lambda pair: pair[0].ms / pair[1].ms)
    return f"{packed.shape} N={packed.group_size}", _speedup([packed], [unpacked])


def _over(baseline: str) -> Callable[[Row], float | None]:
    """Return a function from a row to how much faster it is than a baseline."""

    def ratio(row: Row) -> float | None:
        other = row.baselines.get(baseline)
        return None if other is None else other / row.ms

    return ratio


def _of_bandwidth(row: Row) -> float:
    return row.resident_bytes / (row.read_gbs * 1e9) / (row.ms * 1e-3)


def geometric_mean(values: Sequence[float]) -> float | None:
    """Return the geometric mean, None of no values."""
    return float(np.exp(np.mean(np.log(values)))) if values else None


def _mean(rows: Sequence[Row], ratio: Callable[[Row], float | None]) -> Ratio:
    counted = [(found, bool(row.busy)) for row in rows if (found := ratio(row)) is not None]
    return geometric_mean([found for found, _ in counted]), any(busy for _, busy in counted)


def _speedup(faster: Sequence[Row], slower: Sequence[Row]) -> Ratio:
    if not faster or not slower:
        return None, False
    return slower[0].ms / faster[0].ms, bool(faster[0].busy or slower[0].busy)
