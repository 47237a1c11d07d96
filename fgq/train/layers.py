"""Layers whose weights are quantized in every forward pass, with their float twins' names and parameters."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgq.qtensor import QuantizedTensor
from fgq.quantize import least_row_scale, quantize_bias, quantize_weight
from fgq.scheme import WeightScheme
from fgq.train.fit import dequantized
from fgq.train.quantizer import ActivationQuantizer


class QuantizedLayer(nn.Module):
    """What all quantized twins share; `twin` makes one of a float layer.

    In training the layer computes on ``w + (q(w) - w)``, of which only the float weight w has a gradient
    (the straight-through estimator: Bengio et al. 2013, arXiv 1308.3432, section 4), with q refitted in each
    pass. In evaluation, a Conv2d or a Linear layer whose input is quantized computes the converter's
    integers (docs/architecture.md, One integer meaning), in float64, where they are exact.

    Attributes
    ----------
    weight_scheme : fgq.scheme.WeightScheme
    strength : float
        0 for float weights, 1 for quantized ones; between them the weight is interpolated (gradual
        quantization).
    kept_steps : torch.nn.Module or None
        What quantizes the weight in training from scratch (`fgq.train.scratch`).
    """

    weight: Tensor
    bias: Tensor | None
    weight_scheme: WeightScheme
    strength: float
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

    def quantized_weight(self) -> Tensor:
        """Return the weight to compute with, its gradient passed straight through to the float weight."""
        if self.strength == 0.0:
            return self.weight
        if self.kept_steps is not None:
            return cast(Tensor, self.kept_steps(self.weight))
        nearest = dequantized(
            self.weight.detach(),
            self.weight_scheme,
            group_axis=self.group_axis,
            channel_axis=self.channel_axis,
        )
        return self.weight + self.strength * (nearest - self.weight).detach()

    def tensor(self) -> QuantizedTensor:
        """Return the quantized weight as the converter writes it, its row scales bounded by the bias."""
        least = None
        if self.bias is not None and self.input_quantizer is not None:
            least = least_row_scale(_array(self.bias), self.input_quantizer.value().scale, self.products)
        return quantize_weight(
            _array(self.weight),
            self.weight_scheme,
            group_axis=self.group_axis,
            channel_axis=self.channel_axis,
            least_row_scale=least,
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
