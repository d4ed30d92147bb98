"""The folder of a service: its store, and a folder for each job.

{data}/jobs.sqlite                    the store, unless it is elsewhere
{data}/uploads/                       what is being received, each request in a folder of its own
{data}/chosen/                        what was chosen in the page's form; Gradio deletes it after a day
{data}/jobs/{id}/{input files}        what was uploaded, under names of our own
{data}/jobs/{id}/run/                 the run, see generation/store.py
{data}/jobs/{id}/previews/{n}.png     a picture of each section
{data}/jobs/{id}/video.mp4, .json     the video, and the settings it was made with
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from framepack.generation.manifest import GROWING, PREVIEW

ID = re.compile(r"video_[0-9a-f]{12,40}")


@dataclass(frozen=True)
class JobFolder:
    """Where one job's files are."""

    path: Path

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def video(self) -> Path:
        return self.path / "video.mp4"

    @property
    def growing(self) -> Path:
        """The first frames of it, while it is made."""
        return self.run / GROWING

    @property
    def rough(self) -> Path:
        """A preview of all there is, in orders that do not begin at the front."""
        return self.run / PREVIEW

    def preview(self, section: int) -> Path:
        return self.path / "previews" / f"{section:05d}.png"

    @property
    def size(self) -> int:
        """Bytes of all files in it; those that share their bytes with another job's count in both."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def begin_anew(self) -> None:
        """Remove all that was made; what it is made from stays."""
        for file in (self.video, self.video.with_suffix(".json")):
            file.unlink(missing_ok=True)
        for made in (self.run, self.path / "previews"):
            shutil.rmtree(made, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True)
class ServiceFolder:
    """Everything of one service on disk."""

    path: Path

    @property
    def default_store(self) -> str:
        return f"sqlite:///{self.path.absolute() / 'jobs.sqlite'}"

    @property
    def uploads(self) -> Path:
        return self.path / "uploads"

    @property
    def chosen(self) -> Path:
        return self.path / "chosen"

    def job(self, name: str) -> JobFolder:
        """A job's folder, there or not. An id that is not of our making is a fault of the program."""
        assert ID.fullmatch(name), f"no id of a job: {name!r}"
        return JobFolder(self.path / "jobs" / name)

    def names(self) -> list[str]:
        """Ids of the jobs that have a folder."""
        jobs = self.path / "jobs"
        return sorted(p.name for p in jobs.iterdir() if ID.fullmatch(p.name)) if jobs.is_dir() else []
