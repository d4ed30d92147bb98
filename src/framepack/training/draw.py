"""Training samples, drawn from the planners that generation uses.

One draw is a section of a plan; a batch lays it over many clips, so that all its samples share their
shapes and positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Shares of the kinds of sample.

    Args:
        methods: weight of each method by friendly name.
        image: share of plans with a start frame. end, middle: with a keyframe there.
        first: share of draws that take a plan's first section, which long plans would make rare.
        short: share of plans of at most four sections.
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
    first: float = 0.3
    short: float = 0.4


@dataclass(frozen=True)
class Draw:
    """A section, and how many frames the clip under it must have."""

    method: str
    section: Section
    frames: int


def draw_section(
    rng: np.random.Generator, config: DrawConfig, methods: dict[str, Method], clip_frames: int
) -> Draw:
    """A random section of a random plan on a clip of at most ``clip_frames`` latent frames."""
    names = list(config.methods)
    weights = np.array([config.methods[name] for name in names])
    while True:
        name = names[rng.choice(len(names), p=weights / weights.sum())]
        method = methods[name]
        longest = (
            min(clip_frames, 4 * method.section_size + 1) if rng.random() < config.short else clip_frames
        )
        frames = int(rng.integers(2, longest + 1))
        known = {0} if rng.random() < config.image else set()
        if rng.random() < config.end:
            known.add(frames - 1)
        if rng.random() < config.middle:
            known.add(int(rng.integers(0, frames)))
        timeline = Timeline(frames=frames, fps=1.0, stride=1, known=tuple(sorted(known)))
        sections = plan(timeline, method).sections
        if len(sections):
            index = 0 if rng.random() < config.first else int(rng.integers(len(sections)))
            return Draw(name, sections[index], frames)
