"""What a session runs one after the other: steps that read arrays and write one, and parts run elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import DataError
from fgq.kernels.boundary import ready
from fgq.kernels.products.driver import aligned
from fgq.runtime.orders import Order

Array = NDArray[Any]
Call = Callable[[], None]
"""A step with its arrays fixed."""

TakeInput = Callable[[Array], None]
"""A step with its result fixed, which is given what it reads."""


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
        given = " and ".join(str(list(shape)) for shape in shapes)
        raise DataError(
            f"{name or 'a step of the model'}: found operands {given}, wanted shapes that broadcast"
        ) from None


def check_rank(name: str, shape: tuple[int, ...], rank: int) -> None:
    """Refuse a value of another rank than the model declares, which a computed shape may give it.

    Raises
    ------
    DataError
    """
    if len(shape) != rank:
        raise DataError(f"{name}: found a value {list(shape)}, wanted {rank} axes, as the model says")


@dataclass(frozen=True, slots=True)
class Orders:
    """In which orders of axes a step reads and writes.

    Parameters
    ----------
    sources : tuple of Order
        How each source has to lie in memory.
    result : Order
        How the result then lies.
    """

    sources: tuple[Order, ...]
    result: Order


class Runnable(ABC):
    """What one instruction of a session runs."""

    sources: tuple[ir.Value, ...]
    """The values that it reads."""

    raised: bool
    """Whether int8 values are held as the uint8 128 above them."""

    plannable = True
    """Whether the sizes of its results follow from those of its sources, so that memory can be planned."""

    nodes = 0
    """How many of the model's nodes another engine runs in it."""

    @property
    @abstractmethod
    def results(self) -> tuple[ir.Value, ...]:
        """The values that it computes."""

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
        """The instruction set that it uses, empty where that is left to the compiler or another engine."""
        return ""

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights that it holds."""
        return 0

    @abstractmethod
    def orders(self, given: Sequence[Order]) -> Orders:
        """Choose the orders of axes.

        Parameters
        ----------
        given : sequence of Order
            How each source lies in memory.
        """

    def in_orders(self, orders: Orders) -> Runnable:
        """Return the same operation for arrays in these orders.

        Parameters
        ----------
        orders : Orders
            From `orders`.
        """
        return self

    def scratch_bytes(self, arrays: Sequence[Array], threads: int) -> int:
        """Return how much memory a call needs beside its results."""
        return 0

    def alias(self, arrays: Sequence[Array]) -> Array | None:
        """Return the result where it is a view of the first source, with nothing to compute."""
        return None

    @abstractmethod
    def run_once(self, arrays: Sequence[Any], threads: int) -> tuple[list[Any], bool]:
        """Compute the results for sources of any shape.

        Returns
        -------
        results : list of array
        is_view : bool
            Whether the one result is a view of the first source.
        """

    @abstractmethod
    def bind_all(
        self, arrays: Sequence[Array], outs: Sequence[Array], scratch: NDArray[np.uint8], threads: int
    ) -> Call:
        """Return the call that reads `arrays` and writes `outs`; only where it is `plannable`."""

    def bind_for_input(self, shape: tuple[int, ...], out: Array, threads: int) -> TakeInput | None:
        """Return the call that takes its one source anew each time, or None where it cannot.

        A model's input then need not be copied into planned memory.

        Parameters
        ----------
        shape : tuple of int
            Of the source.
        out : ndarray
            The result.
        threads : int
        """
        return None


class Step(Runnable):
    """One operation on integers, or at their edge, with the nodes that it absorbs.

    Integers are held in uint8. Those that a model declares int8 are held 128 higher, as is their zero
    point: a step knows only the one kind. A step is used in the plain order of axes until `in_orders` gives
    one for others.
    """

    result: ir.Value
    """The value that it computes."""

    dtype: type[np.generic]
    """Of the array that it writes."""

    raised = True

    @property
    def results(self) -> tuple[ir.Value, ...]:
        """See `Runnable`."""
        return (self.result,)

    def in_orders(self, orders: Orders) -> Step:
        """See `Runnable`."""
        return self

    @abstractmethod
    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """Return the shape, in memory, of the result for these sources."""

    @abstractmethod
    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """Return the call that computes the result.

        Parameters
        ----------
        arrays : sequence of ndarray
            The sources in their orders, C order in memory.
        out : ndarray
            The result, of `shape` and `dtype`.
        scratch : ndarray of uint8
            Of `scratch_bytes`, aligned to 64 bytes.
        threads : int
            How many threads to use.
        """

    def run_once(self, arrays: Sequence[Any], threads: int) -> tuple[list[Any], bool]:
        """See `Runnable`."""
        sources = [ready(array) for array in arrays]
        view = self.alias(sources)
        if view is not None:
            return [view], True
        out = aligned(self.shape(sources), self.dtype)
        if out.size:
            scratch = aligned((self.scratch_bytes(sources, threads),), np.uint8)
            self.bind(sources, out, scratch, threads)()
        return [out], False

    def bind_all(
        self, arrays: Sequence[Array], outs: Sequence[Array], scratch: NDArray[np.uint8], threads: int
    ) -> Call:
        """See `Runnable`."""
        (out,) = outs
        return self.bind(arrays, out, scratch, threads)
