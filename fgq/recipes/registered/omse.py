"""The recipe `omse`: INT4 or INT8 of least squared error, its scales refined on calibration data."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fgq.config import Step
from fgq.quantization.scheme import Fit, WeightScheme
from fgq.recipes.codebook import Codebook
from fgq.recipes.descent import SWEEPS, fit_row_scale, sweep
from fgq.recipes.moments import Float
from fgq.recipes.problem import Problem
from fgq.recipes.registered import RegisteredRecipe
from fgq.recipes.rows import Grouping, Rows, least_squares, nearest


class Omse(RegisteredRecipe):
    """Integers of least squared error, then scales fitted to the inputs."""

    def propose(
        self,
        problem: Problem,
        grouping: Grouping,
        scheme: WeightScheme,
        least: Float | None,
        without: Collection[Step],
    ) -> Iterator[Rows]:
        """Propose the target's rows of least squared error, then alphas and row scales fitted to the inputs.

        Of INT8 rows, those that clip nothing come first.
        """
        if scheme.codes.spec.fit is Fit.LARGEST:
            yield nearest(problem.target, scheme, grouping, least)
        rows = least_squares(problem.target, scheme, grouping, least)
        yield rows
        codebook = Codebook(scheme.max_code, scheme.alpha_limit)
        sweeps = SWEEPS if scheme.alpha_limit > 1 else 1
        for _ in range(0 if Step.DESCENT in without else sweeps):
            if scheme.alpha_limit > 1:
                rows = sweep(problem, grouping, codebook, rows, keep_codes=True)
            rows = fit_row_scale(problem, grouping, rows, least)
            yield rows
