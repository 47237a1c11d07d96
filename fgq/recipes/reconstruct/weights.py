r"""Quantized weights that can be trained, and constants beside them.

A weight is ``row_scale * alpha * code`` as always. What is trained is a real position for each code, and the
logarithms of how far the group scales and the row scale have moved:

.. math:: w = s e^{\sigma} \cdot [\alpha e^{\delta}] \cdot [\operatorname{clip}(p, -c, c)],

where brackets round to the nearest whole number and pass gradients on unchanged (the straight-through
estimator; learned steps as in LSQ, Esser et al. 2020, arXiv 1902.08153). In each forward pass the weight is
exactly one that a file can hold, so nothing is left to be rounded in the end.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fgq.quantization.tensor import Plane, QuantizedTensor
from fgq.quantization.ternary import bounded_row_scale
from fgq.recipes.moments import Float
from fgq.recipes.reconstruct.operators import round_through

MARGIN = 0.4
"""How far from its code a position may start; at 0.5 the code would change."""


class TrainedWeight(nn.Module):
    """A quantized weight of one plane, starting as one that was found before.

    Parameters
    ----------
    start : QuantizedTensor
        Of one plane.
    weight : ndarray of float32
        The float weight: it says to which side of its code a position starts.
    """

    def __init__(self, start: QuantizedTensor, weight: NDArray[np.float32]) -> None:
        super().__init__()
        (plane,) = start.planes
        self._start = start
        self._limit = start.scheme.alpha_limit
        self._largest = start.scheme.max_code
        self._axis = start.group_axis
        alpha = np.maximum(plane.alpha, 1).astype(np.float32)
        along = [1] * len(start.shape)
        along[start.channel_axis] = -1
        row_scale = start.row_scale.reshape(along)
        codes = plane.codes.astype(np.float32)
        steps = row_scale * np.take(alpha, start.group, start.group_axis)
        position = np.clip(weight / steps, codes - MARGIN, codes + MARGIN).astype(np.float32)
        self._group: Tensor
        self._alpha: Tensor
        self._row_scale: Tensor
        self.register_buffer("_group", torch.from_numpy(start.group.astype(np.int64)))
        self.register_buffer("_alpha", torch.from_numpy(alpha))
        self.register_buffer("_row_scale", torch.from_numpy(row_scale.copy()))
        self.position = nn.Parameter(torch.from_numpy(position))
        self.alpha_shift = nn.Parameter(torch.zeros_like(self._alpha))
        self.row_shift = nn.Parameter(torch.zeros_like(self._row_scale))
        self.keep_in_range()

    def forward(self) -> Tensor:
        """Return the weight, a float tensor of its own shape."""
        integers = round_through(self.position) * self._alphas().index_select(self._axis, self._group)
        return integers * (self._row_scale * torch.exp(self.row_shift))

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """Bring positions back to the codes' range, where rounding has a gradient."""
        self.position.clamp_(-self._largest, self._largest)

    @torch.no_grad()
    def harden(self, least: Float | None) -> QuantizedTensor:
        """Return the tensor that the parameters stand for.

        Parameters
        ----------
        least : ndarray of float64, shape (M,), or None
            Lower bounds on the row scales.
        """
        start = self._start
        codes = torch.round(self.position).numpy().astype(np.int8)
        alpha = self._alphas().numpy().astype(np.uint8)
        # A group of zeros has the scale 0.
        firsts = np.searchsorted(start.group, np.arange(start.groups))
        used = np.maximum.reduceat(np.abs(codes), firsts, axis=start.group_axis)
        used = used if alpha.shape == used.shape else np.ones_like(alpha)
        scale = (self._row_scale * torch.exp(self.row_shift)).reshape(-1).numpy()
        tensor = replace(
            start,
            planes=(Plane(codes=codes, alpha=np.where(used > 0, alpha, 0).astype(np.uint8)),),
            row_scale=bounded_row_scale(scale.astype(np.float64), least).astype(np.float32),
        )
        tensor.validate()
        return tensor

    def _alphas(self) -> Tensor:
        return round_through(torch.clamp(self._alpha * torch.exp(self.alpha_shift), 1, self._limit))


class TrainedVector(nn.Module):
    """A constant vector, a bias or the scale of a normalization, that moves in units of its own size.

    Parameters
    ----------
    start : ndarray of float32
    """

    def __init__(self, start: NDArray[np.float32]) -> None:
        super().__init__()
        self._start: Tensor
        self.register_buffer("_start", torch.tensor(start))
        self._unit = float(np.sqrt(np.mean(np.square(start, dtype=np.float64))))
        self.shift = nn.Parameter(torch.zeros_like(self._start))

    def forward(self) -> Tensor:
        """Return the vector."""
        return self._start + self._unit * self.shift

    @torch.no_grad()
    def harden(self) -> NDArray[np.float32]:
        """Return the vector that the parameters stand for."""
        values: NDArray[np.float32] = self.forward().numpy()
        return values
