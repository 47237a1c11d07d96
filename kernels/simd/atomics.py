"""Numbers that threads share, from compiled code without the interpreter lock.

Each is an element of an int64 array; those that different threads write should lie LINE apart.
"""

from __future__ import annotations

import platform
from threading import Lock
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LINE = 8
"""Numbers in a cache line."""

_X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")


@intrinsic
def _load(typing: Any, flags: Any, place: Any) -> Any:
    """Return ``flags[place]``, and with it all that was written before it was stored (acquire)."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_address(context, builder, signature, args), "acquire", 8)

    return types.int64(flags, place), emit


@intrinsic
def _add(typing: Any, flags: Any, place: Any, value: Any) -> Any:
    """Add to ``flags[place]`` in one step, and return what it was (acquire and release)."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[2], signature.args[2], types.int64)
        return builder.atomic_rmw("add", _address(context, builder, signature, args), number, "acq_rel")

    return types.int64(flags, place, value), emit


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell an x86 core that a loop only waits, for some 20 to 70 nanoseconds; elsewhere do nothing."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if _X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), emit


def _address(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    """Return where a number of an int64 array lies."""
    array = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
    place = context.cast(builder, args[1], signature.args[1], types.intp)
    return builder.gep(array.data, [place])


_lock = Lock()


def _interpreted_load(flags: Any, place: int) -> int:
    return int(flags[place])


def interpreted_add(flags: Any, place: int, value: int) -> int:
    """Do what `add` does, without a compiler."""
    with _lock:
        before = int(flags[place])
        flags[place] += value
    return before


load: Any = _load
add: Any = _add
pause: Any = _pause
if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    load, add, pause = _interpreted_load, interpreted_add, lambda: None
