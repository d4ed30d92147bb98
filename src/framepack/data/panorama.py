"""Panoramas: the camera pans out and back, and what it left behind must be as it was.

A panorama's words tell of sky, ground and camera alone, so that who draws the way back has to remember the
landmarks. All of them are in the first frame, so that it and the words still settle every frame that follows.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from framepack.conditioning.lexicon import SLOTS
from framepack.data.drawing import GROUNDS, SKIES
from framepack.data.world import PACE, PAN, Landmark, Motion, Scene, visible_colours

T = TypeVar("T")

BEAT = 6
"""Cameras turn at multiples of so many frames: at the end of a section of the bundled model, whose words
then hold for all of it."""
SOONEST = 2
"""A landmark is out of view for at least twice so many frames."""


def sample_panorama(rng: np.random.Generator, frames: int, aspect: float = 1.0) -> Scene:
    """Draw a panorama whose first landmark leaves the view and is back within ``frames``, if they are enough.

    It is away for anything from 4 frames to most of them; half of the panoramas have a second landmark.
    """

    def pick(names: tuple[T, ...]) -> T:
        return names[int(rng.integers(len(names)))]

    sky, ground = pick(tuple(SKIES)), pick(tuple(GROUNDS))
    camera, pace = pick(SLOTS["camera"]), pick(tuple(PACE))
    step = abs(PAN[camera]) * PACE[pace]
    radii = [float(rng.uniform(0.11, 0.14)) * min(1.0, aspect) for _ in range(1 + int(rng.random() < 0.5))]
    # The first stands in the half that leaves the view, the second beside it.
    places = {}
    for turn in range(BEAT, frames, BEAT):
        width = 2 * radii[0] / step  # in frames that pass while it goes by
        first = max(width, 2 * turn + width - (frames - 1))
        last = min((0.5 + radii[0]) / step, turn - SOONEST)
        if first < last:
            places[turn] = first * step - radii[0], last * step - radii[0]
    turn = pick(tuple(places)) if places else max(1, frames // 2)
    xs = [float(rng.uniform(*places.get(turn, (radii[0], 0.5))))]
    xs += [float(rng.uniform(xs[0] + sum(radii), 1 - radius)) for radius in radii[1:]]
    # White ones would have an outline of their own at night.
    colours = [c for c in visible_colours(sky, ground) if c != "white"]
    marks = tuple(
        Landmark(
            shape=pick(SLOTS["shape"]),
            colour=pick(tuple(colours)),
            radius=radius,
            place=(
                x if camera == "pan-right" else 1 - x,
                float(rng.uniform(max(radius, 0.35 * aspect), 0.7 * aspect)),
            ),
        )
        for x, radius in zip(xs, radii, strict=True)
    )
    phases = [tuple(float(p) for p in rng.uniform(0, 1, 3)) for _ in range(2)]
    return Scene(
        shape="",
        colour="",
        skies=(sky, sky),
        sky_change=0,
        ground=ground,
        camera=camera,
        motions=(Motion(start=0, direction="still"),),
        radius=0.0,
        origin=(0.0, 0.0),
        disc=(
            float(rng.uniform(0.14, 0.86)),
            float(rng.uniform(0.14, 0.3)) * aspect,
            float(rng.uniform(0.07, 0.095)),
        ),
        phases=(phases[0], phases[1]),  # type: ignore[arg-type]
        aspect=aspect,
        landmarks=marks,
        turn=turn,
        pace=pace,
    )
