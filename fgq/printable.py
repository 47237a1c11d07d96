"""Text from files that nobody vouches for, made safe to show on a terminal."""


def printable(text: str) -> str:
    r"""Return a text in one line in which every character that acts on a terminal is written out.

    Parameters
    ----------
    text : str
        May hold control characters, escape sequences, line breaks or marks of writing direction.

    Examples
    --------
    >>> print(printable("red\x1b[31m\nblue"))
    red\x1b[31m\nblue
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
