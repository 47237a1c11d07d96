"""Group scales that are learned with the weights.

LSQ (Esser et al. 2020, arXiv 1902.08153, section 2): a weight is ``s * clip(round(w / s), -c, c)``, and the
gradient of the scale s is what the straight-through estimator makes of that expression,

    dw/ds = round(w / s) - w / s    where |w / s| <= c,    else +-c                              (equation 3)

times ``1 / sqrt(N c)`` for a group of N weights (section 2.2). Here s is a whole multiple ``alpha`` of the
scale of its row, in every forward pass, as a file holds it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fgq.quantization.scheme import WeightScheme
from fgq.train import fused

NEAR = 0.4
"""How far from its code, in units of the scale, a weight starts at most: half would change the code."""


class Scales(StrEnum):
    """Where the scales of weights come from."""

    REFITTED = "refitted"
    """Fitted to the weights in each forward pass, as the converter fits them."""
    LEARNED = "learned"
    """Parameters of their own (LSQ)."""


def as_groups(weight: Tensor, scheme: WeightScheme, *, group_axis: int, channel_axis: int) -> Tensor:
    """Return a weight as (M, G, N): rows, groups of all places, weights of a group, zeros at a ragged end.

    Parameters
    ----------
    weight : torch.Tensor
    scheme : WeightScheme
        With codes that are not grouped a row is one group.
    group_axis, channel_axis : int
        As for `fgq.quantization.weights.quantize_weight`.
    """
    rows = weight.movedim((channel_axis, group_axis), (0, -1))
    if not scheme.codes.spec.grouped:
        return rows.reshape(rows.shape[0], 1, -1)
    size = scheme.group_length(rows.shape[-1])
    missing = -rows.shape[-1] % size
    if missing:
        rows = functional.pad(rows, (0, missing))
    return rows.reshape(rows.shape[0], -1, size)


def from_groups(groups: Tensor, like: Tensor, *, group_axis: int, channel_axis: int) -> Tensor:
    """Return what `as_groups` rearranged, in the shape of the weight `like`."""
    moved = like.movedim((channel_axis, group_axis), (0, -1)).shape
    rows = groups.reshape(*moved[:-1], -1)[..., : moved[-1]]
    return rows.movedim((0, -1), (channel_axis, group_axis))


def whole_scale(scale: Tensor, row_scale: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the nearest scales that a file can hold: ``alpha * row_scale``, alpha one of 1..limit.

    Parameters
    ----------
    scale : torch.Tensor
        Group scales (M, G).
    row_scale : torch.Tensor
        Least row scales (M,); a row with a group beyond ``limit`` times it takes more.
    limit : int

    Returns
    -------
    alpha : torch.Tensor
        (M, G), whole numbers.
    row_scale : torch.Tensor
        (M,).
    """
    widest = scale.amax(-1)
    # Not the larger of two quotients: rounding would move a row whose widest group is just at the limit.
    row_scale = torch.where(widest > limit * row_scale, widest / limit, row_scale)
    row_scale = row_scale.clamp_min(torch.finfo(torch.float32).tiny)
    return (scale / row_scale[:, None]).round().clamp(1, limit), row_scale


class LearnedScale(torch.autograd.Function):
    """Groups (M, G, N) at scales (M, G) to the nearest of ``s * (-c .. c)``; see the module's formulas.

    The gradient of a weight beyond the last level passes where it leads back to it, and is 0 elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, groups: Tensor, scale: Tensor, max_code: int) -> Tensor:
        """Quantize."""
        # One row for each group, contiguous: compiled formulas are made anew for every other layout.
        flat, one = groups.reshape(-1, groups.shape[-1]).contiguous(), scale.reshape(-1)
        ctx.save_for_backward(flat, one)
        ctx.shape, ctx.max_code = groups.shape, max_code
        return fused.run(fused.weights, flat, one, float(max_code)).reshape(groups.shape)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of weights and scales."""
        flat, one = ctx.saved_tensors
        grad = grads[0].reshape(flat.shape).contiguous()
        passed, slope = fused.run(fused.weight_gradients, grad, flat, one, float(ctx.max_code))
        rate = (flat.shape[-1] * ctx.max_code) ** -0.5
        return passed.reshape(ctx.shape), slope.reshape(ctx.shape[:-1]) * rate, None


def codes_of(groups: Tensor, scale: Tensor, max_code: int) -> Tensor:
    """Return the codes of groups (M, G, N) at scales (M, G), as floats; half-way values to even."""
    flat = groups.reshape(-1, groups.shape[-1])
    return fused.codes(flat, scale.reshape(-1), float(max_code)).reshape(groups.shape)
