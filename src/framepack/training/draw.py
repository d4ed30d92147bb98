"""Training samples, drawn from the planners that generation uses.

One draw is a section of a plan; a batch lays it over many clips, so that all its samples share their
shapes and positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from framepack.data.ranges import SHARE, check
from framepack.errors import InputError
from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline

SHORT = 4
"""Sections of the longest short plan."""


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Shares of the kinds of sample.

    Args:
        methods: weight of each method by name; one of weight 0 is not taught.
        image: share of plans with a start frame. end, middle: with a keyframe there.
        first: share of draws that take a plan's first section, which long plans would make rare.
        short: share of plans of at most four sections.
        full: share of plans of whole sections, as nearly all are in a long video; the others have any
            number of frames, so that some of their sections are cut short.

    Raises:
        InputError: no method to draw, or shares that are none.
    """

    methods: dict[str, float] = field(
        default_factory=lambda: {
            "vanilla": 0.15,
            "f1": 0.15,
            "anti-drifting": 0.2,
            "inverted": 0.2,
            "inverted-plain": 0.15,
            "planned": 0.15,
        }
    )
    image: float = 0.65
    end: float = 0.15
    middle: float = 0.1
    first: float = 0.2
    short: float = 0.3
    full: float = 0.85

    def __post_init__(self) -> None:
        check(self, SHARE, "image", "end", "middle", "first", "short", "full")
        for name, weight in self.methods.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise InputError(f"weight {weight!r} of method {name} must be 0 or more: change it")
        if not self.taught:
            raise InputError("no method has a weight above 0: give one to at least one of draw.methods")

    @property
    def taught(self) -> dict[str, float]:
        """Share of each method that is drawn at all."""
        total = sum(self.methods.values())
        return {name: weight / total for name, weight in self.methods.items() if weight > 0}


@dataclass(frozen=True)
class Draw:
    """A section, the method it is of by name and by value, and how many frames its clip must have.

    ``before``: the sections of the same plan that are made earlier, in their order. ``known``: the frames
    that the plan is given.
    """

    name: str
    method: Method
    section: Section
    frames: int
    before: tuple[Section, ...] = ()
    known: tuple[int, ...] = ()


def draw_section(
    rng: np.random.Generator, config: DrawConfig, methods: dict[str, Method], clip_frames: int
) -> Draw:
    """A random section of a random plan on a clip of at most ``clip_frames`` latent frames.

    Raises:
        InputError: a method that ranks its history by its latents, of which a plan knows nothing.
    """
    names, shares = list(config.taught), list(config.taught.values())
    while True:
        name = names[rng.choice(len(names), p=shares)]
        timeline = _draw_timeline(rng, config, methods[name].section_size, clip_frames)
        sections = _sections(timeline, methods[name])
        if len(sections):
            index = 0 if rng.random() < config.first else int(rng.integers(len(sections)))
            before = sections[:index]
            return Draw(name, methods[name], sections[index], timeline.frames, before, timeline.known)


def _draw_timeline(rng: np.random.Generator, config: DrawConfig, size: int, clip_frames: int) -> Timeline:
    image, end, middle = (rng.random() < share for share in (config.image, config.end, config.middle))
    given = int(image) + int(end) + int(middle)
    most = (clip_frames - given) // size
    if rng.random() < config.full and most >= 1:
        if rng.random() < config.short or most <= SHORT:
            count = int(rng.integers(1, min(most, SHORT) + 1))
        else:
            count = int(rng.integers(SHORT + 1, most + 1))
        frames = count * size + given
        between = int(image) + size * int(rng.integers(0, count + 1))
    else:
        longest = min(clip_frames, SHORT * size + 1) if rng.random() < config.short else clip_frames
        frames = int(rng.integers(2, longest + 1))
        between = int(rng.integers(0, frames))
    places = ((image, 0), (middle, between), (end, frames - 1))
    return Timeline(frames=frames, fps=1.0, stride=1, known=tuple(at for given, at in places if given))


@lru_cache(maxsize=4096)
def _sections(timeline: Timeline, method: Method) -> tuple[Section, ...]:
    if method.importance.kind != "time":
        raise InputError(
            f"importance '{method.importance.kind}' of method {method}: train with importance by time"
        )
    return plan(timeline, method).sections
