"""What ``framepack batch`` shows: a bar for all videos, one for each that is being made, and what failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from framepack.serving.batch import Begun, Video
    from framepack.serving.jobs import Job

NAMED = 10
"""Names told of at most, in a list of them."""
WIDTH = 34
HOUR = 3600.0


class Watch:
    """Bars on standard error; plain lines without a terminal."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.folder, self.console = folder, console or Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            speed_estimate_period=HOUR,
        )
        self.all: TaskID | None = None
        self.lines: dict[str, TaskID] = {}
        self.total = self.made = self.there = 0
        self.failed: dict[str, tuple[Video, str]] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()
        ended = self.there + self.made + len(self.failed)
        if error[0] is KeyboardInterrupt and self.total:
            self._print(f"{ended} of {self.total} videos have ended: the same command goes on")

    def busy(self, what: str) -> AbstractContextManager[object]:
        return self.console.status(what) if self.console.is_terminal else nullcontext()

    def begun(self, found: Begun, total: int) -> None:
        """Say what a list comes to."""
        self.total, self.there = total, len(found.done)
        parts = [
            f"{len(names)} {what}"
            for names, what in (
                (found.done, "done already"),
                (found.kept, "gone on with"),
                (found.new, "new"),
            )
            if names
        ]
        # Of a folder that was empty all are new.
        told = f": {', '.join(parts)}" if len(parts) > 1 or found.dropped or not found.new else ""
        self._print(f"[bold]{total} video{'s' * (total != 1)}[/]{told}")
        if found.new and (found.done or found.kept or found.dropped):
            self._print(f"new: {_named(found.new)}")
        if found.dropped:
            away = escape(str(self.folder / "dropped"))
            self._print(f"no longer in the list, kept in {away}: {_named(found.dropped)}")
        self.bars.start()
        self.all = self.bars.add_task("videos", total=total, completed=self.there, note=self._count())

    def running(self, jobs: list[tuple[Video, Job]]) -> None:
        """Bring the bars up to date with the videos that are being made."""
        if self.all is None:
            return
        part = 0.0
        for video, job in jobs:
            far, left = float(job.progress.get("fraction", 0)), job.progress.get("seconds_left")
            part += far
            if video.name not in self.lines:
                self.lines[video.name] = self.bars.add_task(escape(video.name[:WIDTH]), total=1, note="")
            note = f"[dim]{_stage(job.progress)}" + (f", {left:.0f} s left" if left is not None else "")
            self.bars.update(self.lines[video.name], completed=far, note=note)
        for name in self.lines.keys() - {video.name for video, _ in jobs}:
            self.bars.remove_task(self.lines.pop(name))
        ended = self.there + self.made + len(self.failed)
        self.bars.update(self.all, completed=ended + part, note=self._count())

    def ended(self, video: Video, job: Job | None) -> None:
        """Say what became of a video."""
        if job is not None and job.status == "completed":
            self.made += 1
            spent = job.progress.get("work")
            told = f"done {self.folder / video.name}.mp4" + ("" if spent is None else f"  in {spent:.1f} s")
        else:
            self.failed[video.id] = (video, _reason(job))
            told = f"failed {video.name}"
        if not self.console.is_terminal:
            self._print(f"{self._count()}  {escape(told)}")

    def done(self) -> None:
        """The closing lines: where the videos are, and which failed."""
        self.bars.stop()
        made = self.there + self.made
        self._print(f"[bold green]done[/] {made} of {self.total} videos in {escape(str(self.folder))}")
        for video, reason in self._failed:
            self._print(f"[bold red]failed[/] line {video.row.line}, {escape(video.name)}: {escape(reason)}")

    def summary(self, videos: Iterable[Video]) -> dict[str, Any]:
        """The line that ``--json`` prints."""
        return {
            "out": str(self.folder),
            "made": self.made,
            "there": self.there,
            "videos": [
                {"line": video.row.line, "seed": video.seed, "out": str(self.folder / f"{video.name}.mp4")}
                for video in videos
                if video.id not in self.failed
            ],
            "failed": [
                {"line": video.row.line, "name": video.name, "reason": reason}
                for video, reason in self._failed
            ],
        }

    @property
    def _failed(self) -> list[tuple[Video, str]]:
        return sorted(self.failed.values(), key=lambda each: each[0].row.line)

    def _count(self) -> str:
        return f"{self.there + self.made + len(self.failed)} of {self.total}"

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return escape(", ".join(names[:NAMED])) + more


def _stage(progress: dict[str, Any]) -> str:
    """What a worker does for a video now."""
    stage = str(progress.get("stage", "loading"))
    if stage == "sampling":
        section = min(progress["section"] + 1, progress["sections"])
        return f"section {section} of {progress['sections']}"
    return stage


def _reason(job: Job | None) -> str:
    if job is None:
        return "its job was deleted"
    return job.error["message"] if job.error else f"it was {job.status}"
