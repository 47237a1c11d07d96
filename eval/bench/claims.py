"""What the kernels are to show, and what a run found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fgq.eval.bench.baselines import FLOAT, MATMUL_INTEGER, NBITS_2, QLINEAR_CONV
from fgq.eval.bench.kernels import Row
from fgq.eval.bench.shapes import GEMM, GEMV, GEMV_WIDE

TQ2_0_GMACS = 62.0
"""llama.cpp's ternary TQ2_0, one scale per 256 weights, on one thread of a processor with AVX-512 and AMX
(Xeon, 2.1 GHz), 1 x 4096 x 14336. The one figure here that is not of the same run."""

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
    at_least, aim : float
        What is wanted, and what is hoped for.
    """

    what: str
    against: str
    found: float | None
    at_least: float
    aim: float

    @property
    def verdict(self) -> str:
        """How it went, in a word or two."""
        if self.found is None:
            return "not measured"
        return "aim" if self.found >= self.aim else "met" if self.found >= self.at_least else "missed"


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

    def claim(what: str, against: str, ratio: float | None, at_least: float, aim: float) -> None:
        found.append(Claim(what=what, against=against, found=ratio, at_least=at_least, aim=aim))

    free = gemv.of(FREE)
    claim(f"{name[GEMV]} multiplication-free", FLOAT, _mean(free, _over(FLOAT)), 12, 15)
    claim(f"{name[GEMV]} multiplication-free", NBITS_2, _mean(free, _over(NBITS_2)), 2, 2.5)
    claim(f"{name[GEMV]} multiplication-free", "read bandwidth", _mean(free, _of_bandwidth), 0.8, 0.9)
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
    ratio, slowest = min(_packed_against_unpacked(rows), default=(None, "none"))
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


def _packed_against_unpacked(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Return for each setting how fast packed weights are, in units of unpacked ones, and its name."""
    dots = [row for row in rows if row.wish == DOT]
    fast = {_setting(row): row.ms for row in dots if row.memory == "fast"}
    return [
        (fast[_setting(row)] / row.ms, f"{row.shape} N={row.group_size}")
        for row in dots
        if row.memory == "compact" and _setting(row) in fast
    ]


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


def _mean(rows: Sequence[Row], ratio: Callable[[Row], float | None]) -> float | None:
    return geometric_mean([found for row in rows if (found := ratio(row)) is not None])


def _speedup(faster: Sequence[Row], slower: Sequence[Row]) -> float | None:
    return slower[0].ms / faster[0].ms if faster and slower else None
