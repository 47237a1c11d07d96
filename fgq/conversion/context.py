"""What every stage of a conversion is given besides the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fgq.config import ConversionConfig
from fgq.data.sources import Source
from fgq.plan import Plan
from fgq.recipes.checkpoint import Checkpoint
from fgq.support.progress import Progress


def silent(stage: str, done: int, total: int | None) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The options, the data and the progress of a conversion.

    Parameters
    ----------
    config : ConversionConfig
    calibration, held_out : as for `fgq.convert`
    plan : Plan or None
        The scheme of every layer, where it is given.
    progress : callable
        Called as ``progress(stage, done, total)``.
    make_checkpoint : callable, optional
        Returns where finished layers are kept, given the fingerprint of the conversion.
    """

    config: ConversionConfig
    calibration: Source | None = None
    held_out: Source | None = None
    plan: Plan | None = None
    progress: Progress = silent
    make_checkpoint: Callable[[str], Checkpoint] | None = None

    def stage(self, name: str) -> Callable[[int, int | None], None]:
        """Return what reports the progress of one stage, as ``report(done, total)``."""
        return partial(self.progress, name)


def unfinished_folder(destination: str | os.PathLike[str]) -> Path:
    """Return where an interrupted conversion keeps the layers that it has finished, beside its output."""
    return Path(f"{os.fspath(destination)}.unfinished")
