"""The errors that fgq raises for its user's input.

::

    FgqError
    |-- ConfigError    an option, argument or config file that cannot be used
    |-- ModelError     a model file or graph that cannot be read or converted
    |   `-- SizeError  sizes in it that cannot be meant, or take more memory than there is
    |-- WeightError    the weights of one layer cannot be quantized
    |-- DataError      calibration or evaluation data that do not fit the model
    |-- OutputError    a result that cannot be written
    `-- KernelError    a kernel wish that this machine or layer cannot meet

Every message names the layer or file, says what was found and what was wanted, in one line, whatever names a
file holds. The command line prints the message alone and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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


class FgqError(Exception):
    """Base of every error that fgq raises on purpose.

    Parameters
    ----------
    message : str
        May hold names from a file: line breaks and control characters are written out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class ConfigError(FgqError):
    """An option, argument or config file cannot be used as it stands."""


class ModelError(FgqError):
    """A model file or graph cannot be read, understood or converted."""


class SizeError(ModelError):
    """Sizes that a model states cannot be meant, or are too large: no engine is to be given them."""


class WeightError(FgqError):
    """The weights of one layer cannot be quantized, or a quantized tensor breaks its invariants."""


class DataError(FgqError):
    """Calibration or evaluation data are missing, malformed or do not fit the model."""


class OutputError(FgqError):
    """A result cannot be written where it was asked for."""


class KernelError(FgqError):
    """No kernel can do what was asked on this machine or for this layer."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def refusing(what: str, kind: type[FgqError] = ModelError) -> Iterator[None]:
    """Turn what nobody expected of an input into an error of one line, with its cause behind it.

    Each layer refuses what it knows to be wrong. This is the last line of defence, where a file is handed in.

    Parameters
    ----------
    what : str
        The file or input.
    kind : type of FgqError
        What to raise.

    Raises
    ------
    FgqError
        As they come, and `kind` for every other exception.
    """
    try:
        yield
    except FgqError:
        raise
    except Exception as error:
        raise unexpected(what, error, kind) from error


def unexpected(what: str, error: Exception, kind: type[FgqError] = ModelError) -> FgqError:
    """Return the error of one line that stands for an exception that nobody expected.

    Parameters
    ----------
    what : str
        The file or input.
    error : Exception
        Give it as the cause (``raise .. from error``), for whoever looks for the fault.
    kind : type of FgqError
        What to return.
    """
    if isinstance(error, MemoryError):
        return kind(f"{what}: found too little memory ({first_line(error)}), wanted more for it")
    return kind(f"{what}: found something that fgq cannot use ({type(error).__name__}: {first_line(error)})")
