"""Progress of long training work: what is being done, how far, and the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int, int], None]


class Bars:
    """Hands out one bar a task; silent where nothing is to be shown."""

    def __init__(self, display: Progress | None) -> None:
        self._display = display

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[Advance]:
        """A bar for the time of the block; call what it gives with (finished, total)."""
        if self._display is None:
            yield lambda done, total: None
            return
        display = self._display
        bar = display.add_task(name, total=None)
        yield lambda done, total: display.update(bar, completed=done, total=total)
        display.stop_task(bar)


@contextlib.contextmanager
def progress(*, shown: bool = True) -> Iterator[Bars]:
    """Bars on standard error."""
    if not shown:
        yield Bars(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        yield Bars(display)
