"""The boundary between a caller's arrays and compiled code, which takes their addresses and checks nothing.

A kernel is bound to its arrays once for each set of shapes and then called any number of times. When it is
bound, it states the shape and dtype of every array that it will read or write, and :func:`check` compares
them with what it was given. Nothing is checked in the calls themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fgq.errors import KernelError

Operand = tuple[NDArray[Any] | None, tuple[int, ...], DTypeLike | None]
"""An array, and the shape and dtype that a kernel reads or writes; None where it has none."""


def check(kernel: str, **operands: Operand) -> None:
    """Refuse arrays whose memory is not what a kernel is about to read and write.

    Parameters
    ----------
    kernel : str
        What an error calls the kernel.
    **operands : tuple of (ndarray or None, tuple of int, dtype)
        By name. None is passed over.

    Raises
    ------
    KernelError
        If an array has another shape or dtype, is not in C order, is not aligned to its elements, or may
        not be written to. Numba would compile a kernel anew for arrays that are read-only.
    """
    for name, (array, shape, dtype) in operands.items():
        if array is None:
            continue
        if array.shape != shape or array.dtype != dtype:
            raise KernelError(
                f"{kernel}: {name}: found {array.dtype}{list(array.shape)}, "
                f"wanted {np.dtype(dtype)}{list(shape)}"
            )
        if not array.flags.carray:
            raise KernelError(
                f"{kernel}: {name}: found an array with gaps, not aligned or read-only, wanted one piece of "
                "memory in C order that may be written to"
            )


def ready(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as :func:`check` wants it: itself, or a copy.

    Parameters
    ----------
    array : ndarray
    """
    return array if array.flags.carray else np.require(array, requirements=["C", "A", "W"])


def check_range(lowest: int, highest: int, zero_point: int) -> None:
    """Refuse a range or a zero point that bytes cannot hold.

    Parameters
    ----------
    lowest, highest : int
        Range of the activations, both ends included.
    zero_point : int
        The activation that means 0.0; it may lie outside the range.

    Raises
    ------
    KernelError
        If one of them is not in 0..255, or `lowest` is above `highest`.
    """
    if not (0 <= lowest <= highest <= 255 and 0 <= zero_point <= 255):
        raise KernelError(
            f"activations: found range {lowest}..{highest} and zero point {zero_point}, wanted them in "
            "0..255, and no empty range"
        )
