"""Panoramas: the camera pans away from a place and back, and the place must be as it was.

At the edge of the first frame another ground begins. The camera leaves it behind and comes back to it; the
words tell of the main ground and of the camera, and never of the other, so that who draws the way back has to
remember it. It is in the first frame, so that this and the words still settle every frame that follows.
"""

from __future__ import annotations

import numpy as np

from framepack.conditioning.lexicon import SLOTS
from framepack.data.drawing import GROUNDS, SKIES
from framepack.data.world import PACE, PAN, Motion, Scene

BEAT = 6
"""Cameras turn at multiples of so many frames: at the end of a section of the bundled model, whose words
then hold for all of it."""
LEAVES = (8, 30)
"""Frames after which the place is out of view, the least and the most."""
WIDEST = 0.9
"""Most of the first frame that it takes up, in widths."""
SOONEST = 2
"""It is out of view for at least twice so many frames."""
SHOWN = 12
"""Frames at the end in which it is back, where there is time for it."""


def sample_panorama(rng: np.random.Generator, frames: int, aspect: float = 1.0) -> Scene:
    """Draw a panorama whose place leaves the view and is back within ``frames``, if they are enough.

    It is away for anything from 4 frames to most of them.
    """

    def pick(names: tuple[str, ...]) -> str:
        return names[int(rng.integers(len(names)))]

    sky, ground = pick(tuple(SKIES)), pick(tuple(GROUNDS))
    aside = pick(tuple(name for name in GROUNDS if name != ground))
    camera, pace = pick(SLOTS["camera"]), pick(tuple(PACE))
    step = abs(PAN[camera]) * PACE[pace]
    first, last = LEAVES
    leaves = int(rng.integers(first, min(last, int(WIDEST / step)) + 1))
    latest = (frames - 1 - SHOWN + leaves) / 2
    turns = [t for t in range(BEAT, frames, BEAT) if leaves + SOONEST <= t <= latest] or [max(1, frames // 2)]
    border = leaves * step
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
        aside=aside,
        border=border if PAN[camera] > 0 else 1 - border,
        turn=turns[int(rng.integers(len(turns)))],
        pace=pace,
    )
