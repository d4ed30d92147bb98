"""How far a job is, from the events of its run: what the store keeps, and people see."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from framepack.generation.events import (
    Decoding,
    Event,
    Finished,
    Grown,
    Remark,
    SectionFinished,
    Started,
    Step,
)

SAMPLING = 0.95
"""Share of the work that sampling is taken for, where nothing better is known."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """stage: ``loading``, ``sampling``, ``decoding`` or ``done``.

    section: how many are finished, of ``sections``. step: of the one that is being made, of ``steps``.
    shown: frames that can be watched already, of ``frames``; rough: of a preview. decoded: frames.
    kept: sections that were there from before. previews: sections that have a picture.
    context_tokens: the most that a section sees of history.
    seconds_left: if it goes on as it did since it began, None before anything is known.
    notes: remarks for the user, one line each.
    work: seconds that all of it took, at the end. memory: bytes at the peak. size: ``WIDTHxHEIGHT``.
    """

    stage: str = "loading"
    section: int = 0
    sections: int = 0
    step: int = 0
    steps: int = 0
    frames: int = 0
    shown: int = 0
    rough: bool = False
    decoded: int = 0
    fps: float = 0.0
    kept: int = 0
    previews: tuple[int, ...] = ()
    context_tokens: int = 0
    seconds_left: float | None = None
    notes: tuple[str, ...] = field(default=())
    work: float | None = None
    memory: int | None = None
    size: str | None = None

    @property
    def fraction(self) -> float:
        """0 to 1."""
        if self.stage == "done":
            return 1.0
        sampled = (
            (self.section + self.step / self.steps) / self.sections if self.sections and self.steps else 0.0
        )
        decoded = self.decoded / self.frames if self.frames else 0.0
        return min(1.0, SAMPLING * min(1.0, sampled) + (1 - SAMPLING) * decoded)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fraction": round(self.fraction, 4)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Progress:
        known = {name: value for name, value in told.items() if name != "fraction"}
        for name in ("previews", "notes"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)


class Follower:
    """The progress of a run, event by event."""

    def __init__(
        self,
        notes: tuple[str, ...] = (),
        size: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now = Progress(notes=notes, size=size)
        self._clock = clock
        self._begun: tuple[float, float] | None = None  # when, and how far it was

    def see(self, event: Event) -> None:
        now = self.now
        match event:
            case Started():
                now = replace(
                    now,
                    stage="sampling",
                    sections=event.sections,
                    steps=event.steps,
                    frames=event.frames,
                    fps=event.fps,
                    context_tokens=event.context_tokens,
                )
            case Step():
                now = replace(now, stage="sampling", section=event.section, step=event.step + 1)
            case SectionFinished():
                now = replace(
                    now,
                    section=event.section + 1,
                    step=0,
                    kept=now.kept + event.cached,
                    previews=tuple(sorted({*now.previews, event.section})),
                )
            case Decoding():
                whole = now.section == now.sections
                now = replace(now, decoded=event.frame, stage="decoding" if whole else now.stage)
            case Grown():
                now = replace(now, shown=event.frame, rough=event.rough)
            case Remark():
                now = replace(now, notes=(*now.notes, event.text))
            case Finished():
                now = replace(
                    now,
                    stage="done",
                    section=now.sections,
                    step=0,
                    decoded=event.frames,
                    shown=event.frames,
                    rough=False,
                    work=round(sum(event.seconds.values()), 3),
                    memory=event.peak_memory,
                )
        self.now = replace(now, seconds_left=self._left(now, event))

    def _left(self, now: Progress, event: Event) -> float | None:
        far = now.fraction
        if far >= 1:
            return 0.0
        if self._begun is None or (isinstance(event, SectionFinished) and event.cached):
            # What was on disk took no time, and says nothing of the rest.
            self._begun = (self._clock(), far)
            return None
        since, before = self._begun
        if far <= before:
            return None
        return round((self._clock() - since) * (1 - far) / (far - before), 1)
