"""Instruction sets: what each one has, and what this machine has."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from functools import cache

from fgq.errors import KernelError

_ARCH_REQ_XCOMP_PERM, _XTILEDATA, _ARCH_PRCTL = 0x1023, 18, 158
"""Linux gives the tile registers only to a process that asks (Linux, Documentation/arch/x86/xstate.rst)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """A set of instructions that kernels can be emitted for.

    Parameters
    ----------
    name : str
        How a user forces it.
    width : int
        Bytes in a vector register; 0 where nothing is emitted and LLVM chooses.
    features : frozenset of str
        What the processor must have, in LLVM's names.
    """

    name: str
    width: int
    features: frozenset[str]

    def has(self, feature: str) -> bool:
        """Return whether code for this set may use an LLVM feature."""
        return feature in self.features


def _set(name: str, width: int, features: str) -> InstructionSet:
    return InstructionSet(name=name, width=width, features=frozenset(features.split()))


_AVX2 = "avx avx2 fma"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512dq avx512vl"
_VBMI = f"{_AVX512} avx512vbmi"
_VNNI = f"{_VBMI} avx512vnni"

INSTRUCTION_SETS = (
    _set("amx", 64, f"{_VNNI} amx-tile amx-int8"),
    _set("avx512vnni", 64, _VNNI),
    _set("avx512vbmi", 64, _VBMI),
    _set("avx512", 64, _AVX512),
    _set("avxvnni", 32, f"{_AVX2} avxvnni"),
    _set("avx2", 32, _AVX2),
    _set("portable", 0, ""),
)
"""Best first. AVX-512 VNNI without VBMI (Cascade Lake) takes the rows below it."""

BY_NAME = {isa.name: isa for isa in INSTRUCTION_SETS}
"""The same by name."""


def index_of(isa: InstructionSet) -> int:
    """Return the place of a set in :data:`INSTRUCTION_SETS`: compiled code is specialised on integers."""
    return INSTRUCTION_SETS.index(isa)


@cache
def machine_features() -> frozenset[str]:
    """Return the LLVM features that Numba compiles for: this processor's, or those of NUMBA_CPU_FEATURES.

    Empty where Numba is told not to compile (NUMBA_DISABLE_JIT). The tile features are left out where
    the operating system does not grant the tile registers.
    """
    import numba
    from llvmlite import binding

    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return frozenset()
    wanted = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    if wanted is None:
        if numba.config.CPU_NAME not in (None, "host"):  # type: ignore[attr-defined]
            return frozenset()  # Numba compiles for that processor's defaults, which LLVM does not list
        try:
            found = {name for name, present in binding.get_host_cpu_features().items() if present}
        except RuntimeError:
            return frozenset()
    else:
        found = {name[1:] for name in wanted.split(",") if name.startswith("+")}
    if "amx-tile" in found and not _tiles_granted():
        found -= {"amx-tile", "amx-int8"}
    return frozenset(found)


@cache
def available() -> tuple[InstructionSet, ...]:
    """Return the sets that this machine has, best first; the portable one is always last."""
    features = machine_features()
    return tuple(isa for isa in INSTRUCTION_SETS if isa.features <= features)


def require(isa: InstructionSet) -> None:
    """Refuse a set that this machine lacks.

    Raises
    ------
    KernelError
        Saying which features are missing.
    """
    if missing := isa.features - machine_features():
        raise KernelError(
            f"instruction set {isa.name}: found a machine without {', '.join(sorted(missing))}, wanted them; "
            f"this machine has {', '.join(have.name for have in available())}"
        )


@cache
def _tiles_granted() -> bool:
    """Ask for the tile registers, once for the process and those it forks."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0)
