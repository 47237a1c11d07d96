"""How a layer is quantized: small frozen values, validated when they are made.

Terms used throughout the project:

code
    the small integer stored for one weight: {-1, 0, +1} in a ternary tensor.
alpha
    the unsigned integer scale of one group of codes.
row scale
    the float32 scale of one output channel; ``alpha * code * row_scale`` is the weight.
group size N
    how many weights, consecutive along the reduction axis, share one alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

from fgq.errors import ConfigError

INT8_LIMIT = 127
"""Largest magnitude of a quantized weight; -128 is not used, so that negation is exact."""

WITHOUT_VNNI_LIMIT = 63
"""The same where u8 x s8 pairs are added in saturating int16: 2 * 255 * 63 < 2**15."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TernaryScheme:
    """Ternary codes with one integer alpha per group of weights (FGQ, arXiv 1705.01462, section 3).

    Parameters
    ----------
    group_size : int
        N, the number of weights that share one alpha; the last group of a row may be shorter.
    alpha_limit : int
        Largest alpha, 127 at most, so that ``alpha * code`` is an int8.

    Raises
    ------
    ConfigError
        If `group_size` is below 1 or `alpha_limit` outside 1..127.
    """

    group_size: int = 64
    alpha_limit: int = INT8_LIMIT

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ConfigError(f"group size: found {self.group_size}, wanted a whole number of at least 1")
        _check_limit("alpha limit", self.alpha_limit)

    @property
    def max_code(self) -> int:
        """Largest magnitude of a code."""
        return 1

    def __str__(self) -> str:
        return f"ternary N={self.group_size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Scheme:
    """8-bit codes with one scale per output channel (alpha is 1): first, last and depthwise layers.

    Parameters
    ----------
    code_limit : int
        Largest magnitude of a code, 127 at most.

    Raises
    ------
    ConfigError
        If `code_limit` lies outside 1..127.
    """

    code_limit: int = INT8_LIMIT

    def __post_init__(self) -> None:
        _check_limit("code limit", self.code_limit)

    @property
    def max_code(self) -> int:
        """Largest magnitude of a code."""
        return self.code_limit

    @property
    def alpha_limit(self) -> int:
        """Largest alpha."""
        return 1

    def __str__(self) -> str:
        return "int8"


WeightScheme = TernaryScheme | Int8Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationScheme:
    """Static quantization of activations to unsigned integers of `bits` bits.

    Parameters
    ----------
    bits : int
        8 or 4. Four-bit values are held in uint8 and lie in 0..15.

    Raises
    ------
    ConfigError
        If `bits` is neither 8 nor 4.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"activation bits: found {self.bits}, wanted 8 or 4")

    def __str__(self) -> str:
        return f"int{self.bits}"


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


def _check_limit(what: str, value: int) -> None:
    if not 1 <= value <= INT8_LIMIT:
        raise ConfigError(f"{what}: found {value}, wanted 1..{INT8_LIMIT}")
