"""What a terminal may be shown."""

import pytest

from fgq.printable import printable


@pytest.mark.parametrize("text", ["", "layer1.0/conv", "[red]:car:[/]\\", "größe α 層 🙂", "a  b"])
def test_letters_stay(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m\x07", "\\x1b[31m\\x07"),
        ("\r\n\t\x00\x7f", "\\r\\n\\t\\x00\\x7f"),
        ("\x9b5m\x85", "\\x9b5m\\x85"),
        ("\u202egnp.exe\u2028\u200b", "\\u202egnp.exe\\u2028\\u200b"),
        ("\udcff\U000e0001", "\\udcff\\U000e0001"),
    ],
)
def test_all_else_is_written_out(text, shown):
    assert printable(text) == shown
