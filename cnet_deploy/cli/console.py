"""Shared by all commands: verbosity, colours, error output and the layout of the help."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import IO, Any

import click

from cnet_deploy.errors import CnetDeployError, printable
from cnet_deploy.subprocesses import careful_libraries

_QUIET, _VERBOSE = "cnet_deploy.quiet", "cnet_deploy.verbose"
_LOG = logging.getLogger("cnet_deploy")


def quiet() -> bool:
    """Whether only results and errors are printed (--quiet)."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_QUIET))


def note(text: str) -> None:
    """Print a line about what is being done on standard error, unless --quiet was given."""
    if not quiet():
        click.echo(text, err=True)


def tell(text: str) -> None:
    """Print a line about what was done on standard output, unless --quiet was given."""
    if not quiet():
        click.echo(text)


def coloured(stream: IO[str]) -> bool:
    """Whether to use colours: on a terminal that has them, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def fail(message: str, code: int) -> None:
    """Print an error as one line and exit."""
    heading = click.style("Error:", fg="red", bold=True) if coloured(sys.stderr) else "Error:"
    click.echo(f"{heading} {message}", err=True)
    sys.exit(code)


class Command(click.Command):
    """A command whose help ends with examples, each on its own line so that it can be copied."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_VERBOSITY]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        if self.examples:
            with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Commands(click.Group):
    """A group in which the package's errors print one line and exit with the code of their class.

    Its commands are ``names``; each is imported from the module of that name in ``package`` when it is used.
    """

    def __init__(self, *args: Any, package: str, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._package, self._names = package, tuple(names)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self._names:
            return None
        command: click.Command = getattr(importlib.import_module(f"{self._package}.{cmd_name}"), cmd_name)
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        terminated: list[int] = []
        _LOG.handlers[:] = [_Handler()]
        _LOG.setLevel(logging.WARNING)
        try:
            with _termination(terminated), careful_libraries():
                return super().main(*args, **{**kwargs, "standalone_mode": False})
        except CnetDeployError as error:
            _LOG.debug("raised here:", exc_info=True)
            fail(str(error), 128 + terminated[0] if terminated else error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _LOG.debug("interrupted here:", exc_info=True)
            fail("interrupted; nothing was written", 128 + terminated[0] if terminated else 130)
        except OSError as error:  # of standard output: other files' errors are OutputRefused and InputRefused by now
            fail(f"can't write to standard output: {error.strerror or error}", 4)
        finally:
            _LOG.handlers.clear()

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _broken_pipe_ends():  # the help may be piped
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _broken_pipe_ends():
            return super().invoke(ctx)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_VERBOSITY]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Expected one of {', '.join(self.list_commands(ctx))}."
            raise click.UsageError(f"No such command {printable(args[0], 60)!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _broken_pipe_ends() -> Iterator[None]:
    """Exit normally when the reader of the output closes the pipe, as ``| head -1`` does."""
    try:
        yield
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@contextlib.contextmanager
def _termination(terminated: list[int]) -> Iterator[None]:
    """Make SIGTERM and SIGHUP interrupt as Ctrl-C does, so that temporary files are removed and processes ended.

    The signal is noted in ``terminated``; one that is ignored, as SIGHUP is under nohup, stays so.
    """

    def interrupt(number: int, _: object) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    caught = [number for number in (signal.SIGTERM, signal.SIGHUP) if ours and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _be_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_QUIET] = True


def _be_verbose(ctx: click.Context, _: click.Parameter, value: int) -> None:
    if value:
        ctx.meta[_VERBOSE] = ctx.meta.get(_VERBOSE, 0) + value
        _LOG.setLevel(logging.INFO if ctx.meta[_VERBOSE] == 1 else logging.DEBUG)


_VERBOSITY = [
    click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_be_verbose, is_eager=True,
                 help="Print each step; -vv also prints where an error was raised."),
    click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_be_quiet, is_eager=True,
                 help="Print only results and errors."),
]  # fmt: skip


class _Handler(logging.Handler):
    """Prints log lines on standard error: warnings as notes to the user, steps (-v) with the seconds since the command began."""

    def __init__(self) -> None:
        super().__init__()
        self.start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            note(printable(record.getMessage()))
            return
        click.echo(f"{time.monotonic() - self.start:8.3f} s  {printable(record.getMessage())}", err=True)
        if record.exc_info:
            for line in "".join(traceback.format_exception(*record.exc_info)).splitlines():
                click.echo(printable(line, 2000), err=True)
