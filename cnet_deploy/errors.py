"""The package's exceptions. Each class carries the exit code that the command line ends with."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

MAX_LENGTH = 900


def printable(text: object, length: int = MAX_LENGTH) -> str:
    """One line that is safe to print: control characters escaped, cut in the middle where it is too long.

    Names in a file are whatever its author wrote, terminal escapes and line breaks included.

    >>> printable("a\\x1b[31m\\n")
    'a\\\\x1b[31m\\\\n'
    """
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in str(text)[: length * 20])
    return safe if len(safe) <= length else f"{safe[: length * 2 // 3]} … {safe[-length // 4 :]}"


@contextlib.contextmanager
def naming(name: object) -> Iterator[None]:
    """Put the name of the file at hand before a refusal that doesn't know it; None puts nothing."""
    try:
        yield
    except InputRefused as error:
        raise type(error)(f"{name}: {error}" if name is not None else error) from None


def raise_if_interrupted(error: BaseException) -> None:
    """Raise KeyboardInterrupt if that is what lies behind ``error``: native modules turn one that meets them half imported into an
    ImportError, which would be taken for a module that is missing."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        behind = behind.__cause__ or behind.__context__


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, and are raised again when the block ends.

    For native code that an exception must not travel through: a build, or the import of a native module, which some answer with a crash.
    """
    interrupted, arrived = threading.Event(), list[int]()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(number: int, _: object) -> None:
        arrived.append(number)
        interrupted.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = [number for number, handler in before.items() if callable(handler)]  # not what is ignored, or kills at once
    for number in handled:
        signal.signal(number, note)
    try:
        yield interrupted
    finally:
        for number in handled:
            signal.signal(number, before[number])
        if arrived:
            signal.raise_signal(arrived[0])


class CnetDeployError(Exception):
    """Base of every error this package raises on purpose. The message is one printable line."""

    exit_code = 1

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


class CheckFailed(CnetDeployError):
    """The work was done and its check failed: outputs differ beyond the tolerance."""

    exit_code = 1


class Inconclusive(CnetDeployError):
    """The machine is too noisy, or the rounds are too few, to say. The message says what to change."""

    exit_code = 3


class InputRefused(CnetDeployError):
    """The input is unreadable, hostile, inconsistent, or not of the CondenseNet family."""

    exit_code = 4


class PruningUnfinished(InputRefused):
    """A training checkpoint of the family whose pruning has not come to its end, or does not tell whether it has."""


class OutputRefused(CnetDeployError):
    """The output can't be written where it was asked for. Nothing was written or replaced."""

    exit_code = 4


class Unavailable(CnetDeployError):
    """A backend, driver or compiler is missing. The message names it and says how to get it."""

    exit_code = 5


class Interrupted(CnetDeployError):
    """Ctrl-C, where there is more to say than that: what was kept, and how to go on."""

    exit_code = 130
