"""What a row of a suite came to: scores by clip and metric, what it cost, and how much of it is there.

Tables, plots and the report read nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """Scores of one video.

    clip: the same name in every row that made a video of the same scene, prompt and seed.
    video: the file, where there is one.
    values: by metric one score a frame, one for each pair of frames, or a single one for the video.
    """

    clip: str
    video: Path | None = None
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Revisit:
    """How far what comes into view again is from what it was.

    away: for each comparison, the frames since the place was last in view. error: as many, 0 where it is the
        same. at: as many, the frame of the video in which the place is back, where that is known; it was last
        in view ``away`` frames before. video: the file, where there is one. truth: the same walk as the world
        draws it, where there is a file of it.
    """

    clip: str
    away: tuple[int, ...]
    error: tuple[float, ...]
    at: tuple[int, ...] = ()
    video: Path | None = None
    truth: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row of a suite.

    name: for people. notation: the method in the paper's string. note: one line on what it is.
    clips, revisits: what is there. wanted, walks: how many of them the row is to have in the end.
    training: (finished steps, all steps) of its fine-tune; None for a row without.
    cost: by name, such as ``training_seconds``, ``generating_seconds`` (of all its clips and revisits),
        ``samples``, ``context_tokens``.
    paper: figures that the paper gives for it, by the paper's names for them: ``clarity`` is a score,
        ``clarity drift`` its drift.
    reference: drawn by the world or filmed, not generated: what drift there is without any drifting.
    """

    name: str
    notation: str = ""
    note: str = ""
    clips: tuple[ClipScores, ...] = ()
    wanted: int = 0
    walks: int = 0
    revisits: tuple[Revisit, ...] = ()
    training: tuple[int, int] | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    reference: bool = False

    @property
    def finished(self) -> bool:
        """Whether all of the row is there."""
        made = len(self.clips) >= self.wanted and len(self.revisits) >= self.walks
        return made and (self.training is None or len(set(self.training)) == 1)


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """All rows of one suite, and what makes it again.

    command: the line that was typed. settings: plain values that decided the result: model, seed, clips,
        frames, steps, budget. machine: where it was made, for people.
    unavailable: by metric one line on why there are no scores of it.
    """

    suite: str
    title: str
    command: str
    rows: tuple[RowResult, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    machine: str = ""
    unavailable: Mapping[str, str] = field(default_factory=dict)
