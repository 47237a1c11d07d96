"""The names of the recipes: the modules in `fgq/recipes/registered`, none of which is loaded here."""

from __future__ import annotations

import os
from enum import StrEnum
from pkgutil import iter_modules
from typing import TYPE_CHECKING

_FOLDER = os.path.join(os.path.dirname(__file__), os.pardir, "recipes", "registered")

_FIRST = "fgq"
"""The recipe that all others are held against, listed first."""

_FORMER = {"omse-int4": "omse"}
"""Names that recipes had in earlier versions, and are still taken."""


class _Name(StrEnum):
    """How weights become integers, see docs/recipes.md."""

    @classmethod
    def _missing_(cls, value: object) -> _Name | None:
        name = _FORMER.get(value) if isinstance(value, str) else None
        return None if name is None else cls(name)


def _names() -> list[str]:
    names = [module.name.replace("_", "-") for module in iter_modules([_FOLDER])]
    return sorted(names, key=lambda name: (name != _FIRST, name))


if TYPE_CHECKING:

    class Recipe(_Name):
        """The members that the code itself names; a recipe of its own file needs no line here."""

        FGQ = "fgq"
        CALIBRATED = "calibrated"
        OMSE = "omse"
        RECONSTRUCT = "reconstruct"

else:
    Recipe = _Name("Recipe", {name.replace("-", "_").upper(): name for name in _names()}, module=__name__)
    Recipe.__doc__ = _Name.__doc__
