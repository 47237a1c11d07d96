"""What a person may ask of a conversion, from Python, the command line or a file."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from fgq.errors import ConfigError
from fgq.scheme import INT8_LIMIT, WITHOUT_VNNI_LIMIT, ActivationScheme, Codes, Ranges, WeightScheme


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
        What the codes of the weights are; ternary if not given, and INT4 with the recipe ``omse-int4``.
    recipe : Recipe, optional
        How weights become integers; if not given, ``calibrated`` with calibration data, else ``fgq``.
    target_bits : float, optional
        Give each layer ternary, tied or 8-bit codes so that a weight takes no more bits on average, as
        kernels hold it (2, 4 or 8, and 8/N for its alpha), and the outputs change least (`fgq.plan`).
    activations : Activations
        ``int8`` and ``int4`` are static and need calibration data; ``int8-dynamic`` and
        ``int8-dynamic-token`` find the ranges of what MatMul and Gemm read at run time, of whole tensors or
        of each row along the last axis; ``none`` quantizes weights alone.
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
    target_bits: float | None = None
    activations: Activations = Activations.INT8
    form: Form = Form.PACKED
    include: str | None = None
    exclude: str | None = None
    group_size_fallback: Misfit = Misfit.RAGGED
    first_last_int8: bool = True
    x86_without_vnni: bool = False

    def __post_init__(self) -> None:
        for name, kind in (
            ("weights", Codes),
            ("recipe", Recipe),
            ("activations", Activations),
            ("form", Form),
            ("group_size_fallback", Misfit),
        ):
            value = getattr(self, name)
            if value is not None or name not in ("weights", "recipe"):
                object.__setattr__(self, name, _choice(name, kind, value))
        if self.recipe is Recipe.OMSE and self.weights not in (None, Codes.INT4):
            raise ConfigError(f"weights: found {self.weights} with the recipe {self.recipe}, wanted int4")
        bits = self.target_bits
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int | float) or not bits > 0):
            raise ConfigError(f"target_bits: found {bits!r}, wanted a positive number")
        if bits is not None and (self.weights is not None or self.recipe is Recipe.OMSE):
            raise ConfigError(f"target_bits: found {bits!r} for {self.codes} weights, wanted one of the two")
        for name in ("include", "exclude"):
            _check_regex(name, getattr(self, name))
        for name in ("first_last_int8", "x86_without_vnni"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: found {getattr(self, name)!r}, wanted true or false")
        if not isinstance(self.group_size, int) or isinstance(self.group_size, bool):
            raise ConfigError(f"group_size: found {self.group_size!r}, wanted a whole number")
        WeightScheme(codes=self.codes, group_size=self.group_size)

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
        return WeightScheme(codes=self.codes, group_size=self.group_size, weight_limit=self.weight_limit)

    @property
    def int8(self) -> WeightScheme:
        """The scheme of the layers kept at 8 bits."""
        return WeightScheme(codes=Codes.INT8, weight_limit=self.weight_limit)

    @property
    def activation_scheme(self) -> ActivationScheme | None:
        """The scheme of the inputs of layers not kept at 8 bits; None where activations stay float."""
        return {
            Activations.INT8: ActivationScheme(bits=8),
            Activations.INT4: ActivationScheme(bits=4),
            Activations.INT8_DYNAMIC: ActivationScheme(ranges=Ranges.TENSOR),
            Activations.INT8_DYNAMIC_TOKEN: ActivationScheme(ranges=Ranges.TOKEN),
        }.get(self.activations)


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
        If the file cannot be read or parsed, or holds an option that does not exist.
    """
    path = Path(path)
    is_json = path.suffix.lower() == ".json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    try:
        found = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the parsers' own errors are ValueErrors
        kind = "JSON" if is_json else "TOML"
        raise ConfigError(f"{path}: is not valid {kind} ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found a {type(found).__name__}, wanted a table of options")
    known = [field.name for field in fields(ConversionConfig)]
    options: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"{path}: found the unknown option {key!r}, wanted one of {', '.join(known)}")
        if name in options:
            raise ConfigError(f"{path}: found the option {name!r} twice, wanted one spelling of it")
        options[name] = value
    return options


def _choice(name: str, kind: type[StrEnum], value: Any) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        wanted = ", ".join(kind)
        raise ConfigError(f"{name}: found {value!r}, wanted one of {wanted}") from None


def _check_regex(name: str, pattern: object) -> None:
    if pattern is None:
        return
    if not isinstance(pattern, str):
        raise ConfigError(f"{name}: found {pattern!r}, wanted a regular expression")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{name}: {pattern!r} is not a regular expression ({error})") from None
