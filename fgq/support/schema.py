"""Plain values from files that nobody vouches for: read within limits, and checked field by field.

A *kind* is a function that returns a value as it is wanted, or raises `UnfitError` with what was found and
what was wanted. Kinds of fields make up kinds of tables and lists, and `check` makes one line of what does
not fit::

    LAYER = table({"codes": choice(Codes)}, {"group_size": whole(1, 64)})
    check(items(LAYER), value, "plan.json: layers", ConfigError)
    # plan.json: layers: 3: group_size: found 0, wanted a whole number of 1 to 64
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import tomllib
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from fgq.errors import FgqError

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)
Kind = Callable[[object], T]

LARGEST_JSON = 16 << 20
"""Bytes of the largest JSON document that is read: plans of tens of thousands of layers are smaller."""

LARGEST_TOML = 16 << 10
"""Bytes of the largest TOML document that is read: the time to read a key grows with its length squared."""

_MOST_NAMED = 20
"""An error lists so many names of fields at most."""


class UnfitError(ValueError):
    """A value is not of its kind.

    Parameters
    ----------
    found, wanted : str
    place : tuple of str
        The names of the fields that lead to it, outermost first.
    """

    def __init__(self, found: str, wanted: str, place: tuple[str, ...] = ()) -> None:
        super().__init__(found, wanted, place)
        self.found, self.wanted, self.place = found, wanted, place


def check(kind: Kind[T], value: object, where: str, error: type[FgqError]) -> T:
    """Return a value as its kind has it.

    Parameters
    ----------
    kind : callable
    value : object
        Plain values, as JSON and TOML hold them.
    where : str
        What an error calls the value.
    error : type of FgqError

    Raises
    ------
    FgqError
        Of the type `error`, naming the field, what was found and what was wanted.
    """
    try:
        return kind(value)
    except UnfitError as unfit:
        place = ": ".join((where, *unfit.place))
        raise error(f"{place}: found {unfit.found}, wanted {unfit.wanted}") from None


def shown(value: object) -> str:
    """Return a value for an error's message: short, in one line, whatever it is."""
    return _SHORT.repr(value).replace("\n", " ")


