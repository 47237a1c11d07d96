"""Between the first stage and the others: the plan of all layers' schemes, where targets ask for one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fgq.conversion.context import Context
from fgq.conversion.prepared import Prepared
from fgq.conversion.written import Written
from fgq.converters.self_check import few_samples
from fgq.errors import DataError
from fgq.format.outputs import classifier_output
from fgq.plan import Plan
from fgq.plan.search import search
from fgq.plan.tradeoffs import BITS, Tradeoffs, weigh
from fgq.report import HeldOutCheck
from fgq.support.temporary import temporary_folder

Finish = Callable[[Prepared, Path, Plan | None, Context], Written]
"""The stages after the first, by a plan."""


def best_plan(prepared: Prepared, context: Context) -> Plan:
    """Return the plan that changes the outputs least within the targets.

    Parameters
    ----------
    prepared : Prepared
        With calibration data.
    context : Context

    Raises
    ------
    ConfigError
        If no plan keeps the targets.
    """
    return _weigh(prepared, context).plan(context.config.budgets)


def search_plan(prepared: Prepared, path: Path, context: Context, finish: Finish) -> Written:
    """Convert by the plan of fewest bits whose measured loss is at most `max_drop`.

    Parameters
    ----------
    prepared : Prepared
        With calibration data; each plan is tried on a copy.
    path : Path
        The file to write, in a folder of its own.
    context : Context
    finish : callable
        Called as ``finish(prepared, path, plan, context)`` for each plan that is tried.

    Raises
    ------
    FgqError
        If no plan holds, or there are no samples to measure the loss on.
    """
    config = context.config
    most = config.max_drop
    assert most is not None
    tradeoffs = _weigh(prepared, context)
    if prepared.judge is None:
        raise DataError(
            "held-out data: found too few samples to set any aside, wanted some to measure the loss on; give "
            "more calibration data, or --held-out-data"
        )
    plans = tradeoffs.curve(config.budgets)
    held: dict[int, Written] = {}  # the last that held, no more: models may be large
    with temporary_folder() as folder:

        def attempt(index: int) -> HeldOutCheck:
            def progress(stage: str, done: int, total: int | None) -> None:
                context.progress(f"plan of {plans[index].takes[BITS]:.2f} bits: {stage}", done, total)

            trial = folder / str(index) / path.name
            trial.parent.mkdir()
            # Finished layers of one plan are of no use to another.
            each = replace(context, progress=progress, make_checkpoint=None)
            written = finish(prepared.copy(config), trial, plans[index], each)
            check = written.report.held_out
            assert check is not None  # there are samples to judge by
            if check.loss.value <= most:
                held.clear()
                held[index] = written
            return check

        best = search(plans, config.budgets, most, attempt)
        for file in (folder / str(best)).iterdir():
            shutil.move(file, path.parent / file.name)
    return held[best]


def _weigh(prepared: Prepared, context: Context) -> Tradeoffs:
    """Measure what the schemes of every layer cost."""
    feeds, check, judge = prepared.feeds, prepared.check, prepared.judge
    assert feeds is not None  # a conversion without calibration data was refused
    return weigh(
        prepared.model,
        prepared.choices,
        feeds,
        few_samples(feeds[0], check.divisible, 1),
        context.config,
        classifier_output(prepared.model) if judge is None else judge.scores,
        context.stage("plan"),
    )
