"""The recipe `calibrated`: groups chosen for what they do to the layer's output on calibration data."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fgq.config import Step
from fgq.quantization.scheme import WeightScheme
from fgq.recipes.codebook import Codebook
from fgq.recipes.descent import SWEEPS, fit_row_scale, sweep
from fgq.recipes.feedback import Elimination, feed_back
from fgq.recipes.moments import Float
from fgq.recipes.problem import Problem
from fgq.recipes.registered import RegisteredRecipe
from fgq.recipes.rows import Grouping, Rows, nearest

HEADROOM = 1.1
"""Row scales are widened by this factor before feedback, since it makes some groups larger."""


class Calibrated(RegisteredRecipe):
    """Error feedback over groups, then descent over codes and scales."""

    def propose(
        self,
        problem: Problem,
        grouping: Grouping,
        scheme: WeightScheme,
        least: Float | None,
        without: Collection[Step],
    ) -> Iterator[Rows]:
        """Propose the target's nearest rows, with error feedback, then after each sweep of descent."""
        rows = nearest(problem.target, scheme, grouping, least)
        yield rows
        if scheme.alpha_limit == 1:
            return
        codebook = Codebook(scheme.max_code, scheme.alpha_limit)
        if Step.FEEDBACK not in without:
            elimination = Elimination.of(problem.hessian, grouping)
            rows = feed_back(problem.target, elimination, codebook, HEADROOM * rows.row_scale)
            rows = fit_row_scale(problem, grouping, rows, least)
            yield rows
        for _ in range(0 if Step.DESCENT in without else SWEEPS):
            rows = sweep(problem, grouping, codebook, rows)
            rows = fit_row_scale(problem, grouping, rows, least)
            yield rows
