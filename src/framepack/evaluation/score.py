"""Scores of videos: which metrics, of which frames, and what a video's scores come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from framepack.conditioning.lexicon import SLOT_OF, SLOTS
from framepack.errors import InputError
from framepack.evaluation.results import ClipScores
from framepack.evaluation.truth import TRUTH, words_of
from framepack.metrics.metric import Metric, Subject, choose
from framepack.metrics.metric import Scorer as Score
from framepack.metrics.table import METRICS
from framepack.video.io import read_video

if TYPE_CHECKING:
    from framepack.evaluation.clips import Asked

ALL: dict[str, Metric] = {**TRUTH, **METRICS}
"""Those of the bundled model's world, and those of any video."""
WORLD = "bundled"
"""Name of the model whose videos show that world."""

Values = dict[str, list[float | None]]
"""By metric its scores, as JSON has them: None where there is nothing to score."""


def chosen_metrics(
    names: Sequence[str], *, world: bool, size: tuple[int, int] | None = None, prompt: bool = True
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of the metrics for videos of one kind, and by name why there are no scores of the others.

    Args:
        names: see ``choose``; all that can be computed where empty.
        world: the videos show the bundled model's world. size: of their frames (H, W), where it is known.
        prompt: it is known what they were to show.

    Raises:
        UnknownNameError, InputError: see ``choose``; also one asked for by name that such videos have not.
    """
    words = {slot: some[0] for slot, some in SLOTS.items()} if world else None
    shape = (64, *(size or (4096, 4096)))
    like = Subject(
        frames=np.broadcast_to(np.zeros((), np.uint8), (*shape, 3)),
        fps=8,
        prompt="a ball" if prompt or world else None,
        words=words,
    )
    metrics = choose(names or ("all",), ALL)
    lacking = {metric.name: reason for metric in metrics if (reason := metric.lacks(like)) is not None}
    for name in names:
        if name in lacking:
            raise InputError(f"metric '{name}' has no scores here: {lacking[name]}")
    absent = {metric.name: reason for metric in ALL.values() if (reason := metric.missing()) is not None}
    return tuple(metric.name for metric in metrics if metric.name not in lacking), absent | lacking


class Scorer:
    """Metrics with their networks, each loaded when it is first used.

    Raises:
        UnknownNameError, InputError: see ``choose``.
    """

    def __init__(self, metrics: Sequence[str], device: str = "cpu") -> None:
        self.metrics = choose(metrics, ALL)
        self.device = str(device)
        self._loaded: dict[str, Score] = {}

    def __call__(self, subject: Subject) -> dict[str, tuple[float, ...]]:
        """By metric the scores of a subject; none of those that it cannot have."""
        return {m.name: self._scores(m, subject) for m in self.metrics if m.lacks(subject) is None}

    def lacking(self, subject: Subject) -> dict[str, str]:
        """By metric why a subject has no scores of it."""
        return {m.name: reason for m in self.metrics if (reason := m.lacks(subject)) is not None}

    def missing(self, subject: Callable[[], Subject], values: Values) -> Values:
        """Values with those of every metric that is not among them; where a subject can have none, no scores.

        Args:
            subject: asked for only if something is missing.
        """
        wanted = [metric for metric in self.metrics if metric.name not in values]
        if not wanted:
            return values
        found = subject()
        made: Values = {}
        for metric in wanted:
            scores = self._scores(metric, found) if metric.lacks(found) is None else ()
            made[metric.name] = [score if math.isfinite(score) else None for score in scores]
        return values | made

    def _scores(self, metric: Metric, subject: Subject) -> tuple[float, ...]:
        if metric.name not in self._loaded:
            self._loaded[metric.name] = metric.load(self.device)
        return tuple(float(score) for score in self._loaded[metric.name](subject))


# Videos -----------------------------------------------------------------------------------------------


def subject_of(video: Path, asked: Asked | None = None) -> Subject:
    """A video file, whole in memory, with what it was to show.

    Args:
        asked: that; what the file itself tells where None. A prompt that changes with time is none.

    Raises:
        InputError: it cannot be read, or has fewer than two frames.
    """
    opened = read_video(video)
    frames = list(opened.frames)
    if len(frames) < 2:
        raise InputError(f"video '{video}' has {len(frames)} frames: two or more can be scored")
    stacked = np.stack(frames)
    if asked is None:
        return Subject(frames=stacked, fps=opened.fps, **_told(opened.metadata))
    words = None
    if asked.scene is not None:
        words = {SLOT_OF[word]: word for word in asked.scene.words(0, len(frames))}
    return Subject(frames=stacked, fps=opened.fps, prompt=asked.prompt, start=asked.picture, words=words)


def _told(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What our own files say of their prompt."""
    config = metadata.get("config")
    if not isinstance(config, dict) or config.get("cues") or not isinstance(config.get("prompt"), str):
        return {}
    prompt = config["prompt"].strip()
    if not prompt:
        return {}
    return {"prompt": prompt, "words": words_of(prompt) if metadata.get("model") == WORLD else None}


def clip_scores(video: Path, scorer: Scorer, asked: Asked | None = None) -> ClipScores:
    """Scores of one video file. Raises InputError: see ``subject_of``."""
    return ClipScores(
        clip=video.stem if asked is None else asked.name, video=video, values=scorer(subject_of(video, asked))
    )


# What scores come to ----------------------------------------------------------------------------------


def value_of(scores: Sequence[float]) -> float:
    """The mean of the scores that are numbers; not a number where there is none."""
    found = np.asarray(scores, dtype=np.float64)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else math.nan


def curve(scores: Sequence[float], points: int) -> NDArray[np.float64]:
    """(points,) means of evenly long parts of the video's time; not a number where a part has none."""
    places = np.minimum((np.arange(len(scores)) + 0.5) / max(len(scores), 1) * points, points - 1).astype(int)
    values = np.asarray(scores, dtype=np.float64)
    return np.array([value_of(values[places == point]) for point in range(points)])
