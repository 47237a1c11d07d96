"""Which of the rows that a recipe proposes are taken, and how far their outputs vary.

What a step proposes is taken, row by row, only where it lowers the error on held-out data; so no row is
worse there than the nearest one, which every recipe begins with.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fgq.quantization.ternary import bounded_row_scale
from fgq.recipes.moments import Float, Moments
from fgq.recipes.rows import Grouping, Rows

PRIOR_POSITIONS = 16
"""So many positions weigh as much as what is believed before: of a row's error, what all rows together show;
of its variance, that it is right."""


def best_of(first: Rows, proposals: Iterable[Rows], held_out: Moments, grouping: Grouping) -> Rows:
    """Return, row by row, what has the least error on held-out data; rows of one scale stay together.

    Parameters
    ----------
    first : Rows
        Taken where nothing is better.
    proposals : iterable of Rows
    held_out : Moments
        Of one reduction.
    grouping : Grouping
    """
    best, least = first, held_out.error(first.weights(grouping)[None])[0]
    unit = np.where(least > 0, least, least.mean() if least.any() else 1.0)

    def judged(error: Float) -> Float:
        """Return errors in units of the first ones, drawn to their mean where few positions tell of them."""
        ratio = error / unit
        drawn: Float = held_out.positions * ratio + PRIOR_POSITIONS * ratio.mean()
        return drawn / (held_out.positions + PRIOR_POSITIONS)

    for rows in proposals:
        error = held_out.error(rows.weights(grouping)[None])[0]
        if grouping.shared:
            better = np.broadcast_to(error.sum() < least.sum(), error.shape)
        else:
            better = judged(error) < judged(least)
        best = best.where(better, rows)
        least = np.where(better, error, least)
    return best


def matched(rows: Rows, moments: Moments, grouping: Grouping, least: Float | None) -> Rows:
    """Scale rows so that their outputs vary as much as the wanted ones.

    The factor is ``sqrt(E[y^2] / E[(V x)^2])``, the ratio of standard deviations where the moments are
    centred (as in the statistics correction of OBC, Frantar & Alistarh 2022, arXiv 2208.11580), of the
    positions but one, which the mean has taken, and `PRIOR_POSITIONS` at which both are ``E[y^2]``.

    Parameters
    ----------
    rows : Rows
    moments : Moments
        Of one reduction.
    grouping : Grouping
    least : ndarray of float64, shape (M,), or None
        Lower bounds on the row scales.
    """
    found = moments.variance(rows.weights(grouping)[None])[0]
    wanted = moments.power[0] / max(moments.positions, 1)
    positions = max(moments.positions - 1, 0)
    varies = (found > 0) & (wanted > 0)
    mixed = (positions * np.where(varies, found / np.where(varies, wanted, 1.0), 1.0) + PRIOR_POSITIONS) / (
        positions + PRIOR_POSITIONS
    )
    factor = 1 / np.sqrt(mixed)
    return rows._replace(row_scale=bounded_row_scale(rows.row_scale * factor, least))
