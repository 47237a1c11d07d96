"""What whole models are to show, and what a run found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgq.eval.bench.baselines import FLOAT, OPENVINO
from fgq.eval.bench.whole_models import Row

FGQ = "fgq"
INT8 = "onnxruntime int8"
DYNAMIC = "onnxruntime dynamic int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One ratio.

    Parameters
    ----------
    what, against : str
        What is measured, and the measure.
    found : float or None
        How many times faster it is; None where the run does not hold both.
    busy : bool
        Whether other processes were at work during either timing.
    at_least : float
        What is wanted.
    """

    what: str
    against: str
    found: float | None
    busy: bool
    at_least: float

    @property
    def verdict(self) -> str:
        """How it went, in a word or two."""
        if self.found is None:
            return "not measured"
        return "met" if self.found >= self.at_least else "missed"


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Compare a run at one thread with what is to be shown.

    Parameters
    ----------
    rows : sequence of Row

    Returns
    -------
    list of Claim
        Those that the run holds nothing for too.
    """
    found = list[Claim]()

    def claim(what: str, ours: Row | None, against: str, theirs: Row | None, at_least: float) -> None:
        known = ours is not None and theirs is not None
        found.append(
            Claim(
                what=what,
                against=against,
                found=theirs.median_ms / ours.median_ms if ours and theirs else None,
                busy=known and any(row.busy for row in (ours, theirs) if row),
                at_least=at_least,
            )
        )

    def model(name: str, batch: int) -> _Chosen:
        return _Chosen(rows, name, batch)

    resnet = model("resnet50", 1)
    for against, least in ((FLOAT, 6.0), (INT8, 2.0), (OPENVINO, 0.6)):
        claim("resnet50, N=64, auto", resnet.ours("auto"), against, resnet.theirs(against), least)
    free = resnet.ours("multiplication-free", "compact")
    claim("resnet50, N=64, multiplication-free", free, FLOAT, resnet.theirs(FLOAT), 1.8)
    claim("resnet50, N=4, auto", resnet.ours("auto", group_size=4), FLOAT, resnet.theirs(FLOAT), 6.0)
    compact = resnet.ours("auto", "compact")
    claim("resnet50, N=64, auto, compact", compact, "fgq, fast", resnet.ours("auto"), 0.7)
    minilm = model("minilm", 1)
    for against, least in ((FLOAT, 3.0), (DYNAMIC, 1.2)):
        claim("minilm, N=64, auto", minilm.ours("auto"), against, minilm.theirs(against), least)
    for batch in (1, 32):
        cnn = model("cnn", batch)
        for against, least in ((FLOAT, 2.0), (INT8, 1.0)):
            what = f"cnn, batch {batch}, N=64, auto"
            claim(what, cnn.ours("auto"), against, cnn.theirs(against), least)
    return found


class _Chosen:
    """The rows of one model and batch, at one thread."""

    def __init__(self, rows: Sequence[Row], model: str, batch: int) -> None:
        self._rows = [row for row in rows if (row.model, row.batch, row.threads) == (model, batch, 1)]

    def theirs(self, engine: str) -> Row | None:
        return next((row for row in self._rows if row.engine == engine), None)

    def ours(self, kernels: str, memory: str = "fast", *, group_size: int = 64) -> Row | None:
        wanted = {"group_size": group_size, "kernels": kernels, "memory": memory}
        return next((row for row in self._rows if row.engine == FGQ and row.options == wanted), None)
