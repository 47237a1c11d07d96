"""The command `fgq warmup`."""

from __future__ import annotations

import time
from typing import Annotated

import typer


def warmup(
    group_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Group sizes to compile for; may be given several times.  [default: 4, 8, 16, 32, 64]",
        ),
    ] = None,
    all_tiers: Annotated[
        bool,
        typer.Option("--all-tiers", help="For every instruction set of this machine, not the best alone."),
    ] = False,
) -> None:
    """Compile the kernels for this machine and keep them on disk, so that later starts need not.

    Example: `fgq warmup --group-size 64`
    """
    from fgq.cli import display
    from fgq.kernels.warmup import GROUP_SIZES, warm_up

    begin = time.perf_counter()
    with display.progress_bar() as advance:
        count = warm_up(
            group_size or GROUP_SIZES,
            every_tier=all_tiers,
            progress=lambda done, total: advance("compile", done, total),
        )
    display.print_line(f"kernels ready: {count} kinds of layers in {time.perf_counter() - begin:.1f} s")
