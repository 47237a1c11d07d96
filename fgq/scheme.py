"""How a layer is quantized: small frozen values, validated when they are made.

Terms used throughout the project:

code
    the small integer stored for one weight: {-1, 0, +1} in a ternary tensor, see `Codes`.
alpha
    the unsigned integer scale of one group of codes.
row scale
    the float32 scale of one output channel; ``alpha * code * row_scale`` is the weight.
group size N
    how many weights, consecutive along the reduction axis, share one alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fgq.errors import ConfigError

INT8_LIMIT = 127
"""Largest magnitude of a quantized weight; -128 is not used, so that negation is exact."""

WITHOUT_VNNI_LIMIT = 63
"""The same where u8 x s8 pairs are added in saturating int16: 2 * 255 * 63 < 2**15."""


class Codes(StrEnum):
    """What the codes of a weight are."""

    TERNARY = "ternary"
    """-1, 0, 1 (FGQ, arXiv 1705.01462)."""
    TIED = "tied"
    """-4 .. 4, two ternary planes of which one weighs three times the other, ``3 t1 + t2``."""
    INT4 = "int4"
    """-7 .. 7."""
    INT8 = "int8"
    """-127 .. 127 with alpha 1, one scale per output channel: first, last and depthwise layers."""

    @property
    def largest(self) -> int:
        """Largest magnitude of a code."""
        return {"ternary": 1, "tied": 4, "int4": 7, "int8": INT8_LIMIT}[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScheme:
    """Small integer codes with one integer alpha per group of weights.

    Parameters
    ----------
    codes : Codes
    group_size : int or None
        N, the number of weights that share one alpha; the last group of a row may be shorter. Always None
        with INT8, whose alpha is 1.
    weight_limit : int
        Largest magnitude of ``alpha * code``, 127 at most, so that it is an int8.

    Raises
    ------
    ConfigError
        If `group_size` is below 1, or `weight_limit` leaves no alpha for the largest code or exceeds 127.
    """

    codes: Codes = Codes.TERNARY
    group_size: int | None = 64
    weight_limit: int = INT8_LIMIT

    def __post_init__(self) -> None:
        if self.codes is Codes.INT8:
            object.__setattr__(self, "group_size", None)
        elif self.group_size is None or self.group_size < 1:
            raise ConfigError(f"group size: found {self.group_size}, wanted a whole number of at least 1")
        least = 1 if self.codes is Codes.INT8 else self.codes.largest
        if not least <= self.weight_limit <= INT8_LIMIT:
            raise ConfigError(f"weight limit: found {self.weight_limit}, wanted {least}..{INT8_LIMIT}")

    @property
    def max_code(self) -> int:
        """Largest magnitude of a code."""
        return min(self.codes.largest, self.weight_limit)

    @property
    def alpha_limit(self) -> int:
        """Largest alpha."""
        return self.weight_limit // self.max_code

    def group_length(self, length: int) -> int:
        """Return how many of `length` weights along the group axis form a full group."""
        return length if self.group_size is None else min(self.group_size, length)

    def __str__(self) -> str:
        return str(self.codes) if self.group_size is None else f"{self.codes} N={self.group_size}"


class Ranges(StrEnum):
    """When the range of activations is found, and of how many of them."""

    STATIC = "static"
    """Of the whole tensor, from calibration data."""
    TENSOR = "dynamic"
    """Of the whole tensor, at run time."""
    TOKEN = "dynamic-token"
    """Of each row along the last axis, at run time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationScheme:
    """Quantization of activations to unsigned integers of `bits` bits.

    Parameters
    ----------
    bits : int
        8 or 4. Four-bit values are held in uint8 and lie in 0..15.
    ranges : Ranges
        Dynamic ones have 8 bits.

    Raises
    ------
    ConfigError
        If `bits` is neither 8 nor 4, or not 8 with dynamic ranges.
    """

    bits: int = 8
    ranges: Ranges = Ranges.STATIC

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"activation bits: found {self.bits}, wanted 8 or 4")
        if self.is_dynamic and self.bits != 8:
            raise ConfigError(f"activation bits: found {self.bits} with ranges found at run time, wanted 8")

    @property
    def is_dynamic(self) -> bool:
        """Whether ranges are found at run time."""
        return self.ranges is not Ranges.STATIC

    def __str__(self) -> str:
        return f"int{self.bits}-{self.ranges}" if self.is_dynamic else f"int{self.bits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """The affine map between one tensor's real values and its integers, ``x = scale * (q - zero_point)``.

    Parameters
    ----------
    scale : float
        A positive, finite float32 value.
    zero_point : int
        The integer that means 0.0, in ``0 .. 2**bits - 1``.
    bits : int
        8 or 4; integers lie in ``0 .. 2**bits - 1``.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    scale: float
    zero_point: int
    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"activation bits: found {self.bits}, wanted 8 or 4")
        if not 0.0 < self.scale < float("inf"):
            raise ConfigError(f"activation scale: found {self.scale}, wanted a positive finite number")
        if not 0 <= self.zero_point <= self.highest:
            raise ConfigError(f"zero point: found {self.zero_point}, wanted 0..{self.highest}")

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1
