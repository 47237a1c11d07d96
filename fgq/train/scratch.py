"""Quantization-aware training from scratch, with batch normalization that is learned on the way.

`fgq.train.prepare` folds batch normalization into the convolution, as a converted file has it; that suits a
network that is trained already. From scratch the normalization must be able to follow the weights. Here it
stays a layer of its own while weights and activations are quantized from the first step on, as in the Pareto
study (Abdolrashidi et al. 2021, arXiv 2105.03536, and its library AQT), and `fold` joins both at the end.
Codes are not changed by that, since folding multiplies the weights of a row by one factor; the scales of
groups are rounded to whole multiples of their row's, as every file has them. Training on folded weights
(Jacob et al. 2018, arXiv 1712.05877, section 3.2) leads to the same file at twice the convolutions.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fgq.scheme import ActivationScheme, Codes, Granularity, WeightScheme
from fgq.train.fit import fitted_steps
from fgq.train.layers import Axes, QuantizedLayer
from fgq.train.prepare import INT8_ACTIVATIONS, prepare, quantized_layers

INT4_PER_FILTER = WeightScheme(codes=Codes.INT4, granularity=Granularity.FILTER)
"""The paper's 4-bit weights: one scale for each output channel."""

REFIT_EVERY = 10
"""Training steps between two fits of the scales of weights."""

SHARE = 0.1
"""How far the first of these fits moves the scales of groups; later ones less, and none after the warm-up."""

_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_JOINED = "normalization"
"""The entry of a prepared module's `meta` with the layer that each normalization follows."""

_ALL_ZERO = 1e30
"""The step of a group that has no scale: all its codes are 0."""


