"""Progress of long training work: what is being done, how far, and the time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Advance = Callable[[int, int], None]


class Bars:
    """One bar a task; silent where nothing is to be shown."""

    def __init__(self, display: Progress | None) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def show(self, name: str, done: int, total: int) -> None:
        """Bring the bar of a task up to date; it appears with the first call."""
        if self._display is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._display.add_task(name, total=total)
        self._display.update(self._tasks[name], completed=done, total=total)

    def task(self, name: str) -> Advance:
        """What shows the bar of a task when called with (finished, total)."""
        return partial(self.show, name)


@contextlib.contextmanager
def progress(*, shown: bool = True) -> Iterator[Bars]:
    """Bars on standard error."""
    if not shown:
        yield Bars(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is printed goes above the bars on a terminal, and never where the bars are if it goes elsewhere.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as display:
        yield Bars(display)
