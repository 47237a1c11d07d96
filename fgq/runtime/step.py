"""What a plan is made of: steps that read arrays and write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import DataError
from fgq.runtime.orders import Order

Array = NDArray[Any]
Call = Callable[[], None]
"""A step with its arrays fixed."""


def broadcast(name: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape to which the operands of a step broadcast.

    Parameters
    ----------
    name : str
        What an error calls the step.
    *shapes : tuple of int

    Raises
    ------
    DataError
        If they do not broadcast.
    """
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        found = " and ".join(str(list(shape)) for shape in shapes)
        raise DataError(
            f"{name or 'a step of the model'}: found operands {found}, wanted shapes that broadcast"
        ) from None


def wanted_rank(name: str, shape: tuple[int, ...], rank: int) -> None:
    """Refuse a value of another rank than the model says, which it may have if its shape is computed.

    Raises
    ------
    DataError
    """
    if len(shape) != rank:
        raise DataError(f"{name}: found a value {list(shape)}, wanted {rank} axes, as the model says")


class Step(ABC):
    """One operation on integers, or at their edge, with the nodes that it absorbs.

    Integers are held in uint8. Those that a model declares int8 are held 128 higher, as is their zero
    point: a step knows only the one kind.
    """

    sources: tuple[ir.Value, ...]
    """The values it reads."""

    result: ir.Value
    """The value it makes."""

    dtype: type[np.generic]
    """Of the array that it writes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the operation is called in the model."""

    @property
    @abstractmethod
    def kernel(self) -> str:
        """What runs it."""

    @property
    def tier(self) -> str:
        """The instruction set that it uses, empty where that is left to the compiler."""
        return ""

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights that it holds."""
        return 0

    @abstractmethod
    def orders(self, found: Sequence[Order]) -> tuple[list[Order], Order]:
        """Choose the orders of axes.

        Parameters
        ----------
        found : sequence of Order
            How each source lies in memory.

        Returns
        -------
        wanted : list of Order
            How each source is to lie.
        made : Order
            How the result then lies.
        """

    @abstractmethod
    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """Return the shape, in memory, of the result for these sources."""

    def scratch_bytes(self, arrays: Sequence[Array], threads: int) -> int:
        """Return how much memory a call needs beside its result."""
        return 0

    def alias(self, arrays: Sequence[Array]) -> Array | None:
        """Return the result where it is a view of a source, with nothing to compute."""
        return None

    @abstractmethod
    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """Return the call that computes the result.

        Parameters
        ----------
        arrays : sequence of ndarray
            The sources in the wanted orders, C order in memory.
        out : ndarray
            The result, of `shape` and `dtype`.
        scratch : ndarray of uint8
            Of `scratch_bytes`, aligned to 64 bytes.
        threads : int
            How many threads to use.
        """
