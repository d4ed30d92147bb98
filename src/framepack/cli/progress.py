"""Bars on standard error that follow a run by its events alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from framepack.generation.events import (
    Decoded,
    Decoding,
    Event,
    Finished,
    Grown,
    Remark,
    SectionFinished,
    Started,
    Step,
)

if TYPE_CHECKING:
    from framepack.generation.run import PreparedRun


class Progress:
    """Bars of sections and steps, then of frames, with the time left; plain lines without a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bars = Bars(
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.sections: TaskID | None = None
        self.steps: TaskID | None = None
        self.frames: TaskID | None = None
        self.watched = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def busy(self, what: str) -> AbstractContextManager[object]:
        """A spinner, where there is a terminal, for what can't be counted."""
        return self.console.status(what) if self.console.is_terminal else nullcontext()

    def warn(self, message: str) -> None:
        """A line that stays above the bars."""
        self.console.print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)

    def follow(self, run: PreparedRun) -> Finished:
        """Carry a run out, shown as it goes on."""
        last: list[Event] = []

        def told(event: Event) -> None:
            self.show(event)
            last[:] = [event]

        run.carry_out(told)
        (finished,) = last
        assert isinstance(finished, Finished), "a run ends with Finished or an error"
        return finished

    def show(self, event: Event) -> None:
        """Bring the bars up to date with one event."""
        match event:
            case Started():
                self._start(event)
            case Step():
                self._step(event)
            case SectionFinished():
                self._finish_section(event)
            case Decoding():
                self._decode(event)
            case Grown():
                self._grow(event)
            case Remark():
                self.warn(event.text)
            case Decoded():
                self._say(f"decoded {event.frames} frames in {event.seconds:.1f} s")
            case Finished():
                pass

    def done(self, finished: Finished, sheet: Path | None = None) -> None:
        """The closing lines: where the video is, and how long it took."""
        length = finished.frames / finished.fps
        print_ = self.console.print
        if finished.cached:
            print_(
                f"[bold green]already done[/] {escape(str(finished.out))}", highlight=False, soft_wrap=True
            )
        else:
            stages = ", ".join(f"{stage} {taken:.1f} s" for stage, taken in finished.seconds.items())
            print_(
                f"[bold green]done[/] {escape(str(finished.out))}  "
                f"{finished.frames} frames, {length:.2f} s of video in {finished.elapsed:.1f} s ({stages})",
                highlight=False,
                soft_wrap=True,
            )
        if sheet is not None:
            print_(f"[bold green]sheet[/] {escape(str(sheet))}", highlight=False, soft_wrap=True)

    def live(self, section: int, frames: int, fps: float, speed: float, memory: int, prompt: str) -> None:
        """One line of a live video, in the place of the one before where there is a terminal."""
        line = (
            f"section {section + 1}, {frames / fps:.1f} s of video, {speed:.1f} frames a second of {fps:g}, "
            f"{memory / 2**20:.0f} MiB  {' '.join(prompt.split())}"
        )
        if self.console.is_terminal:
            self.console.print(escape(line), end="\r", highlight=False, overflow="ellipsis", no_wrap=True)
        else:
            self._say(escape(line))

    def ended(self, out: Path | None, frames: int, fps: float) -> None:
        """The closing line of a live video, at ``out`` where it is a file."""
        where = "" if out is None else f" {escape(str(out))}"
        line = f"[bold green]ended[/]{where}  {frames} frames, {frames / fps:.2f} s of video"
        start = "\n" if self.console.is_terminal else ""  # after the line that was written over and over
        self.console.print(start + line, highlight=False, soft_wrap=True)

    def _start(self, event: Started) -> None:
        found = f", {event.stored} sections found on disk" if event.stored else ""
        self.console.print(
            f"[bold]{event.frames} frames[/] at {event.fps:g} fps in {event.sections} sections, "
            f"at most {event.context_tokens} tokens of history each, job {event.job}{found}",
            highlight=False,
            soft_wrap=True,
        )
        self.bars.start()
        # The time left is told by steps of the whole run: sections alone say nothing until one is done.
        total = event.sections * event.steps
        self.sections = self.bars.add_task("section", total=event.sections, note="")
        self.steps = self.bars.add_task("step", total=total, note=f"{event.steps} a section")

    def _step(self, event: Step) -> None:
        if self.steps is not None:
            total = self.bars.tasks[self.steps].total or 0  # a section may take more steps than others
            done = event.section + (event.step + 1) / event.steps
            self.bars.update(self.steps, completed=total * done / event.sections)

    def _finish_section(self, event: SectionFinished) -> None:
        if self.sections is not None and self.steps is not None:
            self.bars.update(self.sections, completed=event.section + 1)
            total = self.bars.tasks[self.steps].total or 0
            self.bars.update(self.steps, completed=total * (event.section + 1) / event.sections)
        self._say(
            f"section {event.section + 1} of {event.sections} "
            + ("was on disk" if event.cached else f"in {event.seconds:.1f} s")
        )

    def _decode(self, event: Decoding) -> None:
        if self.frames is None:
            self.frames = self.bars.add_task("frame", total=event.frames, note="writing the video")
        self.bars.update(self.frames, completed=event.frame)

    def _grow(self, event: Grown) -> None:
        """Say once where the video can be watched, if it is before its end."""
        if not self.watched and event.frame < event.frames:
            self.watched = True
            what = "a rough preview grows at" if event.rough else "to watch it grow:"
            self.console.print(f"[dim]{what}[/] {escape(str(event.path))}", soft_wrap=True)

    def _say(self, line: str) -> None:
        if not self.console.is_terminal:
            self.console.print(line, highlight=False, soft_wrap=True)
