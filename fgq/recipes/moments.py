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

_RESOLUTION = 2.0**-40
"""What rounding alone makes a float32 value vary, as a share of its square."""

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

    @property
    def is_constant(self) -> bool:
        """Whether the inputs vary by no more than rounding."""
        square = np.trace(self.gram, axis1=1, axis2=2)
        variance = square - np.square(self.inputs).sum(1) / max(self.positions, 1)
        return bool((variance <= _RESOLUTION * square).all())

    def centred(self, weights: Float, at: Moments | None = None) -> Moments:
        """Return the moments about the means, which matter alone where a bias makes up for the means.

        Rounding makes inputs that are constant seem to vary, and float32 sums give some directions a
        negative variance. A little variance is therefore added in all directions, in which y follows x as
        the float weights say: so what the data do not tell, the weights do.

        Parameters
        ----------
        weights : ndarray of float64, shape (C, M, K)
            The float weights.
        at : Moments, optional
            Whose means to take; then the errors are those with the bias that is best there. If not given,
            these moments' own.
        """
        n, other = self.positions, self if at is None else at
        x, y = other.inputs / max(other.positions, 1), other.outputs / max(other.positions, 1)
        inputs, outputs = self.inputs - n * x, self.outputs - n * y
        gram = self.gram - self.inputs[:, :, None] * x[:, None] - x[:, :, None] * inputs[:, None]
        cross = self.cross - self.outputs[:, :, None] * x[:, None] - y[:, :, None] * inputs[:, None]
        power = self.power - self.outputs * y - y * outputs
        places = np.arange(gram.shape[1])
        added = _ROUNDING * np.abs(gram[:, places, places]).mean(1)
        added += _RESOLUTION * self.gram[:, places, places].mean(1)
        gram[:, places, places] += added[:, None]
        return Moments(
            positions=n,
            inputs=inputs,
            outputs=outputs,
            gram=gram,
            cross=cross + added[:, None, None] * weights,
            power=power + added[:, None] * np.square(weights).sum(2),
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

    Products are added in float32 within some thousand positions and in float64 across them; of differences
    from the first positions' means, since a common offset would leave float32 no digits for the rest.

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
        self._origin: tuple[Single, Single] | None = None

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
        return self._moments if self._origin is None else _moved(self._moments, *self._origin)

    def _flush(self) -> None:
        if not self._waiting:
            return
        x, y = (np.concatenate(rows, axis=1) for rows in zip(*self._waiting, strict=True))
        self._waiting.clear()
        if not x.shape[1]:
            return
        if self._origin is None:
            self._origin = _mean(x), _mean(y)
        x, y = (rows - origin[:, None] for rows, origin in zip((x, y), self._origin, strict=True))
        # Powers of two, which change no digit: squares of extreme values leave the range of float32.
        x_unit, y_unit = _unit(x), _unit(y)
        x, y = x * np.float32(1 / x_unit), y * np.float32(1 / y_unit)
        sums = self._moments
        np.add(sums.inputs, x_unit * x.sum(1, dtype=np.float64), out=sums.inputs)
        np.add(sums.outputs, y_unit * y.sum(1, dtype=np.float64), out=sums.outputs)
        np.add(sums.gram, x_unit**2 * (x.transpose(0, 2, 1) @ x).astype(np.float64), out=sums.gram)
        np.add(sums.cross, x_unit * y_unit * (y.transpose(0, 2, 1) @ x).astype(np.float64), out=sums.cross)
        np.add(sums.power, y_unit**2 * np.einsum("crm,crm->cm", y, y, dtype=np.float64), out=sums.power)
        self._moments = sums._replace(positions=sums.positions + x.shape[1])


def _mean(rows: Single) -> Single:
    mean: Single = rows.mean(1, dtype=np.float64).astype(np.float32)
    return mean


def _unit(rows: Single) -> float:
    """Return a power of two near the largest magnitude where squares could leave float32, else 1."""
    largest = max(float(rows.max()), -float(rows.min()))
    if not np.isfinite(largest) or largest == 0 or 2.0**-30 < largest < 2.0**30:
        return 1.0
    return float(np.exp2(np.clip(np.floor(np.log2(largest)), -120, 120)))


def _moved(moments: Moments, x: Single, y: Single) -> Moments:
    """Return the moments about zero, given those about an origin."""
    n, x0, y0 = moments.positions, x.astype(np.float64), y.astype(np.float64)
    inputs, outputs = moments.inputs + n * x0, moments.outputs + n * y0
    gram = moments.gram + x0[:, :, None] * moments.inputs[:, None] + inputs[:, :, None] * x0[:, None]
    return Moments(
        positions=n,
        inputs=inputs,
        outputs=outputs,
        gram=gram,
        cross=moments.cross + y0[:, :, None] * moments.inputs[:, None] + outputs[:, :, None] * x0[:, None],
        power=moments.power + y0 * moments.outputs + outputs * y0,
    )