class KeptSteps(nn.Module):
    """``step * clamp(round(w / step), -L, L)``, with steps that follow the weights, but not each by itself.

    The gradient of w is that of the result (straight-through estimator: Bengio et al. 2013, arXiv 1308.3432,
    section 4). Steps of INT8 codes, and of the paper's 4-bit rows, are set by the largest magnitude of a row.
    Steps of groups start as the converter fits them. From then on they grow with the mean magnitude of their
    row, and during the warm-up move slowly to new fits. Were they fitted in each pass, a weight that grows
    would raise the step of its group and with it turn the others to zero, most of all in small groups.

    Parameters
    ----------
    weight : torch.Tensor
    scheme : WeightScheme
    group_axis, channel_axis : int
        As for `fgq.train.fit.dequantized`.
    warm_up : int
        Training passes after which steps of groups grow with their row alone.

    Attributes
    ----------
    steps : torch.Tensor
        float32, the step between neighbouring values of each weight when it was last moved, in the shape of
        the weight.
    sizes : torch.Tensor
        float32 (M,), what the steps of each row are in proportion to, at that time.
    passes : torch.Tensor
        int64 scalar, the forward passes in training.
    """

    steps: Tensor
    sizes: Tensor
    passes: Tensor

    def __init__(
        self, weight: Tensor, scheme: WeightScheme, *, group_axis: int, channel_axis: int, warm_up: int
    ) -> None:
        super().__init__()
        # AQT scales 4-bit rows as 8-bit ones: the largest magnitude takes the largest code.
        paper = scheme == INT4_PER_FILTER
        self.scheme = WeightScheme(codes=Codes.INT8, weight_limit=scheme.max_code) if paper else scheme
        self.warm_up = warm_up
        self._axes: Axes = {"group_axis": group_axis, "channel_axis": channel_axis}
        self.register_buffer("steps", torch.full_like(weight, _ALL_ZERO, requires_grad=False))
        self.register_buffer("sizes", self._sizes(weight.detach()))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.refit(weight)

    @torch.no_grad()
    def refit(self, weight: Tensor, share: float = 1.0) -> None:
        """Move the steps by a share of the way to those that fit a weight, to which missing ones are set."""
        fitted = fitted_steps(weight, self.scheme, **self._axes)
        fitted = torch.where(fitted > 0, fitted, _ALL_ZERO)
        now = self.current(weight)
        moved = torch.lerp(now, fitted, share) if share < 1 else fitted
        has_both = torch.maximum(now, fitted) < _ALL_ZERO
        self.steps.copy_(torch.where(has_both, moved, torch.minimum(now, fitted)))
        self.sizes.copy_(self._sizes(weight))

    @torch.no_grad()
    def current(self, weight: Tensor) -> Tensor:
        """Return the steps, grown with the rows since they were moved."""
        now = self._sizes(weight)
        growth = torch.where((now > 0) & (self.sizes > 0), now / self.sizes, 1.0)
        shape = [1] * weight.ndim
        shape[self._axes["channel_axis"]] = -1
        return torch.where(self.steps < _ALL_ZERO, self.steps * growth.reshape(shape), _ALL_ZERO)

    def _sizes(self, weight: Tensor) -> Tensor:
        rows = weight.float().abs().movedim(self._axes["channel_axis"], 0).flatten(1)
        return rows.amax(-1) if self.scheme.codes is Codes.INT8 else rows.mean(-1)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight; in training also move the steps when it is time."""
        if self.training:
            passes = int(self.passes)
            left = 1.0 if self.scheme.codes is Codes.INT8 else SHARE * max(0.0, 1 - passes / self.warm_up)
            if left and passes % REFIT_EVERY == 0:
                self.refit(weight.detach(), left)
            self.passes.add_(1)
        steps = self.current(weight.detach())
        return cast(Tensor, _StraightThrough.apply(weight, steps, self.scheme.max_code))  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: Tensor, largest: int) -> Tensor:
        return (weight / steps).round_().clamp_(-largest, largest).mul_(steps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def prepare_from_scratch(
    module: nn.Module,
    scheme: WeightScheme,
    example: tuple[Tensor, ...],
    *,
    activations: ActivationScheme = INT8_ACTIVATIONS,
    warm_up: int = 100,
) -> fx.GraphModule:
    """Return a copy of an untrained module that is quantized and keeps its batch normalizations.

    The bounds of activations are moving averages of the extremes of batches, frozen after the warm-up. The
    first convolution and the last Linear layer have 8 bits.

    Parameters
    ----------
    module : torch.nn.Module
        As for `fgq.train.prepare`. Left as it is.
    scheme : WeightScheme
        As for `fgq.train.prepare`, or `INT4_PER_FILTER`.
    example : tuple of torch.Tensor
        Inputs of the module.
    activations : ActivationScheme
    warm_up : int
        Training steps after which the ranges of activations are frozen, and the scales of groups among those
        of their row.

    Raises
    ------
    ModelError
        If the module cannot be traced or run, or holds no layer that can be quantized.
    """
    prepared = prepare(module, scheme, example, activations=activations, warm_up=warm_up)
    joined: dict[str, str] = {}
    for node in prepared.graph.nodes:
        name = str(node.target)
        folded = node.op == "call_module" and isinstance(prepared.get_submodule(name), nn.Identity)
        if folded and isinstance(module.get_submodule(name), _NORMALIZATIONS):
            joined[name] = str(node.all_input_nodes[0].target)
    for name, owner in joined.items():
        folded_into, untouched = prepared.get_submodule(owner), copy.deepcopy(module.get_submodule(owner))
        folded_into.weight, folded_into.bias = untouched.weight, untouched.bias
        prepared.set_submodule(name, copy.deepcopy(module.get_submodule(name)))
    for layer in quantized_layers(prepared).values():
        layer.kept_steps = KeptSteps(layer.weight, layer.weight_scheme, **layer.axes, warm_up=max(1, warm_up))
    prepared.meta[_JOINED] = joined
    return prepared


@torch.no_grad()
def fold(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a trained module as `fgq.train.prepare` makes one, in evaluation mode.

    It computes the converter's integers, and `fgq.train.export` writes it. Scales of groups are parameters,
    as learned ones are.

    Parameters
    ----------
    module : torch.fx.GraphModule
        As `prepare_from_scratch` returned it. Left as it is.
    """
    folded = copy.deepcopy(module).eval()
    joined = folded.meta.pop(_JOINED)
    steps: dict[str, Tensor] = {}
    for name, layer in quantized_layers(folded).items():
        kept = cast(KeptSteps, layer.kept_steps)
        now = kept.current(layer.weight)
        layer.weight.copy_(kept(layer.weight))
        if kept.scheme.codes is not Codes.INT8:  # else the converter finds the same codes again
            steps[name] = torch.where(layer.weight != 0, now, 0.0)
        del layer.kept_steps
        layer.kept_steps = None
    for name, owner in joined.items():
        layer, norm = cast(QuantizedLayer, folded.get_submodule(owner)), cast(Any, folded.get_submodule(name))
        fused = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        if owner in steps:
            steps[owner] = fuse_conv_bn_weights(steps[owner], None, *fused)[0].abs()
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *fused)
        folded.set_submodule(name, nn.Identity())
    for name, values in steps.items():
        cast(QuantizedLayer, folded.get_submodule(name)).learn_scales_from(values)
    return folded
