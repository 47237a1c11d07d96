"""The recipes, one module each, by its name: a file here is all that makes one (`fgq.config.Recipe`).

The module has one class, derived from `RegisteredRecipe`. It proposes rows for each layer, of which the best
are taken by held-out data (`fgq.recipes.selection`), and may train the whole network after that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from fgq.config import Recipe, Step
from fgq.quantization.scheme import WeightScheme
from fgq.support.progress import Progress

if TYPE_CHECKING:
    from fgq.recipes.layerwise import Network, Refined
    from fgq.recipes.moments import Float
    from fgq.recipes.problem import Problem
    from fgq.recipes.rows import Grouping, Rows

_REGISTERED: dict[str, RegisteredRecipe] = {}
"""Of the modules that were loaded, by their names."""


class RegisteredRecipe:
    """How weights become integers: the recipe of the module in which a class is derived from this one.

    Attributes
    ----------
    needs_data : bool
        Whether it wants calibration data.
    batch : int or None
        Samples that are run together, where steps on them want a number of their own.
    starts_from : Recipe or None
        The recipe that proposes rows in its place.
    """

    needs_data: ClassVar[bool] = True
    batch: ClassVar[int | None] = None
    starts_from: ClassVar[Recipe | None] = None

    def __init_subclass__(cls) -> None:
        """Register the recipe."""
        _REGISTERED[cls.__module__] = cls()

    def check(self) -> None:
        """Check that the recipe can run here.

        Raises
        ------
        ConfigError
            If something is not installed.
        """

    def propose(
        self,
        problem: Problem,
        grouping: Grouping,
        scheme: WeightScheme,
        least: Float | None,
        without: Collection[Step],
    ) -> Iterator[Rows]:
        """Propose rows for one reduction of a layer; none but the nearest, unless a recipe knows better.

        Parameters
        ----------
        problem : Problem
            What the rows should give, and how inputs weigh what they miss.
        grouping : Grouping
        scheme : WeightScheme
        least : ndarray of float64, shape (M,), or None
            Lower bounds on the row scales.
        without : collection of Step
            Steps to leave out.

        Yields
        ------
        Rows
        """
        yield from ()

    def finish(self, network: Network, refined: Refined, progress: Progress) -> Refined:
        """Return what the recipe makes of a network whose layers have been refined one by one.

        Parameters
        ----------
        network : Network
        refined : Refined
            The layers by the rows that were proposed.
        progress : callable
            Called as ``progress(stage, done, total)``.
        """
        return refined


def load_recipe(recipe: Recipe) -> RegisteredRecipe:
    """Return a recipe; its module is loaded when it is first asked for."""
    module = f"{__name__}.{recipe.value.replace('-', '_')}"
    import_module(module)
    return _REGISTERED[module]
