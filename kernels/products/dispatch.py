"""Which kernel does which layer: a table of all kernels, and one pure function that picks from it.

Picking a kernel loads no compiled code; preparing a layer does (:mod:`fgq.kernels.products.layer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fgq.errors import KernelError
from fgq.kernels.simd.isa import BY_NAME, InstructionSet

FEW_ROWS = 8
"""Rows of activations up to which a layer is a GEMV: reading the weights is what takes the time."""

MOST_ADDED = 4
"""Largest code that can be done by additions: two tied ternary planes, 3 * t1 + t2."""


class Wish(StrEnum):
    """What the user asks of the kernels."""

    AUTO = "auto"
    """The fastest."""
    MULTIPLICATION_FREE = "multiplication-free"
    """Only such as add and subtract activations, and multiply once per group of weights."""
    DOT = "dot"
    """Only such as multiply: the machine's integer dot products where it has them."""
    REFERENCE = "reference"
    """The plain NumPy one, which judges all others."""


class Memory(StrEnum):
    """How weights are held while a model runs."""

    AUTO = "auto"
    """The faster of the two."""
    FAST = "fast"
    """Unpacked at load, one byte a weight for dot products."""
    COMPACT = "compact"
    """Packed, two bits a ternary weight and a byte for each scale, and decoded as they are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What decides which kernels can do a layer.

    Parameters
    ----------
    largest_code : int
        Largest magnitude of a code: 1 is ternary, 4 two tied ternary planes, beyond that 4 or 8 bits.
    rows : int
        Rows of activations, or output pixels, in one call.
    depthwise : bool
        Whether a convolution has one input channel per filter, in several conv groups.
    """

    largest_code: int
    rows: int = 64
    depthwise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One way to do layers, for one instruction set.

    Parameters
    ----------
    module : str
        The module in this package that has it.
    isa : InstructionSet
        What it is emitted for.
    multiplication_free : bool
        Whether it adds and subtracts activations and multiplies once per group of weights only.
    largest_code : int
        Largest code that it can do.
    most_rows : int or None
        Most rows that it is made for.
    compact : bool
        Whether it can decode packed weights as it goes.
    depthwise : bool
        Whether it does depthwise convolutions, and only those.
    whole_layer : bool
        Whether it runs a layer by itself: its module has ``prepare(weight, bias, x_zero, window, isa)`` and
        ``run(prepared, x, epilogue, residual, threads)``. Others give the driver an engine.
    """

    module: str
    isa: InstructionSet
    multiplication_free: bool = False
    largest_code: int = 127
    most_rows: int | None = None
    compact: bool = False
    depthwise: bool = False
    whole_layer: bool = False

    @property
    def name(self) -> str:
        """Module and instruction set."""
        return self.module if self.isa.width == 0 else f"{self.module}[{self.isa.name}]"

    def supports(self, problem: Problem) -> bool:
        """Return whether this kernel can do such a layer."""
        return (
            problem.largest_code <= self.largest_code
            and (self.most_rows is None or problem.rows <= self.most_rows)
            and (problem.depthwise or not self.depthwise)
        )

    def grants(self, wish: Wish) -> bool:
        """Return whether this kernel is what the user asks for."""
        if self.module == _REFERENCE or wish is Wish.REFERENCE:
            return self.module == _REFERENCE and wish is Wish.REFERENCE
        return wish is Wish.AUTO or self.multiplication_free == (wish is Wish.MULTIPLICATION_FREE)


_REFERENCE = "reference"


def _free(module: str, isa: str, most_rows: int | None = None) -> Kernel:
    """Return a multiplication-free kernel: ternary codes, or two tied planes of them."""
    return Kernel(
        module=module,
        isa=BY_NAME[isa],
        multiplication_free=True,
        largest_code=MOST_ADDED,
        most_rows=most_rows,
    )


def _dot(module: str, isa: str, most_rows: int | None = None, *, compact: bool = True) -> Kernel:
    return Kernel(module=module, isa=BY_NAME[isa], compact=compact, most_rows=most_rows)


def _depthwise(isa: str) -> Kernel:
    return Kernel(module="conv2d_depthwise", isa=BY_NAME[isa], depthwise=True, whole_layer=True)


def build_table(kernels: Iterable[Kernel]) -> dict[str, Kernel]:
    """Return the kernels by name.

    Raises
    ------
    KernelError
        If two have the same name.
    """
    table: dict[str, Kernel] = {}
    for kernel in kernels:
        if kernel.name in table:
            raise KernelError(f"kernel {kernel.name}: found twice, wanted one of that name")
        table[kernel.name] = kernel
    return table


KERNELS = build_table(
    [
        # The first that the machine has, that can do the layer and grants the wish is taken.
        # Depthwise layers come first: a reduction of a few taps has nothing to save by adding in groups.
        _depthwise("avx512vnni"),
        _depthwise("avx512"),
        _depthwise("avxvnni"),
        _depthwise("avx2"),
        _depthwise("portable"),
        # Few rows: the time goes into reading the weights, so packed ones win whatever is done with them.
        _dot("gemv_dot", "avx512vnni", most_rows=FEW_ROWS),
        _dot("gemv_dot", "avxvnni", most_rows=FEW_ROWS),
        _free("gemv_ternary_permute", "avx512vbmi", most_rows=FEW_ROWS),
        _free("gemv_ternary_permute", "avx512", most_rows=FEW_ROWS),
        _free("gemv_ternary_permute", "avx2", most_rows=FEW_ROWS),
        _dot("gemv_dot", "avx512", most_rows=FEW_ROWS),
        _dot("gemv_dot", "avx2", most_rows=FEW_ROWS),
        # Many rows: tiles, then dot products; additions where the machine has neither.
        _dot("gemm_amx", "amx"),
        _dot("gemm_dot", "avx512vnni"),
        _dot("gemm_dot", "avxvnni"),
        _free("gemm_ternary_tables", "avx512"),
        _free("gemm_ternary_tables", "avx2"),
        _dot("gemm_dot", "avx512"),
        _dot("gemm_dot", "avx2"),
        # Any processor.
        _free("gemm_ternary_portable", "portable"),
        _dot("gemm_int8_portable", "portable", compact=False),
        # Taken only where it is asked for.
        Kernel(module=_REFERENCE, isa=BY_NAME["portable"], whole_layer=True),
    ]
)
"""All kernels by name, in order of preference."""


def select_kernel(
    problem: Problem, machine: Sequence[InstructionSet], wish: Wish = Wish.AUTO, tier: str | None = None
) -> Kernel:
    """Return the preferred kernel for a layer; the same arguments give the same kernel.

    Parameters
    ----------
    problem : Problem
        The layer.
    machine : sequence of InstructionSet
        What the machine has (:func:`fgq.kernels.simd.isa.available`).
    wish : Wish
        What the user asks for.
    tier : str, optional
        The instruction set that the user insists on.

    Raises
    ------
    KernelError
        If no kernel meets the wish, saying which would.
    """
    if tier is not None and tier not in BY_NAME:
        raise KernelError(f"tier: found {tier!r}, wanted one of {', '.join(BY_NAME)}")
    if tier is not None and tier not in {isa.name for isa in machine}:
        raise KernelError(
            f"tier: found {tier}, which this machine lacks, wanted one of "
            f"{', '.join(isa.name for isa in machine)}"
        )
    for kernel in KERNELS.values():
        if (
            kernel.isa in machine
            and (tier is None or kernel.isa.name == tier or kernel.module == _REFERENCE)
            and kernel.supports(problem)
            and kernel.grants(wish)
        ):
            return kernel
    weights = "ternary" if problem.largest_code == 1 else f"codes up to {problem.largest_code} as"
    asked = wish.value if tier is None else f"{wish.value} on {tier}"
    raise KernelError(
        f"kernel: found the wish {asked} for a layer of {weights} weights and {problem.rows} rows, which no "
        f"kernel meets, wanted {Wish.AUTO.value}, another tier, or weights of codes -4..4"
    )
