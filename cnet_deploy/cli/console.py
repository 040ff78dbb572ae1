"""Shared by all commands: what they print, how verbose they are, how they end, and the layout of the help.

What commands print goes through ``note``, ``tell``, ``show`` and ``show_json``, which are safe for any text (see ``cnet_deploy.text``).
"""

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
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import click

from cnet_deploy.cli.types import FilePath, OutputPath
from cnet_deploy.errors import CnetDeployError, OutputRefused, in_words, printable, raise_if_interrupted
from cnet_deploy.files import same_file
from cnet_deploy.subprocesses import careful_libraries
from cnet_deploy.text import LINE_LENGTH, ReaderLeft, StreamFailed, take_any_text, write_block, write_json, write_lines

_QUIET, _VERBOSE = "cnet_deploy.quiet", "cnet_deploy.verbose"
UNEXPECTED = 70  # the exit code of an error that nobody foresaw (EX_SOFTWARE of sysexits.h)
_REPORT = "the project's issue tracker"
_LOG = logging.getLogger("cnet_deploy")


def quiet() -> bool:
    """Whether only results and errors are printed (--quiet)."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_QUIET))


def note(text: object) -> None:
    """Print a line about what is being done on standard error, unless --quiet was given."""
    if not quiet():
        write_lines(text, error=True)


def tell(*lines: object) -> None:
    """Print lines about what was done on standard output, unless --quiet was given."""
    if not quiet():
        write_lines(*lines)


def show(*lines: object) -> None:
    """Print the lines of a result on standard output, also with --quiet."""
    write_lines(*lines)


def show_json(value: object) -> None:
    """Print a result as JSON on standard output."""
    write_json(value)


def coloured(stream: IO[str]) -> bool:
    """Whether to use colours: on a terminal that has them, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def fail(message: str, code: int) -> NoReturn:
    """Print an error as one line and exit."""
    heading = click.style("Error:", fg="red", bold=True) if sys.stderr is not None and coloured(sys.stderr) else "Error:"
    write_block(f"{heading} {printable(message, LINE_LENGTH)}", error=True)
    sys.exit(code)


class _Unexpected(Exception):
    """Raised from an exception that nobody foresaw. The message says which command met it, and on which files."""


class Command(click.Command):
    """A command whose help ends with examples, each on its own line so that it can be copied."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_VERBOSITY]

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _standard_output():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _require_outputs_apart(ctx)
            return super().invoke(ctx)
        except (CnetDeployError, StreamFailed, click.ClickException, click.Abort, click.exceptions.Exit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # libraries written in Rust raise some that are no Exception
            raise_if_interrupted(error)
            raise _Unexpected(_doing(ctx, error)) from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        if self.examples:
            with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _require_outputs_apart(ctx: click.Context) -> None:
    """Raise OutputRefused if a file that the command writes is one that it reads."""
    given = {param: ctx.params.get(param.name or "") for param in ctx.command.params}
    outputs = [value for param, value in given.items() if isinstance(param.type, OutputPath) and isinstance(value, Path)]
    for output in outputs:
        for param, value in given.items():
            takes_paths = isinstance(param, click.Argument) or isinstance(param.type, FilePath)
            if isinstance(param.type, OutputPath) or not takes_paths:
                continue
            for path in value if isinstance(value, tuple) else [value]:
                if isinstance(path, (Path, str)) and same_file(output, Path(path)):
                    name = "the input itself" if isinstance(param, click.Argument) else f"the file of {param.opts[0]}"
                    raise OutputRefused(f"{output}: is {name}; expected another name for the output")


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
        interrupts = _Interrupts()
        before = _LOG.level
        _LOG.handlers[:] = [_Handler()]
        _LOG.setLevel(logging.WARNING)
        take_any_text(sys.stdout, sys.stderr)
        try:
            with interrupts, careful_libraries(), _Others(interrupts) as others:
                done = super().main(*args, **{**kwargs, "standalone_mode": False})
                if others.error is not None:
                    raise _Unexpected("a thread of the command") from others.error
                return done
        except ReaderLeft:
            sys.exit(0)
        except StreamFailed as error:
            fail(f"can't write to standard output: {error}", 4)
        except CnetDeployError as error:
            _LOG.debug("raised here:", exc_info=True)
            fail(str(error), interrupts.exit_code or error.exit_code)
        except click.ClickException as error:
            _usage(error)
        except (click.Abort, KeyboardInterrupt):
            _LOG.debug("interrupted here:", exc_info=True)
            fail("interrupted; nothing was written", interrupts.exit_code or 130)
        except _Unexpected as error:
            if interrupts.exit_code:  # native code that was interrupted may fail in any way
                _LOG.debug("interrupted here:", exc_info=True)
                fail("interrupted", interrupts.exit_code)
            _last_net(str(error), error.__cause__ or error)
        except SystemExit:
            raise
        except BaseException as error:  # before a command began, or in its import
            _last_net("cnet-deploy", error)
        finally:
            _LOG.handlers.clear()
            _LOG.setLevel(before)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _standard_output():
            return super().make_context(*args, **kwargs)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_VERBOSITY]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Expected one of {', '.join(self.list_commands(ctx))}."
            raise click.UsageError(f"No such command {printable(args[0], 60)!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """What fails in the block is standard output: of a help that is piped into ``head``, or onto a full disk."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise (ReaderLeft if isinstance(error, BrokenPipeError) else StreamFailed)(error.strerror or str(error)) from None


