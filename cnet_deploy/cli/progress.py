"""A progress bar on standard error, shown only on a terminal and without --quiet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cnet_deploy.cli.console import quiet
from cnet_deploy.text import Where, shown


@contextlib.contextmanager
def bar(what: str, *, redraw: bool = True) -> Iterator[Callable[[str, float], None]]:
    """Show a progress bar. Yields a function of a line of text and the share done (0 to 1); the share never decreases.

    ``redraw`` False: it is drawn by that function alone, and not by a thread of its own.
    """
    console = Console(stderr=True, markup=False, emoji=False)
    hidden = quiet() or not console.is_terminal
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=redraw, transient=True, disable=hidden) as bar_shown:
        what = shown(what, Where.RICH, 80)
        task = bar_shown.add_task(what, total=1.0)
        most = 0.0

        def progress(text: str, share: float) -> None:
            nonlocal most
            most = max(most, share)
            bar_shown.update(task, description=f"{what}: {shown(text, Where.RICH, 80)}", completed=most)
            if not redraw:
                bar_shown.refresh()

        yield progress
