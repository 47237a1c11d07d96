"""Machine code read as text: its loops, and which of their instructions multiply or look up.

The text is what LLVM writes for x86-64 (AT&T syntax: sources first, the result last).
"""

import inspect
import re
from dataclasses import dataclass

import numba
from numba import types
from numba.core.dispatcher import Dispatcher

MULTIPLIES = re.compile(
    r"v?p(mul(?!tishift)|madd|cmul)|vpdp|v?mul[ps][sdh]|vfn?m(add|sub)|v?dpp[sd]|tdp|vgf2p8mul"
)
"""Vector instructions that multiply; of scalar ones (imul, lea) only addresses are made."""

READS_TABLE = re.compile(r"(?!v\w*broadcast)v\w+\s+\S*\([^)]*\),.*%[yz]mm\d+$")
"""A whole register from memory, moved or used at once."""

PERMUTES = re.compile(r"vperm(w|b|i2w|t2w|i2b|t2b)|vpshufb")
"""Lanes looked up in a table that is a register."""

_ENCODING = re.compile(r"^\{\w+\}\s*")
_LABEL = re.compile(r"([.\w$]+):")
_JUMP = re.compile(r"j\w+\s+(\S+)$")


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of one turn, those of loops within it left out."""

    instructions: tuple[str, ...]

    def count(self, pattern):
        return sum(1 for instruction in self.instructions if pattern.match(instruction))


def loops(assembly):
    """Return the loops, what lies between a label and a jump back to it, and last what is in none."""
    lines = [_ENCODING.sub("", line.split("#")[0].strip()) for line in assembly.splitlines()]
    labels, ends = {}, {}
    for place, line in enumerate(lines):
        if line.startswith(".file"):
            labels.clear()  # labels of one compiled module mean nothing in the next
        elif label := _LABEL.fullmatch(line):
            labels[label[1]] = place
        elif (jump := _JUMP.fullmatch(line)) and jump[1] in labels:
            ends[labels[jump[1]]] = place  # several jumps back to one label are turns of one loop
    spans = sorted(ends.items(), key=lambda span: (span[0], -span[1]))
    owned = {span: [] for span in [*spans, None]}
    for place, line in enumerate(lines):
        if line and not line.startswith(".") and not line.endswith(":"):
            around = [span for span in spans if span[0] <= place <= span[1]]
            owned[min(around, key=lambda span: span[1] - span[0], default=None)].append(line)
    return [Loop(tuple(instructions)) for instructions in owned.values()]


def assembly_of(function, signature):
    """Compile a Python function for argument types, and those that it calls; return the assembly of all.

    All are compiled anew: code that comes from the cache has no text.
    """
    compiled = numba.njit(nogil=True, error_model="numpy")(function)
    compiled.compile(signature)
    texts = list(compiled.inspect_asm().values())
    known = inspect.getclosurevars(function)
    for called in {**known.globals, **known.nonlocals}.values():
        if isinstance(called, Dispatcher):
            texts += [assembly_of(called.py_func, signature) for signature in called.signatures]
    return "\n".join(texts)


def assembly_of_block(engine):
    """Return the assembly of an engine's block function, without driver and epilogue."""
    panel, sums, work = types.uint8[:, ::1], types.int32[:, ::1], types.uint8[::1]
    count = types.intp
    signature = (numba.typeof(engine.weights), count, panel, count, count, count, sums, work)
    return assembly_of(engine.block.py_func, signature)


def assembly_of_stage(engine):
    """Return the assembly of an engine's stage function."""
    panel, work, count = types.uint8[:, ::1], types.uint8[::1], types.intp
    return assembly_of(engine.stage.py_func, (numba.typeof(engine.weights), count, panel, count, work))


def excess_multiplications(assembly, lookup, lookups_per_multiplication):
    """Return the loops with more than one multiplying instruction for so many that look up, as text.

    Parameters
    ----------
    assembly : str
        Of one or more functions.
    lookup : re.Pattern
        :data:`READS_TABLE` or :data:`PERMUTES`.
    lookups_per_multiplication : float
        How many must be there for each that multiplies; infinity allows none.
    """
    return [
        "\n".join(loop.instructions)
        for loop in loops(assembly)
        if (found := loop.count(MULTIPLIES)) and loop.count(lookup) < found * lookups_per_multiplication
    ]
