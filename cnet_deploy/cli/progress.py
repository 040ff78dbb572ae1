"""A bar on a terminal's standard error for what takes long; nothing in a log, nor where quiet was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cnet_deploy.cli.console import quiet


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[str, float], None]]:
    """What this yields is told what is being done and how much of it, 0 to 1; the bar never goes back and is gone at the end."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet() or not console.is_terminal) as shown:
        task = shown.add_task(what, total=1.0)
        most = 0.0

        def told(text: str, share: float) -> None:
            nonlocal most
            most = max(most, share)
            shown.update(task, description=f"{what}: {text}", completed=most)

        yield told
