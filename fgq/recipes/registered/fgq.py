"""The recipe `fgq`: the nearest group, as the paper of 2017 has it.

With data, convolutions get the means and variances of their outputs back. Every other recipe is held against
this one, so that the steps are those of `fgq.recipes.fitting.Fitting.plain`.
"""

from __future__ import annotations

from fgq.recipes.registered import RegisteredRecipe


class Fgq(RegisteredRecipe):
    """The nearest rows."""

    needs_data = False
