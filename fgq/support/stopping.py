"""Signals end a command at once: what is temporary is removed, one line says why, and the exit code tells.

A handler that raised would be lost wherever an exception is: in callbacks of C code, in an ``except:`` of
others, while modules are imported or the interpreter shuts down. So the handler itself leaves the process,
with 128 + the number of the signal. What must not be left behind is registered here before it is made.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

PATIENCE = 1.0
"""Seconds that other processes have to end by themselves."""

_actions: list[Callable[[], None]] = []
_process = 0
_held = 0
_pending: int | None = None


def stop_on_signals() -> None:
    """Let signals end this process from now on, but for those that it was started to ignore (``nohup``)."""
    global _process
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    _process = os.getpid()


@contextmanager
def at_stop(action: Callable[[], None]) -> Iterator[None]:
    """Call an action when a signal ends the process meanwhile; the last one registered comes first.

    Parameters
    ----------
    action : callable
        Interrupts any code, and must need no lock that this may hold.
    """
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


@contextmanager
def held() -> Iterator[None]:
    """Let signals wait while several files take their places, so that all of them do or none."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held and _pending is not None:
            _stop(_pending, None)


def _stop(number: int, frame: FrameType | None) -> None:
    global _pending
    if os.getpid() != _process:  # forked: what is registered here is the parent's
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if _held:
        _pending = number
        return
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    for action in reversed(_actions):
        with suppress(Exception):
            action()
    _end_children()
    say(f"fgq: error: stopped by {signal.Signals(number).name}")
    os._exit(128 + number)


def say(line: str) -> None:
    """Write a line to standard error, whatever is being written there."""
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(encoding, "backslashreplace"))


def _end_children() -> None:
    """End processes that were started to share the work, by force those that ignore a request.

    A forked child that has not begun its work inherits handlers which may hold a signal back for ever.
    """
    if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
        with suppress(Exception):
            children = multiprocessing.active_children()
            for child in children:
                child.terminate()
            end = time.monotonic() + PATIENCE
            for child in children:
                child.join(max(0.0, end - time.monotonic()))
                if child.is_alive():
                    child.kill()
