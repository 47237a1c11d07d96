import ast
import sys
from pathlib import Path

import pytest

from fgq.errors import DataError
from fgq.eval import docstrings
from fgq.eval.docstrings import TEST_PAIRS, docstring_pairs


def test_the_standard_library_is_cut_into_pairs() -> None:
    corpus = docstring_pairs()
    assert len(corpus.test) == TEST_PAIRS
    assert len(corpus.calibration) >= 200
    queries, documents = zip(*corpus.test, strict=True)
    assert len(set(queries)) == TEST_PAIRS
    assert len({*documents, *corpus.calibration}) == TEST_PAIRS + len(corpus.calibration)
    assert all(20 < len(query) < 200 for query in queries)
    assert all(120 < len(document) <= 600 for document in (*documents, *corpus.calibration))
    assert len(corpus.sha256) == 64


def test_reading_is_repeatable_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Path(docstrings.sysconfig.get_path("stdlib"))
    sources = [library / name for name in ("difflib.py", "fractions.py", "statistics.py")]
    monkeypatch.setattr(docstrings, "library_sources", lambda: iter(sources))
    monkeypatch.setattr(docstrings, "TEST_PAIRS", 8)
    read = docstring_pairs.__wrapped__
    before = set(sys.modules)
    corpus = read()
    assert set(sys.modules) == before
    sources.reverse()
    assert read() == corpus
    assert len(corpus.test) == 8
    del sources[0]
    assert read().sha256 != corpus.sha256


def test_docstrings_split_into_first_paragraph_and_rest(tmp_path: Path) -> None:
    rest = "The rest says at length what the first paragraph left out. " * 3
    source = tmp_path / "module.py"
    tree = ast.parse(
        f'"""One line that is the query\n    over two lines.\n\n    {rest}\n\n    {rest}\n    """\n'
    )
    source.write_text(ast.unparse(tree) + f'\ndef short():\n    """Too short.\n\n    {rest}"""\n')
    (pair,) = docstrings._split_docstrings(source)
    assert pair == ("One line that is the query over two lines.", f"{rest}{rest}".strip())


def test_a_python_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="found 0 usable docstrings"):
        docstring_pairs.__wrapped__()
