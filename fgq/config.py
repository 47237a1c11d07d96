"""What a person may ask of a conversion, from Python, the command line or a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

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
    read_json,
    read_toml,
    shown,
    table,
    whole,
)

DUAL_WEIGHTS = 0.02
"""Layers whose INT4 weights lose more than this share of their squared sum get a second tensor."""

DUAL_ACTIVATIONS = 0.05
"""Layers whose 4-bit input loses more than this share of its squared sum get a second tensor."""


class Activations(StrEnum):
    """How activations are held between layers."""

    INT8 = "int8"
    INT4 = "int4"
    INT8_DYNAMIC = "int8-dynamic"
    """What MatMul and Gemm read; ranges of whole tensors, found at run time."""
    INT8_DYNAMIC_TOKEN = "int8-dynamic-token"
    """The same with a range for each row along the last axis."""
    NONE = "none"


class Recipe(StrEnum):
    """How weights become integers, see docs/recipes.md."""

    FGQ = "fgq"
    """The nearest group, as the paper of 2017 has it; means and variances corrected with data."""
    CALIBRATED = "calibrated"
    """Groups chosen for what they do to the layer's output on calibration data."""
    OMSE = "omse-int4"
    """INT4 of least squared error, its scales refined on calibration data."""
    RECONSTRUCT = "reconstruct"
    """As calibrated, then trained block by block to give the float network's outputs."""


class Step(StrEnum):
    """A step of the recipes that look at data, see docs/recipes.md."""

    TARGET = "target"
    """Quantize what serves the inputs as they now are, in place of the float weights."""
    RESIDUAL = "residual"
    """Make up for what the value that a result is added to has lost."""
    FEEDBACK = "feedback"
    """Let the weights not yet quantized make up for those that are."""
    DESCENT = "descent"
    """Sweep over codes and scales under the input covariance."""
    BIAS = "bias"
    """Correct biases, and then judge weights by what no bias can make up for."""


class Form(StrEnum):
    """How the weights are written, see docs/architecture.md."""

    PACKED = "packed"
    INT8 = "int8"
    INLINED = "inlined"


class ExportForm(StrEnum):
    """What a converted model is written as."""

    INT8 = "int8"
    """Quantize and dequantize nodes around int8 weights, for any engine that knows these."""
    INLINED = "inlined"
    """As packed, with the function's operators in its place."""
    FLOAT = "float"
    """Float operators and weights alone; the weights keep their quantized values."""


class Misfit(StrEnum):
    """What to do with a layer whose reduction axis is no multiple of the group size."""

    ERROR = "error"
    RAGGED = "ragged"
    SMALLER = "smaller"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionConfig:
    """The options of a conversion.

    Parameters
    ----------
    group_size : int
        N, how many weights share one scale.
    weights : Codes, optional
        What the codes of the weights are; ternary if not given, and INT4 with the recipe ``omse-int4``,
        which takes INT8 too.
    granularity : Granularity, optional
        With the recipe ``omse-int4``: which weights share one scale; ``group`` if not given, and ``filter``
        for INT8, which has no scales of smaller parts.
    dual_weights : float, optional
        With INT4 weights and the recipe ``omse-int4``: layers whose weights lose more than this share of
        their squared sum get a second INT4 tensor; 0.02 if not given.
    recipe : Recipe, optional
        How weights become integers; if not given, ``calibrated`` with calibration data, else ``fgq``.
    without : sequence of Step
        Steps of the recipe to leave out, to see what each brings.
    dual_activations : float, optional
        With 4-bit activations: layers whose input loses more than this share of its squared sum get a second
        4-bit tensor; 0.05 if not given with the recipe ``omse-int4``, and no layer with others.
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

    group_size: int = 64
    weights: Codes | None = None
    recipe: Recipe | None = None
    without: tuple[Step, ...] = ()
    granularity: Granularity | None = None
    dual_weights: float | None = None
    dual_activations: float | None = None
    smooth: bool | None = None
    target_bits: float | None = None
    target_multiplications: float | None = None
    target_latency: float | None = None
    max_drop: float | None = None
    activations: Activations = Activations.INT8
    range: str = "mse"
    form: Form = Form.PACKED
    include: str | None = None
    exclude: str | None = None
    group_size_fallback: Misfit = Misfit.RAGGED
    first_last_int8: bool = True
    x86_without_vnni: bool = False

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
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
        """Check the options of the recipe ``omse-int4``."""
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


_PREFIX = "percentile:"
_PERCENTILE = re.compile(_PREFIX + r"[0-9]{1,3}(\.[0-9]{1,9})?")

_TARGETS = ("target_bits", "target_multiplications", "target_latency", "max_drop")


_POSITIVE = optional(number(above=0, wanted="a positive number"))
_SHARE = optional(number(least=0, wanted="a share of the squared sum, 0 or more"))
_REGEX = optional(pattern)


def _range(value: object) -> str:
    """Return how ranges are chosen."""
    if value == "mse":
        return "mse"
    if isinstance(value, str) and _PERCENTILE.fullmatch(value) and 50 < float(value[len(_PREFIX) :]) <= 100:
        return value
    raise UnfitError(shown(value), "mse, or percentile:P with P above 50 and up to 100")


_KINDS: dict[str, Kind[Any]] = {
    "group_size": whole(1, LARGEST_GROUP),
    "weights": optional(choice(Codes)),
    "recipe": optional(choice(Recipe)),
    "without": items(choice(Step), wanted="a list of steps"),
    "granularity": optional(choice(Granularity)),
    "dual_weights": _SHARE,
    "dual_activations": _SHARE,
    "smooth": optional(flag),
    "target_bits": _POSITIVE,
    "target_multiplications": _POSITIVE,
    "target_latency": _POSITIVE,
    "max_drop": optional(number(least=0, wanted="a number of at least 0")),
    "activations": choice(Activations),
    "range": _range,
    "form": choice(Form),
    "include": _REGEX,
    "exclude": _REGEX,
    "group_size_fallback": choice(Misfit),
    "first_last_int8": flag,
    "x86_without_vnni": flag,
}
"""What the options may be, each by itself."""


def read_config(path: str | Path) -> dict[str, Any]:
    """Read conversion options from a TOML or JSON file.

    Parameters
    ----------
    path : path-like
        Keys are the parameters of `ConversionConfig`, with ``-`` or ``_``.

    Returns
    -------
    dict
        Keyword arguments for `ConversionConfig`.

    Raises
    ------
    ConfigError
        If the file cannot be read or parsed, or holds an option that does not exist or cannot be so.
    """
    path = Path(path)
    is_json = path.suffix.lower() == ".json"
    found = read_json(path, ConfigError) if is_json else read_toml(path, ConfigError)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found a {type(found).__name__}, wanted a table of options")
    options: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in _KINDS:
            known = ", ".join(_KINDS)
            raise ConfigError(f"{path}: found the unknown option {shown(key)}, wanted one of {known}")
        if name in options:
            raise ConfigError(f"{path}: found the option {name!r} twice, wanted one spelling of it")
        options[name] = value
    check(table({}, _KINDS), options, str(path), ConfigError)
    return options
