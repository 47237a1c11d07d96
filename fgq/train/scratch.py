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

from fgq.quantization.scheme import ActivationScheme, Codes, Granularity, WeightScheme
from fgq.train.fit import fitted_steps
from fgq.train.prepare import INT8_ACTIVATIONS, prepare, quantized_layers
from fgq.train.scales import LearnedScale, as_groups, from_groups
from fgq.train.twins import Axes, QuantizedLayer

INT4_PER_FILTER = WeightScheme(codes=Codes.INT4, granularity=Granularity.FILTER)
"""The paper's 4-bit weights: one scale for each output channel."""

_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_JOINED = "normalization"
"""The entry of a prepared module's `meta` with the layer that each normalization follows."""

_TINY = torch.finfo(torch.float32).tiny


class RowSteps(nn.Module):
    """``step * clamp(round(w / step), -L, L)``, with the step of a row its largest magnitude over L.

    So AQT scales weights of 8 and of 4 bits (arXiv 2105.03536, section 3). The gradient of w is that of the
    result (straight-through estimator: Bengio et al. 2013, arXiv 1308.3432, section 4).

    Parameters
    ----------
    limit : int
        L, the largest code.
    channel_axis : int
        The axis of rows.
    """

    def __init__(self, limit: int, channel_axis: int) -> None:
        super().__init__()
        self.limit, self.channel_axis = limit, channel_axis

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of any shape."""
        others = [axis for axis in range(weight.ndim) if axis != self.channel_axis]
        fixed = weight.detach()
        steps = (fixed.abs().amax(others, keepdim=True) / self.limit).clamp_min(_TINY)
        return _straight_through((fixed / steps).round().clamp(-self.limit, self.limit) * steps, weight)


class GroupSteps(nn.Module):
    """``step * clamp(round(w / step), -c, c)``, with a step for each group that is learned.

    A step is the mean magnitude of its row times a factor, which starts as the converter fits it; its
    logarithm is a parameter, with the gradient of `fgq.train.scales`. Were steps fitted to their groups in
    each pass, a weight that grows would raise the step of its group and with it turn the others to zero,
    most of all in small groups.

    Parameters
    ----------
    weight : torch.Tensor
        The first weights.
    scheme : WeightScheme
    group_axis, channel_axis : int
        As for `fgq.train.fit.dequantized`.

    Attributes
    ----------
    start : torch.Tensor
        float32 (M, G), the first factors.
    growth : torch.nn.Parameter
        float32 (M, G), by how much the logarithms of factors have grown.
    """

    start: Tensor

    def __init__(self, weight: Tensor, scheme: WeightScheme, *, group_axis: int, channel_axis: int) -> None:
        super().__init__()
        self.scheme = scheme
        self._axes: Axes = {"group_axis": group_axis, "channel_axis": channel_axis}
        fitted = as_groups(fitted_steps(weight, scheme, **self._axes), scheme, **self._axes).amax(-1)
        sizes = self._sizes(weight).clamp_min(_TINY)[:, None]
        # A group of zeros may get weights later.
        self.register_buffer("start", torch.where(fitted > 0, fitted / sizes, 1.0))
        self.growth = nn.Parameter(torch.zeros_like(self.start))

    def _sizes(self, weight: Tensor) -> Tensor:
        rows = weight.detach().float().movedim(self._axes["channel_axis"], 0).flatten(1)
        return rows.abs().mean(-1)

    def steps(self, weight: Tensor) -> Tensor:
        """Return the steps of all groups (M, G) at a weight."""
        return (self._sizes(weight)[:, None] * self.start * self.growth.exp()).clamp_min(_TINY)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight in the shape of the first one."""
        groups = as_groups(weight.detach(), self.scheme, **self._axes)
        nearest = LearnedScale.apply(groups, self.steps(weight), self.scheme.max_code)  # type: ignore[no-untyped-call]
        nearest = from_groups(nearest, weight, **self._axes)
        # The whole gradient for weights, where LearnedScale keeps them from growing beyond the last level.
        return _straight_through(nearest, weight)


def _straight_through(nearest: Tensor, weight: Tensor) -> Tensor:
    """Return quantized values, whose gradient the weight gets as it is."""
    return nearest + (weight - weight.detach())


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
        Training steps after which the ranges of activations are frozen.

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
        layer.kept_steps = _steps(layer)
    prepared.meta[_JOINED] = joined
    return prepared


def _steps(layer: QuantizedLayer) -> RowSteps | GroupSteps:
    scheme = layer.weight_scheme
    if not scheme.codes.spec.grouped or scheme == INT4_PER_FILTER:
        return RowSteps(scheme.max_code, layer.channel_axis)
    return GroupSteps(layer.weight, scheme, **layer.axes)


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
        kept = layer.kept_steps
        if isinstance(kept, GroupSteps):
            steps[name] = kept.steps(layer.weight)
        # In rows the converter finds the same codes again: the largest magnitude has the largest.
        layer.weight.copy_(cast(nn.Module, kept)(layer.weight))
        del layer.kept_steps
        layer.kept_steps = None
    for name, owner in joined.items():
        layer, norm = cast(QuantizedLayer, folded.get_submodule(owner)), cast(Any, folded.get_submodule(name))
        fused = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *fused)
        if owner in steps:
            steps[owner] = fuse_conv_bn_weights(nn.Parameter(steps[owner]), None, *fused)[0].abs()
        folded.set_submodule(name, nn.Identity())
    for name, scale in steps.items():
        cast(QuantizedLayer, folded.get_submodule(name)).learn_scales_from(scale)
    return folded
