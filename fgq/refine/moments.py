"""What calibration data say about a layer: second moments of its inputs, and of inputs with outputs.

Of a layer ``y = W x + b``, with x the inputs that the quantized prefix of the network gives and y the
outputs wanted, the squared error of any other weights V depends on the data through sums alone::

    sum ||y - V x||^2 = sum ||y||^2 - 2 <V, sum y x^T> + <V, V sum x x^T>

so the data are seen once, in a stream, and memory does not grow with them.

The leading axis of every array, C long, counts the groups of a grouped convolution, which are independent
reductions; it is 1 elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Single = NDArray[np.float32]

_ROUNDING = 2.0**-18
"""A bound on the error of float32 sums of some thousand products, as a share of them."""

_TOGETHER = 4096
"""Positions whose products are summed in float32."""


class Moments(NamedTuple):
    """Sums over the positions at which a layer was computed.

    Parameters
    ----------
    positions : int
        How many were seen.
    inputs : ndarray of float64, shape (C, K)
        Sum of x.
    outputs : ndarray of float64, shape (C, M)
        Sum of y.
    gram : ndarray of float64, shape (C, K, K)
        Sum of ``x x^T``.
    cross : ndarray of float64, shape (C, M, K)
        Sum of ``y x^T``.
    power : ndarray of float64, shape (C, M)
        Sum of ``y^2``.
    """

    positions: int
    inputs: Float
    outputs: Float
    gram: Float
    cross: Float
    power: Float

    def of(self, c: int) -> Moments:
        """Return the moments of one reduction alone."""
        return Moments(self.positions, *(sums[c : c + 1] for sums in self[1:]))

    def centred(self) -> Moments:
        """Return the moments about the means, which matter alone where a bias makes up for the means."""
        n = max(self.positions, 1)
        gram = self.gram - self.inputs[:, :, None] * self.inputs[:, None] / n
        # What float32 products may have lost, so that no direction seems to have a negative variance.
        places = np.arange(gram.shape[1])
        gram[:, places, places] += _ROUNDING * self.gram[:, places, places].mean(1, keepdims=True)
        return self._replace(
            inputs=np.zeros_like(self.inputs),
            outputs=np.zeros_like(self.outputs),
            gram=gram,
            cross=self.cross - self.outputs[:, :, None] * self.inputs[:, None] / n,
            power=self.power - self.outputs**2 / n,
        )

    def error(self, weights: Float) -> Float:
        """Return the mean squared error of each output for other weights.

        Parameters
        ----------
        weights : ndarray of float64, shape (C, M, K)

        Returns
        -------
        ndarray of float64, shape (C, M)
            Not negative.
        """
        slope = weights @ self.gram - 2 * self.cross
        total = np.einsum("cmk,cmk->cm", slope, weights) + self.power
        nonnegative: Float = np.maximum(total, 0.0) / max(self.positions, 1)
        return nonnegative

    def mean_error(self, weights: Float) -> Float:
        """Return the mean of ``y - V x`` for each output.

        Parameters
        ----------
        weights : ndarray of float64, shape (C, M, K)

        Returns
        -------
        ndarray of float64, shape (C, M)
        """
        total: Float = self.outputs - np.einsum("cmk,ck->cm", weights, self.inputs)
        return total / max(self.positions, 1)

    def variance(self, weights: Float) -> Float:
        """Return the mean square ``v^T (sum x x^T) v / n`` of each output for other weights.

        Parameters
        ----------
        weights : ndarray of float64, shape (C, M, K)

        Returns
        -------
        ndarray of float64, shape (C, M)
        """
        total: Float = np.einsum("cmk,cmk->cm", weights @ self.gram, weights)
        return total / max(self.positions, 1)


class Collector:
    """Sums what is seen of a layer.

    Products are added in float32 within some thousand positions and in float64 across them.

    Parameters
    ----------
    C, M, K : int
        Reductions, outputs and inputs of each.
    """

    def __init__(self, C: int, M: int, K: int) -> None:
        self._moments = Moments(
            positions=0,
            inputs=np.zeros((C, K)),
            outputs=np.zeros((C, M)),
            gram=np.zeros((C, K, K)),
            cross=np.zeros((C, M, K)),
            power=np.zeros((C, M)),
        )
        self._waiting: list[tuple[Single, Single]] = []

    def add(self, x: Single, y: Single) -> None:
        """See further positions.

        Parameters
        ----------
        x : ndarray of float32, shape (C, R, K)
        y : ndarray of float32, shape (C, R, M)
        """
        self._waiting.append((x, y))
        if sum(waiting.shape[1] for waiting, _ in self._waiting) >= _TOGETHER:
            self._flush()

    def moments(self) -> Moments:
        """Return the sums over all positions so far."""
        self._flush()
        return self._moments

    def _flush(self) -> None:
        if not self._waiting:
            return
        x, y = (np.concatenate(rows, axis=1) for rows in zip(*self._waiting, strict=True))
        self._waiting.clear()
        sums = self._moments
        np.add(sums.inputs, x.sum(1, dtype=np.float64), out=sums.inputs)
        np.add(sums.outputs, y.sum(1, dtype=np.float64), out=sums.outputs)
        np.add(sums.gram, x.transpose(0, 2, 1) @ x, out=sums.gram)
        np.add(sums.cross, y.transpose(0, 2, 1) @ x, out=sums.cross)
        np.add(sums.power, np.einsum("crm,crm->cm", y, y, dtype=np.float64), out=sums.power)
        self._moments = sums._replace(positions=sums.positions + x.shape[1])
