"""A progress bar on standard error, shown only on a terminal and without --quiet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cnet_deploy.cli.console import quiet
from cnet_deploy.text import Where, shown


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[str, float], None]]:
    """Show a progress bar. Yields a function of a line of text and the share done (0 to 1); the share never decreases."""
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet() or not console.is_terminal) as bar_shown:
        what = shown(what, Where.RICH, 80)
        task = bar_shown.add_task(what, total=1.0)
        most = 0.0

        def progress(text: str, share: float) -> None:
            nonlocal most
            most = max(most, share)
            bar_shown.update(task, description=f"{what}: {shown(text, Where.RICH, 80)}", completed=most)

        yield progress