def whole(least: int, most: int) -> Kind[int]:
    """Return the kind of whole numbers within bounds; true and false are none."""

    def kind(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UnfitError(shown(value), f"a whole number of {least} to {most}")
        return value

    return kind


def number(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, wanted: str = ""
) -> Kind[float]:
    """Return the kind of finite numbers, from `least` to `most` and greater than `above`."""

    def kind(value: object) -> float:
        if not isinstance(value, bool) and isinstance(value, int | float):
            try:
                finite = math.isfinite(value)
            except OverflowError:  # a whole number beyond the largest float
                finite = False
            if finite and least <= value <= most and value > above:
                return value
        raise UnfitError(shown(value), wanted or "a finite number")

    return kind


def flag(value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise UnfitError(shown(value), "true or false")
    return value


def text(value: object) -> str:
    """Return text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UnfitError(shown(value), "text")
    if not _encodes(value):
        raise UnfitError(shown(value), "text without halves of surrogate pairs")
    return value


def one_of(*words: str) -> Kind[str]:
    """Return the kind of a few words."""

    def kind(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise UnfitError(shown(value), words[0] if len(words) == 1 else f"one of {', '.join(words)}")
        return str(value)

    return kind


def choice(enumeration: type[Choice]) -> Kind[Choice]:
    """Return the kind of the members of an enumeration, by their values and other names that it knows."""

    def kind(value: object) -> Choice:
        if isinstance(value, str):
            with suppress(ValueError):
                return enumeration(value)
        return enumeration(one_of(*enumeration)(value))

    return kind


def pattern(value: object) -> str:
    """Return a regular expression, as text."""
    if not isinstance(value, str):
        raise UnfitError(shown(value), "a regular expression")
    try:
        re.compile(text(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise UnfitError(shown(value), f"a regular expression ({error})") from None
    return value


def base64(value: object) -> bytes:
    """Return the bytes of text in base 64."""
    try:
        return b64decode(text(value), validate=True)
    except ValueError as error:  # so is an UnfitError
        raise (
            error if isinstance(error, UnfitError) else UnfitError(shown(value), "bytes in base 64")
        ) from None


def optional(kind: Kind[T]) -> Kind[T | None]:
    """Return the kind of what may be missing."""
    return lambda value: None if value is None else kind(value)


def items(kind: Kind[T], *, least: int = 0, wanted: str = "a list") -> Kind[tuple[T, ...]]:
    """Return the kind of lists of a kind, of so many entries or more."""

    def of_items(value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise UnfitError(shown(value), wanted)
        if len(value) < least:
            raise UnfitError(f"{len(value)} entries", f"at least {least}")
        return tuple(inside(kind, entry, str(index)) for index, entry in enumerate(value))

    return of_items


def names(kind: Kind[T]) -> Kind[dict[str, T]]:
    """Return the kind of objects whose names are free, and whose values are of one kind."""

    def of_names(value: object) -> dict[str, T]:
        return {name: inside(kind, entry, shown(name)) for name, entry in _object(value).items()}

    return of_names


def table(
    fields: Mapping[str, Kind[Any]], others: Mapping[str, Kind[Any]] | None = None
) -> Kind[dict[str, Any]]:
    """Return the kind of objects with certain fields.

    Parameters
    ----------
    fields : mapping of str to kind
        Those that must be there.
    others : mapping of str to kind, optional
        Those that may be. Every other field is refused.
    """
    known = dict(fields) | dict(others or {})

    def of_fields(value: object) -> dict[str, Any]:
        entries = _object(value)
        unknown = next((name for name in entries if name not in known), None)
        if unknown is not None:
            own = ", ".join(known) if len(known) <= _MOST_NAMED else f"the names of {len(known)} fields"
            raise UnfitError(shown(unknown), f"{own} alone")
        missing = next((name for name in fields if name not in entries), None)
        if missing is not None:
            raise UnfitError("nothing", "a value", (missing,))
        return {name: inside(known[name], entry, name) for name, entry in entries.items()}

    return of_fields


def inside(kind: Kind[T], value: object, name: str) -> T:
    """Return the value of a field as its kind has it, for kinds that are made up of others."""
    try:
        return kind(value)
    except UnfitError as unfit:
        raise UnfitError(unfit.found, unfit.wanted, (name, *unfit.place)) from None


def read_text(path: str | os.PathLike[str], error: type[FgqError], largest: int) -> str:
    """Read a file of text in UTF-8, with or without a byte-order mark.

    Parameters
    ----------
    path : path-like
    error : type of FgqError
    largest : int
        The most bytes that are read.

    Raises
    ------
    FgqError
        Of the type `error`, if the file cannot be read, is larger, or is not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            found = file.read(largest + 1)
    except (OSError, ValueError) as failure:  # a zero byte in the name
        reason = getattr(failure, "strerror", None) or failure
        raise error(f"{path}: cannot be read ({reason})") from None
    if len(found) > largest:
        raise error(f"{path}: found more than {largest} bytes, wanted at most so many")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{path}: cannot be read (it is not UTF-8 text)") from None


def read_json(path: str | os.PathLike[str], error: type[FgqError]) -> object:
    """Read a JSON file.

    Raises
    ------
    FgqError
        Of the type `error`, as `read_text` and `parse_json` do.
    """
    return parse_json(read_text(path, error, LARGEST_JSON), str(path), error)


def parse_json(text: str, where: str, error: type[FgqError]) -> object:
    """Return the plain values that JSON holds.

    Parameters
    ----------
    text : str
    where : str
        What an error calls it.
    error : type of FgqError

    Raises
    ------
    FgqError
        Of the type `error`, if the text is longer than `LARGEST_JSON` or not JSON, nests too deeply, gives a
        name twice, or holds numbers that are not finite.
    """
    if len(text) > LARGEST_JSON:
        raise error(f"{where}: found {len(text)} characters, wanted at most {LARGEST_JSON}")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as failure:  # of the decoder, of int() and of the parser
        raise error(f"{where}: is not valid JSON ({failure})") from None


def read_toml(path: str | os.PathLike[str], error: type[FgqError]) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    FgqError
        Of the type `error`, as `read_text` does, or if the file is not TOML, nests too deeply, or holds
        numbers that are not finite.
    """
    found = read_text(path, error, LARGEST_TOML)
    try:
        return tomllib.loads(found, parse_float=_finite)
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: is not valid TOML ({failure})") from None


class _Short(reprlib.Repr):
    """Values in few characters, however deep, long or large they are."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        """Return a whole number, or how large it is: Python refuses to write very large ones."""
        return repr(x) if x.bit_length() <= 64 else f"a whole number of {x.bit_length()} bits"


_SHORT = _Short()


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise UnfitError(found, "an object with names")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"found the name {shown(name)} twice")
        if not _encodes(name):
            raise ValueError(f"found the name {shown(name)}, which is half of a surrogate pair")
        found[name] = value
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"found the number {digits[:20]}, which is not finite")
    return value


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
