"""The best assignment of options to layers under budgets: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fgq.errors import ConfigError

Table = Sequence[NDArray[np.float64]]
"""For each layer, a value of each of its options."""


def assign(costs: Table, budgets: Sequence[tuple[Table, float]]) -> list[int] | None:
    """Choose one option for each layer: least sum of costs among all that keep every budget.

    With x[l, o] in {0, 1}, minimize ``sum cost[l, o] x[l, o]`` so that ``sum_o x[l, o] = 1`` for each layer
    and ``sum takes[l, o] x[l, o] <= budget`` for each budget (the integer program of HAWQ-V3, Yao et al.
    2021, arXiv 2011.10680). SciPy's HiGHS solves it, to a gap of zero.

    Parameters
    ----------
    costs : table
    budgets : sequence of (table, float)
        What the options take of each budget, and the budget, a positive number; it is kept to one part in
        a million.

    Returns
    -------
    list of int or None
        The option of each layer; None where no assignment keeps all budgets.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # heavy
    from scipy.sparse import block_diag, csr_array

    every = np.concatenate(costs)
    scale = float(every.max()) or 1.0
    one_each = block_diag([np.ones((1, len(each))) for each in costs], format="csr")
    rows = [np.concatenate(takes) / budget for takes, budget in budgets]
    constraints = [LinearConstraint(one_each, 1, 1)]
    constraints += [LinearConstraint(csr_array(row[None]), -np.inf, 1) for row in rows]
    found = milp(
        every / scale,
        integrality=np.ones(every.size),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        return None
    cuts = np.cumsum([len(each) for each in costs])[:-1]
    return [int(np.argmax(part)) for part in np.split(found.x, cuts)]


def totals(table: Table, picked: Sequence[int]) -> float:
    """Return the sum of the picked options' values."""
    return float(sum(values[option] for values, option in zip(table, picked, strict=True)))


def check_reach(name: str, table: Table, budget: float, unit: float) -> None:
    """Refuse a budget that even the least options exceed.

    Parameters
    ----------
    name : str
        What the budget is called.
    table : table
        What the options take.
    budget, unit : float
        The budget is `budget` times `unit`.

    Raises
    ------
    ConfigError
        Saying what is the least possible.
    """
    least = sum(float(each.min()) for each in table) / unit
    if least > budget:
        raise ConfigError(f"{name}: found {budget:g}, wanted at least {least:.2f} for this model")
