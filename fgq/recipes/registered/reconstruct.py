"""The recipe `reconstruct`: as `calibrated`, then trained block by block towards the float network."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING

from fgq.config import Recipe
from fgq.errors import ConfigError
from fgq.recipes.registered import RegisteredRecipe
from fgq.support.progress import Progress

if TYPE_CHECKING:
    from fgq.recipes.layerwise import Network, Refined


class Reconstruct(RegisteredRecipe):
    """Training in PyTorch, from where `calibrated` ends."""

    batch = 8
    starts_from = Recipe.CALIBRATED

    def check(self) -> None:
        """Check that PyTorch is installed."""
        if importlib.util.find_spec("torch") is None:
            raise ConfigError(
                f"recipe {Recipe.RECONSTRUCT}: found no PyTorch, wanted it for training; install the extra "
                "train: pip install 'fgq[train]'"
            )

    def finish(self, network: Network, refined: Refined, progress: Progress) -> Refined:
        """Train the network."""
        from fgq.recipes.reconstruct.blockwise import reconstruct_network

        return reconstruct_network(network, refined, partial(progress, "reconstruct"))
