"""The entry point: signals first, as loading the commands takes a while; then `fgq.cli.commands`.

Exit codes: 0; 2 for what was refused, in one line, and for wrong use; 128 + the number for a signal (130 for
SIGINT, 143 for SIGTERM), from the first instruction of `main` on.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, NoReturn

from fgq.support import stopping

_code: int | None = None


def main() -> NoReturn:
    """Run the command line; a refusal is one line and exit code 2, a signal one line and 128 + its number."""
    global _code
    stopping.stop_on_signals()
    if (
        getattr(sys.modules["__main__"], "main", None) is main
    ):  # a process of its own, not a test's or a program's
        atexit.register(_leave)
    from fgq.cli.commands import execute

    _code = execute()
    sys.exit(_code)


def _leave() -> None:
    """Leave before the interpreter takes itself apart, when signals have no handlers any more.

    Registered first, this is called after what all others have registered.
    """
    if _code is not None:
        os._exit(_code)


def __getattr__(name: str) -> Any:
    if name == "app":
        from fgq.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
