"""A BERT encoder in plain PyTorch that torch.fx can trace, with the names and numbers of transformers' own.

This module imports torch; the modules of `fgq.eval` import it inside the functions that use it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgq.eval.torch_modules import additive_mask


class _Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        tokens = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        normalized: Tensor = self.LayerNorm(tokens + self.position_embeddings.weight[: input_ids.shape[1]])
        return normalized


class _SelfAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.heads = config.num_attention_heads
        self.width = config.hidden_size // config.num_attention_heads

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        shape = (hidden.shape[0], hidden.shape[1], self.heads, self.width)
        query, key, value = (
            layer(hidden).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = torch.matmul(query, key.transpose(2, 3)) * self.width**-0.5 + mask
        mixed = torch.matmul(torch.softmax(scores, -1), value)
        return mixed.transpose(1, 2).reshape(hidden.shape[0], hidden.shape[1], self.heads * self.width)


class _Residual(nn.Module):
    """The product at the end of a sublayer, and the normalized sum with what the sublayer read."""

    def __init__(self, inputs: int, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.dense(x) + read)
        return normalized


class _Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Residual(config.hidden_size, config)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mixed: Tensor = self.output(self.self(hidden, mask), hidden)
        return mixed


class _Intermediate(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.gelu(self.dense(hidden))


class _Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Residual(config.intermediate_size, config)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.attention(hidden, mask)
        result: Tensor = self.output(self.intermediate(hidden), hidden)
        return result


class _Stack(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))


class _Encoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Stack(config)


class TextEncoder(nn.Module):
    """What `fgq.eval.torch_modules.SentenceEmbedding` computes, without a branch on data.

    Devlin et al., "BERT" (2019), arXiv 1810.04805, section 3, with exact GELU and without dropout.

    Parameters
    ----------
    config : transformers.BertConfig
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.encoder = _Encoder(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map int64 [batch, sequence] three times to unit vectors, float32 [batch, hidden]."""
        mask = additive_mask(attention_mask)
        hidden = self.encoder.embeddings(input_ids, token_type_ids)
        for block in self.encoder.encoder.layer:
            hidden = block(hidden, mask)
        is_token = attention_mask[:, :, None].to(torch.float32)
        mean = (hidden * is_token).sum(1) / is_token.sum(1)
        return functional.normalize(mean, dim=1)
