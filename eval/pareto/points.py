"""What the study trains: sizes of the network, precisions, seeds, and one recipe for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fgq.errors import ConfigError
from fgq.quantization.scheme import ActivationScheme, Codes, Granularity, WeightScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the layers between the first and the last are quantized.

    Parameters
    ----------
    name : str
    weights : WeightScheme or None
    activations : ActivationScheme or None
        None in a float network, both.
    """

    name: str
    weights: WeightScheme | None = None
    activations: ActivationScheme | None = None


_INT4 = WeightScheme(codes=Codes.INT4, granularity=Granularity.FILTER)
_A8, _A4 = ActivationScheme(bits=8), ActivationScheme(bits=4)

FLOAT = "float"

PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision(name=FLOAT),
        Precision(name="w8a8", weights=WeightScheme(codes=Codes.INT8), activations=_A8),
        Precision(name="w4a8", weights=_INT4, activations=_A8),
        Precision(name="w4a4", weights=_INT4, activations=_A4),
        Precision(name="n4a8", weights=WeightScheme(group_size=4), activations=_A8),
        Precision(name="n4a4", weights=WeightScheme(group_size=4), activations=_A4),
        Precision(name="n64a8", weights=WeightScheme(group_size=64), activations=_A8),
        Precision(name="n64a4", weights=WeightScheme(group_size=64), activations=_A4),
        Precision(name="tied64a8", weights=WeightScheme(codes=Codes.TIED, group_size=64), activations=_A8),
    )
}
"""By name: w and a with the bits of weights and activations, n with the group size of ternary weights, tied
with that of two tied ternary planes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One network of the family, to be trained once.

    Parameters
    ----------
    width : float
    depth : int
        As for `fgq.eval.characters.network.CharacterNet`.
    precision : str
        A name in `PRECISIONS`.
    seed : int
        Of the first weights and of the order of the images.

    Raises
    ------
    ConfigError
        If the precision is unknown, the width not positive or the depth negative.
    """

    width: float
    depth: int
    precision: str
    seed: int

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: found {self.precision!r}, wanted one of {', '.join(PRECISIONS)}")
        if not 0 < self.width < math.inf:
            raise ConfigError(f"width: found {self.width}, wanted a positive number")
        if self.depth < 0:
            raise ConfigError(f"depth: found {self.depth}, wanted at least 0")

    @property
    def network(self) -> str:
        """The network's name, whatever its seed."""
        return f"width{self.width:g}.depth{self.depth}.{self.precision}"

    @property
    def name(self) -> str:
        """The point's own name."""
        return f"{self.network}.seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How every point is trained: AdamW with a linear warm-up and half a cosine (`fgq.train.trainer`).

    Parameters
    ----------
    steps, batch : int
    rate, weight_decay : float
        The peak learning rate, and the decay of weights.
    betas : tuple of float
        AdamW's; in so few steps its usual 0.999 remembers the first gradients for too long.
    images : int
        Size of the training set.
    bfloat16 : bool
        Whether to compute under bfloat16 autocast; the paper's float networks are bfloat16 ones.
    compile : bool
        Whether to compile the formulas of fake quantization, which takes a third less time.

    Raises
    ------
    ConfigError
        If a number is not positive.
    """

    steps: int = 1500
    batch: int = 128
    rate: float = 2e-2
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    images: int = 65536
    bfloat16: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted at least 1")

    @property
    def warm_up(self) -> int:
        """Steps until the learning rate is reached."""
        return max(1, self.steps // 5)

    @property
    def settled(self) -> int:
        """Steps until the ranges of activations are frozen."""
        return max(1, 3 * self.steps // 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to study.

    Parameters
    ----------
    widths : tuple of float
        Of networks of the bundled depth.
    depths : tuple of int
        Of further networks, all of one width.
    depth_width : float
        That width.
    precisions : tuple of str
    seeds : int
        Each network is trained with the seeds 0, 1, ...
    recipe : Recipe

    Raises
    ------
    ConfigError
        If there is nothing to train, or a value is out of its range.
    """

    widths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    depths: tuple[int, ...] = (2,)
    depth_width: float = 0.5
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    seeds: int = 3
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        if not self.points:
            raise ConfigError("pareto: found no points, wanted a width or a depth, a precision and a seed")

    @property
    def points(self) -> list[Point]:
        """All points, small networks first, each once."""
        sizes = {(width, 0) for width in self.widths} | {(self.depth_width, depth) for depth in self.depths}
        return [
            Point(width=width, depth=depth, precision=precision, seed=seed)
            for width, depth in sorted(sizes)
            for seed in range(self.seeds)
            for precision in dict.fromkeys(self.precisions)
        ]
