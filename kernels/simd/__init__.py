"""Vector code for Numba kernels: readable Python that emits LLVM vector operations.

A function marked :func:`~fgq.kernels.simd.emit.emitted` runs once, while Numba compiles its caller. What it
does to pointers and vectors is written down as instructions of the chosen
:class:`~fgq.kernels.simd.isa.InstructionSet`; Python's own lists, loops and arithmetic are the macros.
"""
