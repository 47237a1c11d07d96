"""The sentence encoder all-MiniLM-L6-v2 and texts to distil it on, for `fgq finetune`.

::

    fgq finetune -o tuned.onnx --objective embeddings --exclude embeddings --from converted.onnx
        --model fgq.eval.minilm_finetuning:network --data fgq.eval.minilm_finetuning:texts

The texts are docstrings of the packages that are installed beside fgq, which are read and never imported.
The standard library, of whose docstrings the task of `fgq.eval.docstrings` is made, is left out as a whole,
and so is every text that shares eight words in a row with a pair of its test (packages carry copies of
standard modules). They differ between installations, so their number and hash go with every figure::

    python -m fgq.eval.minilm_finetuning
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fgq.errors import DataError
from fgq.eval.docstrings import QUERY_CHARACTERS, docstring_pairs, paragraphs
from fgq.eval.minilm import MAX_TOKENS, sentence_encoder, tokenize
from fgq.eval.text_encoder import TextEncoder
from fgq.train.batches import Data

TEXTS = 60_000
"""Training texts at most."""

VALIDATION = 256
"""Texts that judge and do not train."""

SHARED_WORDS = 8
"""So many words in a row in common with a test pair, and a text is left out."""


class Texts(Dataset[Tensor]):
    """The token numbers of texts, int64 [tokens], each as long as its text."""

    def __init__(self, texts: Sequence[str]) -> None:
        tokens = tokenize(texts, pad_to=MAX_TOKENS)
        self.lengths: list[int] = tokens["attention_mask"].sum(1).tolist()
        self._tokens = torch.from_numpy(tokens["input_ids"].astype(np.int32))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Tensor:
        return self._tokens[row, : self.lengths[row]].long()


def network() -> TextEncoder:
    """Return the encoder with its pretrained weights, those of its tables not to be trained.

    Raises
    ------
    ConfigError
        If the packages of the extra ``text`` are not installed.
    """
    pretrained = sentence_encoder()
    module = TextEncoder(pretrained.encoder.config)
    wanted = module.state_dict()
    module.load_state_dict({name: array for name, array in pretrained.state_dict().items() if name in wanted})
    module.encoder.embeddings.requires_grad_(False)
    return module.eval()


def texts() -> Data:
    """Return installed packages' docstrings as token numbers.

    Raises
    ------
    ConfigError
        If the packages of the extra ``text`` are not installed.
    DataError
        If too few docstrings are found.
    """
    corpus = installed_texts()
    train = Texts(corpus[VALIDATION:])
    return Data(train, Texts(corpus[:VALIDATION]), collate, train.lengths)


def collate(rows: Sequence[Tensor]) -> tuple[dict[str, Tensor], None]:
    """Pad token numbers to the longest text; texts have no labels."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}, None


@cache
def installed_texts() -> tuple[str, ...]:
    """Return first paragraphs and rests of docstrings, ordered by hash, `TEXTS` + `VALIDATION` at most.

    Raises
    ------
    DataError
        If there are no more than `VALIDATION`.
    """
    tested = {words for pair in docstring_pairs().test for text in pair for words in _runs(text)}
    found = {
        text
        for source in _sources()
        for pair in _paragraphs(source)
        for text in pair
        if len(text) >= QUERY_CHARACTERS[0] and tested.isdisjoint(_runs(text))
    }
    if len(found) <= VALIDATION:
        raise DataError(
            f"installed packages: found {len(found)} docstrings, wanted more than {VALIDATION}; install "
            "packages that carry their sources, or give other texts with --data"
        )
    ordered = sorted(found, key=lambda text: sha256(text.encode("utf-8", "replace")).digest())
    return tuple(ordered[: TEXTS + VALIDATION])


def _sources() -> Iterator[Path]:
    """Yield the source files of all distributions in the order of their names, tests left out."""
    files = {
        Path(str(file.locate()))
        for distribution in distributions()
        for file in distribution.files or ()
        if file.suffix == ".py" and not {"test", "tests", "testing"} & set(file.parts)
    }
    yield from sorted(file for file in files if file.is_file())


def _paragraphs(source: Path) -> Iterable[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the strings of others
        try:
            return list(paragraphs(source.read_bytes()))
        except (SyntaxError, ValueError, RecursionError):  # templates, and other languages' prints
            return []


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = text.lower().split()
    return zip(*(words[start:] for start in range(SHARED_WORDS)), strict=False)


if __name__ == "__main__":
    corpus = installed_texts()
    print(f"{len(corpus)} texts, sha256 {sha256(chr(0).join(corpus).encode('utf-8', 'replace')).hexdigest()}")
