"""Fake quantization of activations: statistical or learned ranges, straight-through gradients."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, cast

import torch
from torch import Tensor, nn

from fgq.quantization.scheme import Quantizer
from fgq.train import fused

_MOMENTUM = 0.95
_SMALLEST = float(torch.finfo(torch.float32).tiny)


class Ranges(StrEnum):
    """Where the ranges of activations come from."""

    STATISTICAL = "statistical"
    """Moving averages of the extremes of batches, frozen after a warm-up (arXiv 2105.03536, section 3)."""
    LEARNED = "learned"
    """Scales learned with the weights (LSQ: Esser et al. 2020, arXiv 1902.08153, section 2.1)."""


def _is_cheap_to_read(value: Tensor) -> bool:
    """Tell whether a value can be read without breaking a compiled graph or waiting for a device."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


class _Rounding(torch.autograd.Function):
    """The quantizer's formula; of a scale that is learned, the gradient of LSQ at its rate (section 2.2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, highest: int) -> Tensor:
        ctx.format = _format(x)
        flat = _flat(x, ctx.format)
        ctx.save_for_backward(flat, scale, zero)
        ctx.shape, ctx.highest = x.shape, highest
        y = fused.run(fused.activations, flat, scale, zero, float(highest))
        return _shaped(y, ctx.shape, ctx.format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        flat, scale, zero = ctx.saved_tensors
        grad = _flat(grads[0], ctx.format)
        if not ctx.needs_input_grad[1]:
            passed = fused.run(fused.activation_gradient, grad, flat, scale, zero, float(ctx.highest))
            return _shaped(passed, ctx.shape, ctx.format), None, None, None
        passed, slope = fused.run(fused.activation_gradients, grad, flat, scale, zero, float(ctx.highest))
        rate: float = (flat.numel() * ctx.highest) ** -0.5
        return _shaped(passed, ctx.shape, ctx.format), slope * rate, None, None


def _format(x: Tensor) -> torch.memory_format:
    """Return the order in which a tensor's values lie, as far as it has one."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _flat(x: Tensor, order: torch.memory_format) -> Tensor:
    """Return the values on one axis, in their order: compiled formulas are made anew for every layout."""
    x = x.contiguous(memory_format=order)
    return (x.permute(0, 2, 3, 1) if order is torch.channels_last else x).reshape(-1)


def _shaped(flat: Tensor, shape: torch.Size, order: torch.memory_format) -> Tensor:
    """Return the inverse of `_flat`."""
    if order is not torch.channels_last:
        return flat.reshape(shape)
    batch, channels, height, width = shape
    return flat.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class ActivationQuantizer(nn.Module):
    """``scale * (clamp(round(x / scale) + zero_point, 0, 2**bits - 1) - zero_point)``, half to even.

    Parameters
    ----------
    bits : int
        8 or 4.
    ranges : Ranges
    warm_up : int
        Training steps after which statistical ranges are frozen.

    Attributes
    ----------
    scale : torch.Tensor
        float32 scalar; a parameter where the range is learned. 0 until a range is known.
    zero_point : torch.Tensor
        int32 scalar.
    steps : torch.Tensor
        int64 scalar, the training batches seen.
    fixed : bool
        Whether batches no longer move the range, since `set` was called.
    """

    scale: Tensor
    zero_point: Tensor
    extremes: Tensor
    steps: Tensor

    def __init__(self, bits: int, ranges: Ranges, warm_up: int) -> None:
        super().__init__()
        self.bits, self.ranges, self.warm_up = bits, ranges, warm_up
        self.fixed = False
        scale = torch.zeros(())
        if ranges is Ranges.LEARNED:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.register_buffer("extremes", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    @torch.no_grad()
    def set(self, quantizer: Quantizer) -> None:
        """Take a scale and a zero point, and keep statistical ranges as they then are."""
        self.fixed = True
        self.scale.fill_(quantizer.scale)
        self.zero_point.fill_(quantizer.zero_point)
        self.steps.fill_(max(1, self.warm_up))

    def value(self) -> Quantizer:
        """Return scale and zero point as the converter knows them."""
        return Quantizer(scale=float(self.scale.detach()), zero_point=int(self.zero_point), bits=self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape; in training also move the range."""
        if self.training and not self.fixed:
            self._observe(x.detach())
        zero = self.zero_point.float()
        scale = self.scale.abs().clamp_min(_SMALLEST)
        given = x if self.training else x.float()  # whose integers are counted on
        return cast(Tensor, _Rounding.apply(given, scale, zero, self.highest))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        """Move the extremes while warming up; compiled code has no branches on data."""
        learned = self.ranges is Ranges.LEARNED
        last = 1 if learned else self.warm_up
        if _is_cheap_to_read(self.steps) and int(self.steps) >= last:
            self.steps.add_(1)
            return
        lowest, highest = torch.aminmax(x.float())
        found = torch.stack((lowest.clamp_max(0.0), highest.clamp_min(0.0)))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(found)
            found = found / torch.distributed.get_world_size()
        moved = torch.where(self.steps == 0, found, _MOMENTUM * self.extremes + (1 - _MOMENTUM) * found)
        moving = self.steps < last
        scale = ((moved[1] - moved[0]) / self.highest).clamp_min(_SMALLEST)
        self.extremes.copy_(torch.where(moving, moved, self.extremes))
        self.scale.copy_(torch.where(moving, scale, self.scale))
        zero = (-moved[0] / scale).round().clamp(0, self.highest).to(torch.int32)
        self.zero_point.copy_(torch.where(moving, zero, self.zero_point))
        self.steps.add_(1)
