"""What the operators on rows of real values share: how rows are cut into steps, and shared out to threads."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from fgq.kernels.products.driver import held
from fgq.kernels.threads import spread

_PIECE = 1 << 13
"""Elements that a thread takes at a time, roughly."""

_TOGETHER = 8
"""Rows that are taken through a step together: the sum over one is waited for while others are summed up."""

_STAGE = 1 << 12
"""Elements that may be between two steps, in the nearest cache."""


class RealRows(ABC):
    """An operator that computes each row of real values by itself.

    Parameters
    ----------
    x : ndarray of float32
        What each call reads, C order.
    y : ndarray of float32 or uint8, shape of `x`
        What it writes, C order.
    width : int
        Elements of a row; the last row may be shorter.
    threads : int
        How many threads to use.
    """

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32] | NDArray[np.uint8],
        width: int,
        threads: int,
    ) -> None:
        self._x, self._y, self._width = x.reshape(-1), y.reshape(-1), width
        self._rows, self._threads = -(-x.size // max(width, 1)), threads
        self._together = min(max(_STAGE // max(width, 1), 1), _TOGETHER)
        self._each = max(_PIECE // max(width, 1) // self._together, 1) * self._together

    def __call__(self) -> None:
        """Compute from what the arrays now hold."""
        # a row, and two numbers for each row of a step
        scratch = held.borrow(self._threads, 4 * (self._width + 2 * self._together)).view(np.float32)

        def work(thread: int, begin: int, end: int) -> None:
            self._run(begin * self._each, min(end * self._each, self._rows), scratch[thread])

        if self._threads == 1:
            self._run(0, self._rows, scratch[0])
        else:
            spread(-(-self._rows // self._each), self._threads, work)

    @abstractmethod
    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        """Compute rows `begin` to `end`.

        Parameters
        ----------
        begin, end : int
        scratch : ndarray of float32, shape (width + 2 * rows of a step,)
            Memory of this thread, which holds nothing before.
        """
