"""What a field of the options says of itself besides its default: its kind and its help text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fgq.support.schema import Kind

_KEY = "option"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How an option is checked, and how the command line shows it.

    Parameters
    ----------
    kind : Kind
        What its values may be.
    text : str
        The help, one or two sentences.
    metavar : str or None
        What stands for the value in the help; None for a flag, or where the choices are listed.
    in_words : str
        What holds where the option is not given and its default alone does not say so.
    flags : str
        The names on the command line of a flag, ``--yes/--no``.
    """

    kind: Kind[Any]
    text: str
    metavar: str | None
    in_words: str
    flags: str


def option(
    kind: Kind[Any], text: str, *, metavar: str | None = None, in_words: str = "", flags: str = ""
) -> dict[str, Option]:
    """Return the metadata of a dataclass field that is an option: the fields of `Option`."""
    return {_KEY: Option(kind=kind, text=text, metavar=metavar, in_words=in_words, flags=flags)}


def options(owner: type) -> Mapping[str, Option]:
    """Return the options of a dataclass by their names, in order."""
    return {each.name: each.metadata[_KEY] for each in fields(owner)}