def _usage(error: click.ClickException) -> NoReturn:
    """Print an error of usage as click does, its message as printable lines, and exit. What the user typed may be any text."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        name = max(context.command.get_help_option_names(context), key=len)
        write_lines(*context.get_usage().split("\n"), f"Try '{context.command_path} {name}' for help.", "", error=True)
    message = error.format_message()
    # Only this one has lines of click's own: the choices.
    lines = message.split("\n") if isinstance(error, click.MissingParameter) else [message]
    write_lines(f"Error: {lines[0]}", *(line.replace("\t", "    ") for line in lines[1:]), error=True)
    sys.exit(error.exit_code)


def _doing(ctx: click.Context, error: BaseException) -> str:
    """What a command was doing, and on which file: that which ``naming`` noted, else the command's arguments."""
    arguments = [ctx.params.get(parameter.name or "") for parameter in ctx.command.params if isinstance(parameter, click.Argument)]
    files = [
        str(file) for value in arguments for file in (value if isinstance(value, tuple) else (value,)) if isinstance(file, (str, Path))
    ]
    text = " ".join([str(ctx.info_name), *(printable(file, 200) for file in files[:3]), *(["…"] if len(files) > 3 else [])])
    at = getattr(error, "at_file", None)
    return text if at is None or str(at) in files else f"{text}, at {printable(at, 200)}"


def _last_net(doing: str, error: BaseException) -> NoReturn:
    """End with one line for an error that nobody foresaw; with -v its traceback stands above it."""
    try:
        raise_if_interrupted(error)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", 130)
    if _LOG.isEnabledFor(logging.INFO):
        _print_traceback((type(error), error, error.__traceback__))
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        message = f"{doing}: there is not enough memory ({kind}); end other programs, or take fewer images, threads or models at a time"
    else:
        words = f": {in_words(error)}" if isinstance(error, OSError) else ""
        where = (
            f"report it to {_REPORT} with the lines above" if _LOG.isEnabledFor(logging.INFO) else "-v shows where, and how to report it"
        )
        message = f"{doing}: stopped by an unexpected error ({kind}{words}), which is a mistake of cnet-deploy; {where}"
    fail(message, UNEXPECTED)


class _OfLibraries(logging.StreamHandler):  # type: ignore[type-arg,unused-ignore]
    """What libraries log that no handler of theirs takes."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            _LOG.info("%s says: %s", record.name, record.getMessage())


class _Others:
    """Within the block, what others would print on standard error is printed as lines of ours, with -v: libraries' warnings, and errors
    in places where nobody can catch them. ``error`` is that of a thread that ended by one."""

    def __init__(self, interrupts: _Interrupts) -> None:
        self.error: BaseException | None = None
        self._interrupts = interrupts

    def __enter__(self) -> _Others:
        self._before = threading.excepthook, sys.unraisablehook, warnings.showwarning, logging.lastResort
        threading.excepthook, sys.unraisablehook, warnings.showwarning = self._thread, self._unraisable, self._warning
        logging.lastResort = _OfLibraries()
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook, sys.unraisablehook, warnings.showwarning, logging.lastResort = self._before

    def _thread(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            self.error = args.exc_value
            _LOG.warning("a thread was stopped by an unexpected error (%s)", type(args.exc_value).__name__)

    def _unraisable(self, args: Any) -> None:
        _LOG.debug("an error that nobody could catch (%s)", type(args.exc_value).__name__, exc_info=args.exc_value)
        if isinstance(args.exc_value, KeyboardInterrupt):
            self._interrupts.again()

    def _warning(self, message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        _LOG.info("a library warns: %s (%s)", message, category.__name__)


class _Interrupts:
    """Within the block SIGTERM and SIGHUP interrupt as Ctrl-C does, so that temporary files are removed and processes ended.

    A signal that is ignored, as SIGHUP is under nohup, stays so. ``exit_code`` is what the first signal asks for; 0 if none has come.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._before: dict[int, Any] = {}
        self._last = 0

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.getsignal(number)
            if signal.getsignal(number) == usual and usual is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)

    def __exit__(self, *_: object) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, _: object) -> None:
        self.exit_code = self.exit_code or 128 + number
        self._last = number
        raise KeyboardInterrupt

    def again(self) -> None:
        """Interrupt once more, a moment later: the last time was in a place where nobody could catch it, as a weak reference's callback."""
        if self._last:
            if signal.SIGALRM not in self._before:
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(self._last))
            signal.setitimer(signal.ITIMER_REAL, 0.05)


def _be_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_QUIET] = True


def _be_verbose(ctx: click.Context, _: click.Parameter, value: int) -> None:
    if value:
        ctx.meta[_VERBOSE] = ctx.meta.get(_VERBOSE, 0) + value
        _LOG.setLevel(logging.INFO if ctx.meta[_VERBOSE] == 1 else logging.DEBUG)


_VERBOSITY = [
    click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_be_verbose, is_eager=True,
                 help="Print each step, and where an unexpected error was raised; -vv: where any error was."),
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
        write_lines(f"{time.monotonic() - self.start:8.3f} s  {printable(record.getMessage())}", error=True)
        if record.exc_info and record.exc_info[0]:
            _print_traceback(record.exc_info)


def _print_traceback(error: tuple[type[BaseException], BaseException, Any] | Any) -> None:
    write_lines(*"".join(traceback.format_exception(*error)).splitlines(), error=True, length=2000)
