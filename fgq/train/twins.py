"""Layers whose weights are quantized in every forward pass, with their float twins' names and parameters."""

from __future__ import annotations

import copy
from typing import Any, Self, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgq.quantization.scheme import WeightScheme
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.ternary import bounded_row_scale
from fgq.quantization.weights import as_rows, assemble, least_row_scale, quantize_bias, quantize_weight
from fgq.train.fit import check_trained, dequantized
from fgq.train.quantizer import ActivationQuantizer
from fgq.train.scales import NEAR, LearnedScale, as_groups, codes_of, from_groups, whole_scale


class Axes(TypedDict):
    """The axes of a weight, as functions of weights take them."""

    group_axis: int
    channel_axis: int


class QuantizedLayer(nn.Module):
    """What all quantized twins share; `twin` makes one of a float layer.

    In training the layer computes on ``w + (q(w) - w)``, of which only the float weight w has a gradient
    (the straight-through estimator: Bengio et al. 2013, arXiv 1308.3432, section 4), with q refitted in each
    pass. In evaluation, a Conv2d or a Linear layer whose input is quantized computes the converter's
    integers (docs/architecture.md, One integer meaning), in float64, where they are exact.

    Attributes
    ----------
    weight_scheme : fgq.quantization.scheme.WeightScheme
    strength : float
        0 for float weights, 1 for quantized ones; between them the weight is interpolated (gradual
        quantization).
    group_scale : torch.nn.Parameter
        float32 (M, G), the scales of the groups of each row, where they are learned (`fgq.train.scales`).
    row_scale : torch.Tensor
        float32 (M,), beside learned scales: the row scales that they started with.
    kept_steps : torch.nn.Module or None
        What quantizes the weight in training from scratch (`fgq.train.scratch`).
    """

    weight: Tensor
    bias: Tensor | None
    weight_scheme: WeightScheme
    strength: float
    group_scale: nn.Parameter
    row_scale: Tensor
    input_quantizer: ActivationQuantizer | None
    output_quantizer: ActivationQuantizer | None
    kept_steps: nn.Module | None

    @property
    def group_axis(self) -> int:
        """The weight's axis along which groups run."""
        return 0 if isinstance(self, nn.modules.conv._ConvTransposeNd) else 1

    @property
    def channel_axis(self) -> int:
        """The weight's axis of output channels (an embedding's rows)."""
        return 1 - self.group_axis

    @property
    def products(self) -> int:
        """K, the number of products that one output adds up."""
        return self.weight[0].numel()

    @property
    def axes(self) -> Axes:
        """Both axes by name."""
        return {"group_axis": self.group_axis, "channel_axis": self.channel_axis}

    @property
    def _groups(self) -> int:
        """The number of groups along the group axis."""
        length = self.weight.shape[self.group_axis]
        return -(-length // self.weight_scheme.group_length(length))

    @property
    def learns_scales(self) -> bool:
        """Whether the scales of the weights are parameters."""
        return "group_scale" in self._parameters

    @torch.no_grad()
    def start_from(self, tensor: QuantizedTensor) -> None:
        """Take the codes and scales of a quantized weight of the layer's own layout.

        Where scales are learned, weights stay what they are as far as their codes allow (`scales.NEAR`),
        which leaves the doubtful ones near to the next code. Else weights become the quantized values, to
        which the same codes and scales are fitted again. Of another scheme the values are taken, and
        quantized again.
        """
        values = torch.from_numpy(tensor.dequantize()).to(self.weight)
        scheme = self.weight_scheme
        like = (tensor.scheme.codes, tensor.groups) == (scheme.codes, self._groups)
        if not self.learns_scales or not like:
            self.weight.copy_(values)
            if self.learns_scales:
                self._take_scales(quantize_weight(_array(values), scheme, **self.axes))
            return
        self._take_scales(tensor)
        kept, limit = as_groups(self.weight, scheme, **self.axes), scheme.max_code
        step = self.group_scale[..., None]
        wanted = as_groups(values, scheme, **self.axes)
        near = kept.clamp(wanted - NEAR * step, wanted + NEAR * step).clamp(-limit * step, limit * step)
        self.weight.copy_(from_groups(near, self.weight, **self.axes))

    def learn_scales(self) -> None:
        """Make the group scales parameters, starting with those that fit the weights best.

        Raises
        ------
        ConfigError
            If the scheme is one that is not trained.
        """
        check_trained(self.weight_scheme)
        tensor = self._quantize()
        rows, groups = as_groups(self.weight, self.weight_scheme, **self.axes).shape[:2]
        self.register_buffer("row_scale", self.weight.new_zeros(rows))
        self.group_scale = nn.Parameter(self.weight.new_zeros(rows, groups))
        self._take_scales(tensor)

    @torch.no_grad()
    def learn_scales_from(self, scale: Tensor) -> None:
        """Make the group scales parameters, starting with given ones.

        Parameters
        ----------
        scale : torch.Tensor
            (M, G), positive.

        Raises
        ------
        ConfigError
            If the scheme is one that is not trained.
        """
        self.learn_scales()
        self.group_scale.copy_(scale)
        self.row_scale.copy_(self.group_scale.amax(-1) / self.weight_scheme.alpha_limit)

    @torch.no_grad()
    def _take_scales(self, tensor: QuantizedTensor) -> None:
        rows = torch.from_numpy(tensor.row_scale.copy()).to(self.row_scale)
        if not self.weight_scheme.codes.spec.grouped:
            self.row_scale.zero_()  # nothing but the one scale of a row counts
            self.group_scale.copy_(rows[:, None])
            return
        alpha = torch.from_numpy(tensor.planes[0].alpha.copy()).to(self.row_scale)
        alpha = alpha.movedim((self.channel_axis, self.group_axis), (0, -1)).flatten(1)
        self.row_scale.copy_(rows)
        self.group_scale.copy_(alpha.clamp_min(1.0) * rows[:, None])

    def quantized_weight(self) -> Tensor:
        """Return the weight to compute with, its gradient passed straight through to the float weight."""
        if self.strength == 0.0:
            return self.weight
        if self.kept_steps is not None:
            return cast(Tensor, self.kept_steps(self.weight))
        if self.learns_scales:
            nearest = self._at_learned_scales()
            return nearest if self.strength == 1.0 else torch.lerp(self.weight, nearest, self.strength)
        if not self.training:
            nearest = torch.from_numpy(self.tensor().dequantize()).to(self.weight)
        else:
            nearest = dequantized(self.weight.detach(), self.weight_scheme, **self.axes)
        return self.weight + self.strength * (nearest - self.weight).detach()

    def _at_learned_scales(self) -> Tensor:
        scheme = self.weight_scheme
        alpha, row_scale = whole_scale(self.group_scale.detach(), self.row_scale, scheme.alpha_limit)
        scale = self.group_scale + (alpha * row_scale[:, None] - self.group_scale).detach()
        groups = as_groups(self.weight, scheme, **self.axes)
        quantized = cast(Tensor, LearnedScale.apply(groups, scale, scheme.max_code))  # type: ignore[no-untyped-call]
        return from_groups(quantized, self.weight, **self.axes)

    def tensor(self) -> QuantizedTensor:
        """Return the quantized weight as the converter writes it, its row scales bounded by the bias.

        In evaluation it is kept until a parameter or the input's scale changes. Changes that PyTorch does
        not count (``weight.data``) are seen after the next change of mode.
        """
        if self.training:
            return self._quantize()
        state = tuple((id(value), value._version) for value in self._depends_on() if value is not None)
        kept: tuple[Any, QuantizedTensor] | None = self.__dict__.get("_kept")
        if kept is None or kept[0] != state:
            kept = self.__dict__["_kept"] = (state, self._quantize())
        return kept[1]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and forget the weight that was kept."""
        self.__dict__.pop("_kept", None)
        return super().train(mode)

    def _depends_on(self) -> tuple[Tensor | None, ...]:
        read = None if self.input_quantizer is None else self.input_quantizer.scale
        return (
            self.weight,
            self.bias,
            read,
            self._parameters.get("group_scale"),
            self._buffers.get("row_scale"),
        )

    def _quantize(self) -> QuantizedTensor:
        least = None
        read = self.input_quantizer
        if self.bias is not None and read is not None and bool(read.scale.detach() > 0):
            least = least_row_scale(_array(self.bias), read.value().scale, self.products)
        if self.learns_scales:
            return self._learned_tensor(least)
        return quantize_weight(_array(self.weight), self.weight_scheme, **self.axes, least_row_scale=least)

    @torch.no_grad()
    def _learned_tensor(self, least: np.ndarray | None) -> QuantizedTensor:
        scheme = self.weight_scheme
        row_scale = self.row_scale
        if least is not None:
            bound = torch.from_numpy(bounded_row_scale(least, least)).to(row_scale)
            row_scale = torch.maximum(row_scale, bound)
        alpha, row_scale = whole_scale(self.group_scale, row_scale, scheme.alpha_limit)
        groups = as_groups(self.weight, scheme, **self.axes)
        codes = codes_of(groups, alpha * row_scale[:, None], scheme.max_code)
        moved = from_groups(codes, self.weight, **self.axes)
        rows = as_rows(_array(moved), self.group_axis, self.channel_axis)
        whole = np.ones((1, 1, 1), np.uint8) if scheme.alpha_limit == 1 else _array(alpha).astype(np.uint8)
        return assemble(
            rows.astype(np.int8),
            whole,
            _array(row_scale),
            scheme,
            shape=tuple(self.weight.shape),
            **self.axes,
        )

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the layer's operator."""
        return cast(Any, self)._conv_forward(x, weight, bias)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with quantized weights."""
        integers = not self.training and self.strength == 1.0 and self.input_quantizer is not None
        integers &= self.kept_steps is None
        if integers and isinstance(self, nn.Conv2d | nn.Linear):
            return self._integers(x)
        return self.compute(x, self.quantized_weight(), self.bias)

    @torch.no_grad()
    def _integers(self, x: Tensor) -> Tensor:
        assert self.input_quantizer is not None
        read, tensor = self.input_quantizer.value(), self.tensor()
        step = np.float32(read.scale) * tensor.row_scale
        added = None
        is_sum = x.ndim == 2 or isinstance(self, nn.Conv2d)  # else a MatMul, whose bias is added in float
        if self.bias is not None and is_sum:
            whole = quantize_bias(_array(self.bias), read.scale, tensor.row_scale)
            added = torch.from_numpy(whole).to(x.device, torch.float64)
        w8 = torch.from_numpy(tensor.int8()).to(x.device, torch.float64)
        total = self.compute((x / read.scale).round().double(), w8, added).float()
        along = [1, -1, 1, 1] if isinstance(self, nn.Conv2d) else [-1]
        if self.output_quantizer is not None and is_sum:
            written = self.output_quantizer.value()
            factor = torch.from_numpy(step / np.float32(written.scale)).to(x.device).reshape(along)
            low, high = -written.zero_point, written.highest - written.zero_point
            return (total * factor).round().clamp(low, high) * written.scale
        y = total * torch.from_numpy(step).to(x.device).reshape(along)
        return y if is_sum or self.bias is None else y + self.bias


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """Quantized twin of `torch.nn.Conv1d`."""


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """Quantized twin of `torch.nn.Conv2d`."""


class QuantizedConv3d(QuantizedLayer, nn.Conv3d):
    """Quantized twin of `torch.nn.Conv3d`."""


class _Transposed(QuantizedLayer):
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the transposed convolution."""
        layer = cast(Any, self)
        operator = {3: functional.conv_transpose1d, 4: functional.conv_transpose2d}.get(
            weight.ndim, functional.conv_transpose3d
        )
        return operator(
            x,
            weight,
            bias,
            layer.stride,
            layer.padding,
            layer.output_padding,
            layer.groups,
            layer.dilation,
        )


class QuantizedConvTranspose1d(_Transposed, nn.ConvTranspose1d):  # type: ignore[misc]
    """Quantized twin of `torch.nn.ConvTranspose1d`."""


class QuantizedConvTranspose2d(_Transposed, nn.ConvTranspose2d):  # type: ignore[misc]
    """Quantized twin of `torch.nn.ConvTranspose2d`."""


class QuantizedConvTranspose3d(_Transposed, nn.ConvTranspose3d):  # type: ignore[misc]
    """Quantized twin of `torch.nn.ConvTranspose3d`."""


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """Quantized twin of `torch.nn.Linear`."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply."""
        return functional.linear(x, weight, bias)


class QuantizedEmbedding(QuantizedLayer, nn.Embedding):
    """Quantized twin of `torch.nn.Embedding`."""

    bias = None

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Look rows up."""
        return functional.embedding(
            x,
            weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


_TWINS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
    nn.Linear: QuantizedLinear,
    nn.Embedding: QuantizedEmbedding,
}

QUANTIZABLE = tuple(_TWINS)
"""The modules that have a quantized twin."""


def twin(layer: nn.Module, scheme: WeightScheme) -> QuantizedLayer:
    """Return a quantized layer with the parameters of a float one of exactly a type in `QUANTIZABLE`."""
    other = copy.copy(layer)
    other.__dict__ = dict(layer.__dict__)
    other.__class__ = _TWINS[type(layer)]
    quantized = cast(QuantizedLayer, other)
    quantized.weight_scheme, quantized.strength, quantized.kept_steps = scheme, 1.0, None
    read_by(quantized, None, None)
    return quantized


def read_by(
    layer: QuantizedLayer, before: ActivationQuantizer | None, after: ActivationQuantizer | None
) -> None:
    """Tell a layer which quantizers stand at its input and, alone, at its result."""
    # Past nn.Module's registration: the quantizers belong to the graph, and appear in state_dict once.
    layer.__dict__["input_quantizer"] = before
    layer.__dict__["output_quantizer"] = after


def _array(parameter: Tensor) -> np.ndarray:
    array: np.ndarray = parameter.detach().float().cpu().numpy()
    return array
