"""The package's exceptions. Each class has the exit code with which the command line ends."""

from __future__ import annotations

import contextlib
import re
import signal
import struct
import threading
from collections.abc import Iterator

from cnet_deploy.text import MAX_LENGTH, printable

__all__ = [
    "MAX_LENGTH", "PYTHON", "CheckFailed", "CnetDeployError", "Inconclusive", "InputRefused", "Interrupted", "OutputRefused",
    "PruningUnfinished", "Unavailable", "deferred_interrupts", "in_words", "naming", "printable", "raise_if_interrupted",
]  # fmt: skip

# What a library's message has of Python, which says nothing to a user: representations of objects, names of types and functions.
PYTHON = re.compile(
    r"object at 0x|<(class|function|module|built-in|_io)\b|\b[A-Z]\w*(Error|Exception)\b|\bNone(Type)?\b|\b(is|are) none\b|\bTraceback\b"
    r"|(?<![\w'\"])b(?P<quote>['\"]).*(?P=quote)|'\w+' (object|codec)|\bint\(\)|to unpack|\[Errno"
)
_SAID_BY_TYPE: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (UnicodeError, "its text is damaged"),
    (KeyError, "a part that it refers to is missing"),
    (IndexError, "it refers to more than it has"),
    ((EOFError, struct.error), "it ends too early"),
    (MemoryError, "it takes more memory than there is"),
    ((RecursionError, OverflowError), "it nests too deep, or has too large a number"),
    ((TypeError, AttributeError, AssertionError), "its parts are of the wrong kinds"),
)


def in_words(error: BaseException) -> str:
    """A library's exception in words for a user: its own message where that is a sentence, else what its type means.

    >>> in_words(ValueError("the archive has no entry a")), in_words(KeyError("0"))
    ('the archive has no entry a', 'a part that it refers to is missing')
    """
    for types, words in _SAID_BY_TYPE:
        if isinstance(error, types):
            return words
    text = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0][:300]
    return text if text and not PYTHON.search(text) else "its content does not fit together"


@contextlib.contextmanager
def naming(name: object) -> Iterator[None]:
    """Put ``name`` (usually a file) before the message of an InputRefused raised in the block; None adds nothing. Any other exception
    gets it as its attribute ``at_file``, for whoever reports it."""
    try:
        yield
    except InputRefused as error:
        raise type(error)(f"{name}: {error}" if name is not None else error) from None
    except Exception as error:
        if name is not None and not hasattr(error, "at_file"):
            with contextlib.suppress(AttributeError, TypeError):  # an exception without a dictionary
                error.at_file = name  # type: ignore[attr-defined]
        raise


def raise_if_interrupted(error: BaseException) -> None:
    """Raise KeyboardInterrupt if one caused ``error``. A native module that is interrupted during its import raises ImportError, which
    would look like a missing module."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        behind = behind.__cause__ or behind.__context__


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[threading.Event]:
    """Within the block Ctrl-C, SIGTERM and SIGHUP only set the event; they are raised again when it ends.

    For native code that must not be interrupted by an exception: a build, or the import of a native module, which may crash.
    """
    interrupted, arrived = threading.Event(), list[int]()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(number: int, _: object) -> None:
        arrived.append(number)
        interrupted.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handled = [number for number, handler in before.items() if callable(handler)]  # not those that are ignored or kill at once
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
    """The machine is too noisy, or the rounds are too few, for a verdict. The message says what to change."""

    exit_code = 3


class InputRefused(CnetDeployError):
    """The input is unreadable, hostile, inconsistent, or not of the CondenseNet family."""

    exit_code = 4


class PruningUnfinished(InputRefused):
    """A training checkpoint whose pruning is unfinished, or that does not tell whether it is finished."""


class OutputRefused(CnetDeployError):
    """The output can't be written to the given path. Nothing was written or replaced."""

    exit_code = 4


class Unavailable(CnetDeployError):
    """A backend, driver or compiler is missing. The message names it and says how to get it."""

    exit_code = 5


class Interrupted(CnetDeployError):
    """Ctrl-C, with a message that says what was kept and how to go on."""

    exit_code = 130
