"""Plain values checked field by field."""

import math
from enum import StrEnum

import pytest

from fgq.errors import ConfigError, DataError
from fgq.support.schema import (
    base64,
    check,
    choice,
    flag,
    items,
    names,
    number,
    one_of,
    optional,
    parse_json,
    pattern,
    shown,
    table,
    text,
    whole,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


PAINT = table({"colour": choice(Colour)}, {"coats": whole(1, 9), "price": number(least=0)})
SHOP = table({"format": one_of("shop 1"), "paints": items(PAINT)}, {"notes": names(text)})


def test_what_fits_is_returned_as_it_is_wanted():
    value = {
        "format": "shop 1",
        "paints": [{"colour": "red", "coats": 2, "price": 0}, {"colour": "blue"}],
        "notes": {"any name": "any text"},
    }
    found = check(SHOP, value, "shop.json", ConfigError)
    assert found["paints"] == ({"colour": Colour.RED, "coats": 2, "price": 0}, {"colour": Colour.BLUE})
    assert found["paints"][0]["colour"] is Colour.RED
    assert found["notes"] == {"any name": "any text"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "shop 2"}, "shop.json: format: found 'shop 2', wanted shop 1"),
        ({"paints": {}}, "shop.json: paints: found {}, wanted a list"),
        (
            {"paints": [{"colour": "red"}, {"colour": "green"}]},
            "shop.json: paints: 1: colour: found 'green', wanted one of red, blue",
        ),
        (
            {"paints": [{"colour": "red", "coats": 10}]},
            "shop.json: paints: 0: coats: found 10, wanted a whole number of 1 to 9",
        ),
        ({"paints": [{}]}, "shop.json: paints: 0: colour: found nothing, wanted a value"),
        (
            {"paints": [{"colour": "red", "gloss": 1}]},
            "shop.json: paints: 0: found 'gloss', wanted colour, coats, price alone",
        ),
        ({"notes": []}, "shop.json: notes: found a list, wanted an object with names"),
        ({"notes": {"a\nb": 3}}, r"shop.json: notes: 'a\nb': found 3, wanted text"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(changes, message):
    value = {"format": "shop 1", "paints": []} | changes
    with pytest.raises(DataError) as refused:
        check(SHOP, value, "shop.json", DataError)
    assert str(refused.value) == message


DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]

STRANGE = [
    None,
    True,
    False,
    0,
    -1,
    10**400,
    -(2**70),
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "red\n\x1b[31m",
    "\ud800",
    "x" * 10**6,
    b"red",
    [],
    {},
    [[]],
    {"a": {}},
    DEEP,
    {"red": 1},
    {1},
    object(),
]
KINDS = {
    "whole": whole(0, 1),
    "number": number(),
    "flag": flag,
    "text": text,
    "one_of": one_of("red"),
    "choice": choice(Colour),
    "pattern": pattern,
    "base64": base64,
    "optional": optional(flag),
    "items": items(flag, least=1),
    "names": names(text),
    "table": table({"a": table({})}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_is_returned_or_refused_in_one_short_line(kind):
    lines = []
    for value in STRANGE:
        try:
            check(KINDS[kind], value, "value", ConfigError)
        except ConfigError as refused:
            lines.append(str(refused))
    assert all(line.isprintable() and len(line) < 400 for line in lines)
    assert len(lines) > 10


def test_numbers_are_no_truth_values_and_finite():
    for kind in (whole(0, 9), number()):
        for value in (True, "1", None, math.nan, math.inf, 10**400):
            with pytest.raises(ConfigError, match="wanted"):
                check(kind, value, "value", ConfigError)
    assert check(number(above=0), 5e-324, "value", ConfigError) == 5e-324
    with pytest.raises(ConfigError, match="found 0, wanted more"):
        check(number(above=0, wanted="more"), 0, "value", ConfigError)


def test_base64():
    assert check(base64, "AAH/", "value", ConfigError) == b"\0\1\xff"
    for value in ("A", "AA==A", "é", "AA\n=="):
        with pytest.raises(ConfigError, match="wanted bytes in base 64"):
            check(base64, value, "value", ConfigError)


def test_values_are_shown_short():
    assert shown("short") == "'short'"
    assert len(shown("x" * 10**6)) <= 60
    assert shown(10**400) == "a whole number of 1329 bits"
    assert shown(2**64 - 1) == "18446744073709551615"
    assert len(shown(list(range(10**5)))) < 100
    assert len(shown({str(each): [10**400] * 99 for each in range(99)})) < 1000
    assert len(shown(DEEP)) < 100


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "Expecting value"),
        ('{"a": 1, "a": 1}', "found the name 'a' twice"),
        ('[{"a": {"b": 1, "b": 2}}]', "found the name 'b' twice"),
        ("NaN", "found the number NaN, which is not finite"),
        ("[-Infinity]", "found the number -Infinity"),
        ("1e400", "found the number 1e400"),
        ("[" * 10**6, "maximum recursion depth"),
        ("1" * 5000, "Exceeds the limit"),
        ('"\ufeff', "Unterminated string"),
        ("\ufeff{}", "BOM"),
        (" " * (16 << 20) + "{}", "found 16777218 characters, wanted at most 16777216"),
    ],
)
def test_text_that_is_no_json(document, message):
    with pytest.raises(DataError, match=message) as refused:
        parse_json(document, "where", DataError)
    assert str(refused.value).startswith("where: ")
    assert "\n" not in str(refused.value)
