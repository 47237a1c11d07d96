"""What the exported models need in PyTorch itself: outputs that are one tensor, and trained-like weights.

This module imports torch; the modules of `fgq.eval` import it inside the functions that use it.
"""

from typing import Any

import torch
from torch import Tensor, nn


class ImageLogits(nn.Module):
    """An image classifier of transformers that takes pixels and gives its logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map float32 [batch, 3, height, width] to float32 [batch, classes]."""
        logits: Tensor = self.model(pixel_values).logits
        return logits


class TextLogits(nn.Module):
    """A text classifier of transformers that takes tokens and gives its logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map int64 [batch, sequence] three times to float32 [batch, classes]."""
        mask = additive_mask(attention_mask)
        logits: Tensor = self.model(input_ids, attention_mask=mask, token_type_ids=token_type_ids).logits
        return logits


class SentenceEmbedding(nn.Module):
    """A text encoder of transformers, the mean of its token vectors, and their direction.

    Reimers and Gurevych, "Sentence-BERT" (2019), section 3, pooling strategy MEAN.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map int64 [batch, sequence] three times to unit vectors, float32 [batch, hidden]."""
        mask = additive_mask(attention_mask)
        hidden = self.encoder(input_ids, attention_mask=mask, token_type_ids=token_type_ids).last_hidden_state
        is_token = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * is_token).sum(1) / is_token.sum(1)
        return nn.functional.normalize(mean, dim=1)


def additive_mask(attention_mask: Tensor) -> Tensor:
    """Mask added to attention scores: 0 for tokens, the lowest float32 for padding.

    transformers takes a mask of four axes as it is. Its own way from two axes to four leaves gathers and
    tests for NaN in the exported graph.

    Parameters
    ----------
    attention_mask : torch.Tensor
        int64 [batch, sequence], 1 for tokens and 0 for padding.

    Returns
    -------
    torch.Tensor
        float32 [batch, 1, 1, sequence].
    """
    is_padding = 1.0 - attention_mask[:, None, None, :].to(torch.float32)
    return is_padding * torch.finfo(torch.float32).min


@torch.no_grad()
def initialize_like_trained(module: nn.Module) -> None:
    """Draw, from torch's global generator, weights of the size that training leaves.

    Convolutions and linear layers get normal weights of variance 2 / fan_in (He et al., "Delving deep into
    rectifiers", 2015, equation 10) and small biases; normalizations get gammas between 0.5 and 1.5, one in
    sixteen of them negative, and small betas. transformers starts ConvNeXt's layer scales at 1e-6, which
    would leave the blocks without effect. Everything else stays as transformers drew it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            sign = torch.where(torch.rand_like(layer.weight) < 1 / 16, -1.0, 1.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5).mul_(sign)
        else:
            continue
        if layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)
    for name, parameter in module.named_parameters():
        if name.endswith("layer_scale_parameter"):
            nn.init.uniform_(parameter, 0.1, 0.5)


@torch.no_grad()
def measure_statistics(module: nn.Module, images: Tensor) -> None:
    """Set every BatchNorm's running mean and variance to those of its input for these images.

    Statistics drawn at random would not fit the activations: across fifty layers they would vanish or grow.
    May leave the module in training mode.
    """
    batch_norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in batch_norms:
        layer.momentum = 1.0
    if batch_norms:
        module.train()(images)
