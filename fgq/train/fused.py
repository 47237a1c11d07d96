"""The elementwise formulas of fake quantization and their gradients, which torch.compile makes one pass each.

A step of training runs them over all weights and all quantized activations. Uncompiled they are a dozen
passes over memory; compiled, one. Compilation takes some seconds a process and needs a C++ compiler, so it is
asked for (`compiled`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

_COMPILES: ContextVar[bool] = ContextVar("fgq_train_compiles", default=False)


@contextmanager
def compiled(wanted: bool = True) -> Iterator[None]:
    """Compile the formulas of this module meanwhile, if wanted."""
    token = _COMPILES.set(wanted)
    try:
        yield
    finally:
        _COMPILES.reset(token)


def run(formula: Callable[..., Any], *operands: Any) -> Any:
    """Compute a formula of this module, compiled where that is asked for."""
    return (_compiled(formula) if _COMPILES.get() else formula)(*operands)


@cache
def _compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(formula, dynamic=True)


def codes(groups: Tensor, scale: Tensor, limit: float) -> Tensor:
    """Return ``clip(round(w / s), -c, c)`` of groups (R, N) at scales (R,); half-way values to even."""
    return (groups / scale[:, None]).round().clamp(-limit, limit)


def weights(groups: Tensor, scale: Tensor, limit: float) -> Tensor:
    """Return the `codes` times their scales."""
    return codes(groups, scale, limit) * scale[:, None]


def weight_gradients(grad: Tensor, groups: Tensor, scale: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights and scales: see `fgq.train.scales`."""
    ratio = groups / scale[:, None]
    kept = ratio.clamp(-limit, limit)
    beyond = (ratio - kept).sign()  # 0 inside
    passed = torch.where(beyond * grad < 0, 0.0, grad)
    # Beyond the last level the code and the clipped ratio are equal, and the level is the slope.
    slope = kept.round() - kept + limit * beyond
    return passed, (slope * grad).sum(-1)


def activations(x: Tensor, scale: Tensor, zero: Tensor, highest: float) -> Tensor:
    """Return ``s * (clip(round(x / s + z), 0, highest) - z)``; half-way values to even.

    Computed in float32, and returned in the type of x, as are gradients: under autocast what reads it would
    round it all the same.
    """
    return (((x.float() / scale + zero).clamp(0, highest).round() - zero) * scale).to(x.dtype)


def activation_gradient(grad: Tensor, x: Tensor, scale: Tensor, zero: Tensor, highest: float) -> Tensor:
    """Return the gradient of activations: it passes where they are not clipped."""
    scaled = x.float() / scale + zero
    return torch.where(scaled == scaled.clamp(0, highest), grad, 0.0).to(x.dtype)


def activation_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, zero: Tensor, highest: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of activations and of their scale (LSQ, equations 3 and 5)."""
    ratio = x.float() / scale
    scaled = ratio + zero
    clipped = scaled.clamp(0, highest)
    inside = scaled == clipped
    slope = clipped.round() - zero - torch.where(inside, ratio, 0.0)
    return torch.where(inside, grad, 0.0).to(x.dtype), (slope * grad).sum()
