"""The sentence encoder all-MiniLM-L6-v2 and texts to distil it on, for `fgq finetune`.

::

    fgq finetune -o tuned.onnx --objective embeddings --exclude embeddings --from converted.onnx
        --model fgq.eval.minilm_finetuning:network --data fgq.eval.minilm_finetuning:texts

The texts are docstrings of the standard library and of the packages that are installed beside fgq, which are
read and never imported. Left out is what is in a pair of the test of `fgq.eval.docstrings`, or shares eight
words in a row with one (packages carry copies of standard modules, and modules repeat themselves). Half of
what training sees is of the library, which has fewer texts: they come again `COPIES` times in an epoch. The
texts differ between installations, so their number and hash go with every figure::

    python -m fgq.eval.minilm_finetuning
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fgq.errors import DataError
from fgq.eval.docstrings import QUERY_CHARACTERS, docstring_pairs, library_sources, paragraphs
from fgq.eval.minilm import MAX_TOKENS, sentence_encoder, tokenize
from fgq.eval.text_encoder import TextEncoder
from fgq.train.batches import Data

COPIES = 4
"""How often a text of the library comes in an epoch, beside as many texts of packages."""

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
    """Return docstrings as token numbers, to judge by some of the library.

    Raises
    ------
    ConfigError
        If the packages of the extra ``text`` are not installed.
    DataError
        If too few docstrings are found.
    """
    library, packages = corpus()
    if len(library) <= VALIDATION:
        raise DataError(
            f"standard library: found {len(library)} docstrings, wanted more than {VALIDATION}; run under a "
            "Python that has its sources installed, or give other texts with --data"
        )
    judged, rest = library[:VALIDATION], library[VALIDATION:]
    repeated = COPIES * rest
    train = Texts(repeated + packages[: len(repeated)])
    return Data(train, Texts(judged), collate, train.lengths)


def collate(rows: Sequence[Tensor]) -> tuple[dict[str, Tensor], None]:
    """Pad token numbers to the longest text; texts have no labels."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}, None


@cache
def corpus() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return paragraphs of docstrings of the library and of packages, each ordered by hash."""
    tested: set[str | tuple[str, ...]] = set()
    for text in chain.from_iterable(docstring_pairs().test):
        tested |= {text, *_runs(text)}

    def found(sources: Iterable[Path]) -> set[str]:
        return {
            text
            for source in sources
            for pair in _paragraphs(source)
            for text in pair
            if len(text) >= QUERY_CHARACTERS[0] and tested.isdisjoint({text, *_runs(text)})
        }

    library = found(library_sources())
    return _ordered(library), _ordered(found(_package_sources()) - library)


def _ordered(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=lambda text: sha256(text.encode("utf-8", "replace")).digest()))


def _package_sources() -> Iterator[Path]:
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
    library, packages = corpus()
    digest = sha256("\0".join(library + packages).encode("utf-8", "replace")).hexdigest()
    print(f"{len(library)} texts of the library, {len(packages)} of packages, sha256 {digest}")
