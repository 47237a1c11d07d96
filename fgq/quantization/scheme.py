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


LARGEST_GROUP = 2**31 - 1
"""Most weights that may share one scale; groups end with their row in any case."""


class Fit(StrEnum):
    """How the codes and scales of a row follow from its weights."""

    TERNARY = "ternary"
    """Least squares over the codes -1, 0, 1 (`fgq.quantization.ternary`)."""
    LEVELS = "levels"
    """Least squares over evenly spaced levels (`fgq.quantization.levels`)."""
    LARGEST = "largest"
    """The row's largest magnitude becomes the largest code: nothing is clipped (`int8_rows`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSpec:
    """What sets codes apart from others: all that the rest of the program asks of them.

    Parameters
    ----------
    largest : int
        Largest magnitude of a code; codes are all whole numbers up to it, of both signs.
    memory_bits : int
        Bits of a code as kernels hold it.
    fit : Fit
    grouped : bool
        Whether groups of weights have scales of their own; otherwise alpha is 1, and rows share one scale.
    packed : bool
        Whether several codes are written to a byte, as many as fit (`fgq.format.packing`).
    planes : int
        Ternary planes that make up a code, so that additions alone compute its products; 0 where kernels
        multiply.
    trainable : bool
        Whether `fgq.train` has the fit (`fgq.train.fit`).
    planned : bool
        Whether a plan may choose them (`fgq.plan`).
    """

    largest: int
    memory_bits: int
    fit: Fit = Fit.LEVELS
    grouped: bool = True
    packed: bool = True
    planes: int = 0
    trainable: bool = True
    planned: bool = True


class Codes(StrEnum):
    """What the codes of a weight are; `CODE_SPECS` has a row for each."""

    TERNARY = "ternary"
    """-1, 0, 1 (FGQ, arXiv 1705.01462)."""
    TIED = "tied"
    """-4 .. 4, two ternary planes of which one weighs three times the other, ``3 t1 + t2``."""
    INT4 = "int4"
    """-7 .. 7."""
    INT8 = "int8"
    """-127 .. 127 with alpha 1, one scale per output channel: first, last and depthwise layers."""
    DUAL = "dual-int4"
    """-112 .. 112 with alpha 1: two INT4 tensors of which one weighs fifteen times the other, ``15 c1 + c2``.

    With whole scales no other pair comes nearer: these sums are all whole numbers up to 112.
    """

    @property
    def spec(self) -> CodeSpec:
        """What sets these codes apart."""
        return CODE_SPECS[self]

    @property
    def largest(self) -> int:
        """Largest magnitude of a code."""
        return self.spec.largest


CODE_SPECS: dict[Codes, CodeSpec] = {
    Codes.TERNARY: CodeSpec(largest=1, memory_bits=2, fit=Fit.TERNARY, planes=1),
    Codes.TIED: CodeSpec(largest=4, memory_bits=4, planes=2),
    Codes.INT4: CodeSpec(largest=7, memory_bits=4),
    Codes.INT8: CodeSpec(largest=INT8_LIMIT, memory_bits=8, fit=Fit.LARGEST, grouped=False, packed=False),
    Codes.DUAL: CodeSpec(largest=112, memory_bits=8, grouped=False, trainable=False, planned=False),
}
"""Every kind of codes. A new one is a member of `Codes`, a row here and, where it needs one, a fit."""


class Granularity(StrEnum):
    """Which weights share one scale (OMSE, arXiv 1902.06822)."""

    LAYER = "layer"
    """All of a layer: alpha is 1, and the row scale a scalar."""
    FILTER = "filter"
    """Those of one output channel: alpha is 1."""
    KERNEL = "kernel"
    """Those of one output and one input channel, at all kernel positions of a convolution."""
    GROUP = "group"
    """N along the input channels, at one kernel position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScheme:
    """Small integer codes with one integer alpha per group of weights.

    Parameters
    ----------
    codes : Codes
    group_size : int or None
        N, the number of weights that share one alpha; the last group of a row may be shorter. Always None
        with another granularity.
    granularity : Granularity
        Which weights share one scale; ``filter`` instead of ``kernel`` and ``group`` with INT8 and
        DUAL codes, whose alpha is 1.
    weight_limit : int
        Largest magnitude of ``alpha * code``, 127 at most, so that it is an int8.

    Raises
    ------
    ConfigError
        If `group_size` is below 1 or above 2^31 - 1, or `weight_limit` leaves no alpha for the largest code
        (below 127 INT8 and DUAL take smaller codes) or exceeds 127.
    """

    codes: Codes = Codes.TERNARY
    group_size: int | None = 64
    granularity: Granularity = Granularity.GROUP
    weight_limit: int = INT8_LIMIT

    def __post_init__(self) -> None:
        grouped = self.codes.spec.grouped
        if not grouped and self.granularity is not Granularity.LAYER:
            object.__setattr__(self, "granularity", Granularity.FILTER)
        if self.granularity is not Granularity.GROUP:
            object.__setattr__(self, "group_size", None)
        elif self.group_size is None or not 1 <= self.group_size <= LARGEST_GROUP:
            raise ConfigError(
                f"group size: found {self.group_size}, wanted a whole number of 1 to {LARGEST_GROUP}"
            )
        least = self.codes.largest if grouped else 1
        if not least <= self.weight_limit <= INT8_LIMIT:
            raise ConfigError(f"weight limit: found {self.weight_limit}, wanted {least}..{INT8_LIMIT}")

    @property
    def max_code(self) -> int:
        """Largest magnitude of a code."""
        return min(self.codes.largest, self.weight_limit)

    @property
    def alpha_limit(self) -> int:
        """Largest alpha."""
        varies = self.granularity in (Granularity.GROUP, Granularity.KERNEL)
        return self.weight_limit // self.max_code if varies else 1

    def group_length(self, length: int) -> int:
        """Return how many of `length` weights along the group axis form a full group."""
        if self.granularity is Granularity.KERNEL:
            return 1
        return length if self.group_size is None else min(self.group_size, length)

    def __str__(self) -> str:
        if self.group_size is not None:
            return f"{self.codes} N={self.group_size}"
        plain = not self.codes.spec.grouped and self.granularity is Granularity.FILTER
        return str(self.codes) if plain else f"{self.codes} per {self.granularity}"


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
    tensors : int
        1, or 2 of 4 bits: a coarse one, and one for the rest at a sixteenth of its scale. Their integers
        are the upper and the lower half of one 8-bit integer, ``q = 16 q1 + q2``, which is how they are held.
    ranges : Ranges
        Dynamic ones have 8 bits.

    Raises
    ------
    ConfigError
        If `bits` is neither 8 nor 4, or not 8 with dynamic ranges, or there are other than one tensor or two
        of 4 bits.
    """

    bits: int = 8
    tensors: int = 1
    ranges: Ranges = Ranges.STATIC

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"activation bits: found {self.bits}, wanted 8 or 4")
        if (self.bits, self.tensors) not in ((8, 1), (4, 1), (4, 2)):
            raise ConfigError(
                f"activations: found {self.tensors} tensors of {self.bits} bits, wanted 1, or 2 of 4"
            )
        if self.is_dynamic and self.bits != 8:
            raise ConfigError(f"activation bits: found {self.bits} with ranges found at run time, wanted 8")

    @property
    def is_dynamic(self) -> bool:
        """Whether ranges are found at run time."""
        return self.ranges is not Ranges.STATIC

    @property
    def width(self) -> int:
        """Bits of the integers of all tensors together."""
        return self.bits * self.tensors

    def __str__(self) -> str:
        if self.is_dynamic:
            return f"int{self.bits}-{self.ranges}"
        return f"int{self.bits}" if self.tensors == 1 else f"{self.tensors} x int{self.bits}"


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
