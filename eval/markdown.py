"""Documents written by hand whose tables a command measures and replaces.

Each table stands between ``<!-- table NAME -->`` and ``<!-- end NAME -->``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fgq.errors import DataError
from fgq.format import onnx_file


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, its first column aligned to the left and all others to the right."""
    titles, *lines = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    rule = ["---"] + ["---:"] * (len(titles) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *lines))


def check_places(path: Path, names: Iterable[str]) -> None:
    """Refuse a document that lacks the place of a table, before the work.

    Parameters
    ----------
    path : Path
    names : iterable of str
        Of the tables.

    Raises
    ------
    DataError
        If there is no such file or a place is missing.
    """
    replace_tables(_read(path), dict.fromkeys(names, ""))


def rewrite(path: Path, tables: Mapping[str, str]) -> None:
    """Replace tables of a document, in one step.

    Parameters
    ----------
    path : Path
    tables : mapping of str to str
        By name, in Markdown.

    Raises
    ------
    DataError
        If there is no such file or it has no place for a table.
    """
    document = replace_tables(_read(path), tables)
    with onnx_file.staged(path) as place:
        place.write_text(document, encoding="utf-8")


def replace_tables(document: str, tables: Mapping[str, str]) -> str:
    """Put each table between its marks.

    Parameters
    ----------
    document : str
    tables : mapping of str to str
        By name, in Markdown.

    Raises
    ------
    DataError
        If the document has no place for a table.
    """
    for name, table in tables.items():
        start, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
        before, found, rest = document.partition(start)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise DataError(f"document: found no place for the table, wanted the lines {start} and {end}")
        document = f"{before}{start}\n{table}\n{end}{after}"
    return document


def _read(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: found no such file, wanted a document with places for tables")
    return path.read_text(encoding="utf-8")
