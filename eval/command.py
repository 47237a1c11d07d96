"""How the modules of `fgq.eval` run as commands."""

from __future__ import annotations

from collections.abc import Callable

import typer

from fgq.errors import FgqError


def run_command(command: typer.Typer | Callable[..., None]) -> None:
    """Run a command, or a group of them, and end with 2 and one line on an error."""
    try:
        command() if isinstance(command, typer.Typer) else typer.run(command)
    except FgqError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
