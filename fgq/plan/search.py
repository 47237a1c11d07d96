"""The cheapest plan that holds: a search along a curve of plans, each tried by converting and measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fgq.errors import ConfigError
from fgq.plan.plan_file import Plan
from fgq.plan.tradeoffs import BITS
from fgq.report import HeldOutCheck


def search(
    plans: Sequence[Plan],
    budgets: Mapping[str, float],
    most: float,
    attempt: Callable[[int], HeldOutCheck],
) -> int:
    """Return the plan of fewest bits whose loss is at most so many points.

    Parameters
    ----------
    plans : sequence of Plan
        In order of bits (`fgq.plan.tradeoffs.Tradeoffs.curve`).
    budgets : mapping of str to float
        What all of them keep.
    most : float
        Points.
    attempt : callable
        Converts by the plan of an index, and measures; called for an index once at most.

    Returns
    -------
    int
        The index of a plan that was tried, and held.

    Raises
    ------
    ConfigError
        If none held; it says how far the best one came.
    """
    checks: dict[int, HeldOutCheck] = {}

    def holds(index: int) -> bool:
        checks[index] = attempt(index)
        return checks[index].loss.value <= most

    found = cheapest(len(plans), holds)
    if found is None:
        raise ConfigError(
            f"max drop: found {_reached(plans, checks, budgets)}, wanted at most {most:g} points"
        )
    return found


def cheapest(count: int, holds: Callable[[int], bool]) -> int | None:
    """Return the first of `count` things that holds, by bisection; the last one tried that held.

    Each is expected to hold where one before it does. Measured losses have chance in them, and neighbours
    may not keep to this; what is returned has itself been tried and held.

    Parameters
    ----------
    count : int
    holds : callable
        Tries the thing of an index; each is tried once at most.

    Returns
    -------
    int or None
        None where neither the first nor the last holds.
    """
    if count == 0:
        return None
    if holds(0):
        return 0
    low, high = 0, count - 1  # low does not hold
    if high == low or not holds(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def doubts(plan: Plan | None, check: HeldOutCheck | None, most: float | None) -> Iterator[str]:
    """Yield warnings of a plan that was not measured, or not well enough to tell its loss from `most`."""
    if plan is not None and check is None:
        yield "the plan was not measured: there were no samples to hold out; give --held-out-data"
    if check is not None and most is not None and check.loss.high > most:
        yield (
            f"{check.samples} held-out samples leave room for a loss of {check.loss.high:.2f} points, more "
            f"than {most:g}; give more --held-out-data"
        )


def _reached(plans: Sequence[Plan], checks: Mapping[int, HeldOutCheck], budgets: Mapping[str, float]) -> str:
    if not checks:
        kept = " and ".join(f"target {name} {value:g}" for name, value in budgets.items())
        return f"no plan within {kept}"
    best = min(checks, key=lambda index: checks[index].loss.value)
    check, bits = checks[best], plans[best].takes[BITS]
    return (
        f"a loss of {check.loss.value:.2f} points [{check.loss.low:.2f}, {check.loss.high:.2f}] at best "
        f"({check.measure} on {check.samples} held-out samples, {bits:.2f} bits a weight)"
    )
