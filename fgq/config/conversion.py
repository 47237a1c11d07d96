"""The options of a conversion, each a field with its kind, its help text and its default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgq.config.choices import Activations, Form, Misfit, Step
from fgq.config.option import option, options
from fgq.config.recipes import Recipe
from fgq.errors import ConfigError
from fgq.quantization.scheme import (
    INT8_LIMIT,
    LARGEST_GROUP,
    WITHOUT_VNNI_LIMIT,
    ActivationScheme,
    Codes,
    Granularity,
    Ranges,
    WeightScheme,
)
from fgq.support.schema import (
    Kind,
    UnfitError,
    check,
    choice,
    flag,
    items,
    number,
    optional,
    pattern,
    shown,
    whole,
)

DUAL_WEIGHTS = 0.02
"""Layers whose INT4 weights lose more than this share of their squared sum get a second tensor."""

DUAL_ACTIVATIONS = 0.05
"""Layers whose 4-bit input loses more than this share of its squared sum get a second tensor."""


_PREFIX = "percentile:"
_PERCENTILE = re.compile(_PREFIX + r"[0-9]{1,3}(\.[0-9]{1,9})?")

_TARGETS = ("target_bits", "target_multiplications", "target_latency", "max_drop")


_POSITIVE = optional(number(above=0, wanted="a positive number"))
_SHARE = optional(number(least=0, wanted="a share of the squared sum, 0 or more"))


def _range(value: object) -> str:
    """Return how ranges are chosen."""
    if value == "mse":
        return "mse"
    if isinstance(value, str) and _PERCENTILE.fullmatch(value) and 50 < float(value[len(_PREFIX) :]) <= 100:
        return value
    raise UnfitError(shown(value), "mse, or percentile:P with P above 50 and up to 100")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionConfig:
    """The options of a conversion.

    Parameters
    ----------
    group_size : int
        N, how many weights share one scale.
    weights : Codes, optional
        What the codes of the weights are; ternary if not given, and INT4 with the recipe ``omse``,
        which takes INT8 too.
    granularity : Granularity, optional
        With the recipe ``omse``: which weights share one scale; ``group`` if not given, and ``filter``
        for INT8, which has no scales of smaller parts.
    dual_weights : float, optional
        With INT4 weights and the recipe ``omse``: layers whose weights lose more than this share of
        their squared sum get a second INT4 tensor; 0.02 if not given.
    recipe : Recipe, optional
        How weights become integers; if not given, ``calibrated`` with calibration data, else ``fgq``.
    without : sequence of Step
        Steps of the recipe to leave out, to see what each brings.
    dual_activations : float, optional
        With 4-bit activations: layers whose input loses more than this share of its squared sum get a second
        4-bit tensor; 0.05 if not given with the recipe ``omse``, and no layer with others.
    smooth : bool, optional
        Whether channels of activations are scaled, and the weights that read them against them, where
        calibration data say that this lowers the error (`fgq.conversion.smooth`); if not given, with 4-bit
        activations.
    target_bits : float, optional
        Give each layer ternary, tied, INT4 or INT8 codes, or leave it float, so that a weight takes no more
        bits on average, as kernels hold it (2, 4, 4 or 8, and 8/N for its alpha, or 32), and the outputs
        change least (`fgq.plan`).
    target_multiplications : float, optional
        The same for the share of multiplications by constant weights that is left.
    target_latency : float, optional
        The same for the time of all layers, estimated by timing each, as a share of the float layers' time.
    max_drop : float, optional
        Take the fewest bits, within the targets, whose measured loss is at most so many points
        (`fgq.report.HeldOutCheck`).
    activations : Activations
        ``int8`` and ``int4`` are static and need calibration data; ``int8-dynamic`` and
        ``int8-dynamic-token`` find the ranges of what MatMul and Gemm read at run time, of whole tensors or
        of each row along the last axis; ``none`` quantizes weights alone.
    range : str
        How static activations get their ranges: ``mse``, of least squared error, or ``percentile:P``, what
        holds P percent of the calibration data's values, above 50 up to 100; inputs of the model are cut to
        theirs before anything else is learned from them.
    form : Form
        ``packed`` (several codes a byte), ``int8`` (plain quantize/dequantize nodes) or ``inlined`` (packed,
        without a model-local function).
    include, exclude : str, optional
        Regular expressions searched in layer names: which layers to convert, which to leave float.
    group_size_fallback : Misfit
        For a layer whose input channels are no multiple of the group size: refuse, take a shorter last
        group, or take the largest divisor of its input channels that is not above the group size.
    first_last_int8 : bool
        Keep the first convolution after each input and the last matrix product before each output at
        8 bits, as the papers do.
    x86_without_vnni : bool
        Halve the range of alpha for x86 processors without VNNI, where onnxruntime adds products in
        saturating int16.

    Raises
    ------
    ConfigError
        If a value is out of its range or a regular expression is malformed.
    """

    group_size: int = field(
        default=64, metadata=option(whole(1, LARGEST_GROUP), "Weights that share one scale.", metavar="N")
    )
    weights: Codes | None = field(
        default=None,
        metadata=option(
            optional(choice(Codes)),
            "Codes of the weights: -1..1, two tied ternary planes, or integers.",
            in_words="ternary; int4 with omse",
        ),
    )
    recipe: Recipe | None = field(
        default=None,
        metadata=option(
            optional(choice(Recipe)),
            "How weights become integers: the paper's way, calibrated on data, INT4 or INT8 of least squared "
            "error, or calibrated and then trained block by block (extra train).",
            in_words="calibrated with calibration data, else fgq",
        ),
    )
    without: tuple[Step, ...] = field(
        default=(),
        metadata=option(
            items(choice(Step), wanted="a list of steps"),
            "Leave a step of the recipe out (docs/recipes.md); may be repeated.",
            metavar="STEP",
        ),
    )
    granularity: Granularity | None = field(
        default=None,
        metadata=option(
            optional(choice(Granularity)),
            "With omse: which weights share a scale.",
            in_words="group; filter for int8 weights",
        ),
    )
    dual_weights: float | None = field(
        default=None,
        metadata=option(
            _SHARE,
            "With omse: a second INT4 tensor for layers that lose more than this share of the squared "
            "sum of their weights.",
            metavar="SHARE",
            in_words=f"{DUAL_WEIGHTS}",
        ),
    )
    dual_activations: float | None = field(
        default=None,
        metadata=option(
            _SHARE,
            "With 4-bit activations: a second 4-bit tensor for layers that lose more than this share of the "
            "squared sum of their input.",
            metavar="SHARE",
            in_words=f"{DUAL_ACTIVATIONS} with omse, else none",
        ),
    )
    smooth: bool | None = field(
        default=None,
        metadata=option(
            optional(flag),
            "Scale channels of activations, and weights against them, where data say that this lowers the "
            "error.",
            in_words="with 4-bit activations",
            flags="--smooth/--no-smooth",
        ),
    )
    target_bits: float | None = field(
        default=None,
        metadata=option(
            _POSITIVE,
            "Choose ternary, tied, int4, int8 or float for each layer: at most B bits a weight.",
            metavar="B",
        ),
    )
    target_multiplications: float | None = field(
        default=None,
        metadata=option(
            _POSITIVE, "The same, for at most this share of float's multiplications.", metavar="SHARE"
        ),
    )
    target_latency: float | None = field(
        default=None,
        metadata=option(
            _POSITIVE,
            "The same, for this share of float's time, estimated by timing each layer.",
            metavar="SHARE",
        ),
    )
    max_drop: float | None = field(
        default=None,
        metadata=option(
            optional(number(least=0, wanted="a number of at least 0")),
            "Plan for the fewest bits whose loss on held-out samples is at most so many points.",
            metavar="POINTS",
        ),
    )
    activations: Activations = field(
        default=Activations.INT8,
        metadata=option(
            choice(Activations),
            "8- or 4-bit activations with ranges from calibration data; 8-bit ones of MatMul and Gemm with "
            "ranges found at run time, of each tensor or of each row; or float ones.",
        ),
    )
    range: str = field(
        default="mse",
        metadata=option(
            _range,
            "Ranges from calibration data: mse, of least squared error, or percentile:P, of P percent of "
            "the values.",
            metavar="RANGE",
        ),
    )
    form: Form = field(
        default=Form.PACKED,
        metadata=option(choice(Form), "Several codes a byte, plain int8, or packed without a function."),
    )
    include: str | None = field(
        default=None,
        metadata=option(optional(pattern), "Convert only layers whose name matches.", metavar="REGEX"),
    )
    exclude: str | None = field(
        default=None,
        metadata=option(optional(pattern), "Leave layers whose name matches float.", metavar="REGEX"),
    )
    group_size_fallback: Misfit = field(
        default=Misfit.RAGGED,
        metadata=option(
            choice(Misfit),
            "For layers whose input channels are no multiple of the group size: refuse, a shorter last "
            "group, or a smaller group size that fits.",
        ),
    )
    first_last_int8: bool = field(
        default=True,
        metadata=option(
            flag,
            "The first convolution and the last matrix product at 8 bits.",
            in_words="int8",
            flags="--first-last-int8/--first-last-ternary",
        ),
    )
    x86_without_vnni: bool = field(
        default=False,
        metadata=option(
            flag,
            "Halve the range of scales, for onnxruntime on x86 processors without VNNI.",
            flags="--x86-without-vnni",
        ),
    )

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            object.__setattr__(self, name, check(kind, getattr(self, name), name, ConfigError))
        self._check_omse()
        self._check_range()
        for name in _TARGETS:
            if getattr(self, name) is not None and (self.weights is not None or self.recipe is Recipe.OMSE):
                raise ConfigError(
                    f"{name}: found {getattr(self, name)!r} for {self.codes} weights, wanted one of the two"
                )

    def _check_range(self) -> None:
        """Check that ranges follow from calibration data where a percentile is asked of them."""
        percentile = self.percentile
        static = self.activations in (Activations.INT8, Activations.INT4)
        if percentile is not None and not static:
            raise ConfigError(
                f"range: found {self.range!r} with {self.activations} activations, wanted int8 or int4, "
                "whose ranges come from calibration data"
            )

    def _check_omse(self) -> None:
        """Check the options of the recipe ``omse``."""
        if self.recipe is Recipe.OMSE and self.weights not in (None, Codes.INT4, Codes.INT8):
            raise ConfigError(
                f"weights: found {self.weights} with the recipe {self.recipe}, wanted int4 or int8"
            )
        for name in ("granularity", "dual_weights"):
            if self.recipe is not Recipe.OMSE and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}: found {getattr(self, name)} without the recipe {Recipe.OMSE}, wanted both"
                )
        fine = self.granularity in (Granularity.KERNEL, Granularity.GROUP)
        if self.codes is Codes.INT8 and fine:
            raise ConfigError(
                f"granularity: found {self.granularity} for int8 weights, wanted layer or filter"
            )
        for name, kind in (("dual_weights", self.codes), ("dual_activations", self.activations)):
            share = getattr(self, name)
            if share is not None and kind.value != "int4":
                raise ConfigError(f"{name}: found {share} with {name[5:]} of {kind}, wanted int4")

    @property
    def percentile(self) -> float | None:
        """The share of values that ranges hold, in percent; None with those of least squared error."""
        return None if self.range == "mse" else float(self.range.removeprefix(_PREFIX))

    @property
    def dual_weights_above(self) -> float | None:
        """The error above which a layer gets a second INT4 tensor; None where none does."""
        if self.recipe is not Recipe.OMSE or self.codes is not Codes.INT4:
            return None
        return DUAL_WEIGHTS if self.dual_weights is None else self.dual_weights

    @property
    def dual_activations_above(self) -> float | None:
        """The error above which a layer gets a second 4-bit input; None where none does."""
        if self.recipe is Recipe.OMSE and self.dual_activations is None:
            return DUAL_ACTIVATIONS
        return self.dual_activations

    @property
    def smooths(self) -> bool:
        """Whether channels of activations are scaled where this helps."""
        return self.activations is Activations.INT4 if self.smooth is None else self.smooth

    @property
    def budgets(self) -> dict[str, float]:
        """The targets that are given, by what they limit: bits, multiplications, latency."""
        given = {name: getattr(self, f"target_{name}") for name in ("bits", "multiplications", "latency")}
        return {name: float(target) for name, target in given.items() if target is not None}

    @property
    def is_planned(self) -> bool:
        """Whether the layers' schemes follow from targets."""
        return bool(self.budgets) or self.max_drop is not None

    @property
    def weight_limit(self) -> int:
        """The largest magnitude of an 8-bit weight."""
        return WITHOUT_VNNI_LIMIT if self.x86_without_vnni else INT8_LIMIT

    @property
    def codes(self) -> Codes:
        """What the codes of the weights are."""
        return self.weights or (Codes.INT4 if self.recipe is Recipe.OMSE else Codes.TERNARY)

    @property
    def weight_scheme(self) -> WeightScheme:
        """The scheme of the layers that are not kept at 8 bits."""
        return self._scheme(self.codes)

    @property
    def int8(self) -> WeightScheme:
        """The scheme of the layers kept at 8 bits."""
        return self._scheme(Codes.INT8)

    def _scheme(self, codes: Codes) -> WeightScheme:
        return WeightScheme(
            codes=codes,
            group_size=self.group_size,
            granularity=self.granularity or Granularity.GROUP,
            weight_limit=self.weight_limit,
        )

    @property
    def activation_scheme(self) -> ActivationScheme | None:
        """The scheme of the inputs of layers not kept at 8 bits; None where activations stay float."""
        return {
            Activations.INT8: ActivationScheme(bits=8),
            Activations.INT4: ActivationScheme(bits=4),
            Activations.INT8_DYNAMIC: ActivationScheme(ranges=Ranges.TENSOR),
            Activations.INT8_DYNAMIC_TOKEN: ActivationScheme(ranges=Ranges.TOKEN),
        }.get(self.activations)


def options_of_scheme(scheme: WeightScheme) -> dict[str, Any]:
    """Return the options that a weight scheme stands for: the group size and the range of alpha.

    Raises
    ------
    ConfigError
        If its weight limit is none of the two that can be asked for.
    """
    if scheme.weight_limit not in (INT8_LIMIT, WITHOUT_VNNI_LIMIT):
        raise ConfigError(
            f"weight limit: found {scheme.weight_limit}, wanted {INT8_LIMIT}, or {WITHOUT_VNNI_LIMIT} "
            "for x86 without VNNI"
        )
    return {
        "group_size": scheme.group_size,
        "x86_without_vnni": scheme.weight_limit == WITHOUT_VNNI_LIMIT,
    }


KINDS: Mapping[str, Kind[Any]] = {name: each.kind for name, each in options(ConversionConfig).items()}
"""What the options may be, each by itself."""
