"""A retrieval task that needs no download: the docstrings of Python's standard library.

The first paragraph of a docstring is the query, the rest is the document to find. Sources are read, never
imported. The task depends a little on the Python version, so its hash goes with every figure.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from fgq.errors import DataError

TEST_PAIRS = 800
QUERY_CHARACTERS = range(21, 200)
DOCUMENT_CHARACTERS = range(121, 601)
"""Shorter documents say too little to be found; longer ones are cut."""

_OPTIONAL_MODULES = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"}
"""Parts that distributors leave out or Python dropped: without them fewer corpora differ."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pairs of query and document.

    Attributes
    ----------
    test : tuple of (str, str)
        The `TEST_PAIRS` pairs to evaluate on.
    calibration : tuple of str
        Documents of all other pairs.
    sha256 : str
        Hexadecimal hash of all of it.
    """

    test: tuple[tuple[str, str], ...]
    calibration: tuple[str, ...]
    sha256: str


@cache
def docstring_pairs() -> Corpus:
    """Read the docstrings of the running Python's standard library, without importing it.

    The pairs are ordered by the hash of their query, so that a pair that appears or disappears with a
    Python version moves the others by one place at most.

    Raises
    ------
    DataError
        If the library's sources hold too few docstrings, as where they are not installed.
    """
    library = Path(sysconfig.get_path("stdlib"))
    documents: dict[str, str] = {}
    seen: set[str] = set()
    for source in library_sources():
        for query, document in _split_docstrings(source):
            if query not in documents and document not in seen:
                documents[query] = document
                seen.add(document)
    if len(documents) <= TEST_PAIRS:
        raise DataError(
            f"{library}: found {len(documents)} usable docstrings in the standard library, wanted more than "
            f"{TEST_PAIRS}; run under a Python that has its sources installed."
        )
    pairs = sorted(documents.items(), key=lambda pair: sha256(pair[0].encode()).digest())
    text = "\0".join(part for pair in pairs for part in pair)
    return Corpus(
        test=tuple(pairs[:TEST_PAIRS]),
        calibration=tuple(document for _, document in pairs[TEST_PAIRS:]),
        sha256=sha256(text.encode()).hexdigest(),
    )


def library_sources() -> Iterator[Path]:
    """Yield the source files of the standard library's modules in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - _OPTIONAL_MODULES):
        module = library / f"{name}.py"
        if module.is_file():
            yield module
        for source in sorted((library / name).rglob("*.py")):
            if not {"test", "tests"} & set(source.relative_to(library).parts):
                yield source


def _split_docstrings(source: Path) -> Iterator[tuple[str, str]]:
    """Yield first paragraph and rest of the docstrings of one file that are long enough."""
    for query, document in paragraphs(source.read_bytes()):
        if len(query) in QUERY_CHARACTERS and len(document) in DOCUMENT_CHARACTERS:
            yield query, document


def paragraphs(source: bytes) -> Iterator[tuple[str, str]]:
    """Yield first paragraph and rest, cut to the longest document, of all docstrings of Python source.

    Raises
    ------
    SyntaxError, ValueError
        If it is not Python source.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
        yield " ".join(first.split()), " ".join(rest.split())[: DOCUMENT_CHARACTERS[-1]]
