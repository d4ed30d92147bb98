"""Panoramas: the camera pans away from a place, stays away and pans back, and the place must be as it was.

At the edge of the first frame another ground begins. The camera leaves it behind and comes back to it; the
words tell of the main ground and of the camera, and never of the other, so that who draws the way back has to
remember it. It is in the first frame, so that this and the words still settle every frame that follows.
"""

from __future__ import annotations

import numpy as np

from framepack.conditioning.lexicon import SLOTS
from framepack.data.drawing import GROUNDS, SKIES
from framepack.data.world import BACK, PACE, PAN, Motion, Scene, Turn

BEAT = 6
"""The camera does the same for multiples of so many frames: sections of the bundled model, whose words then
hold for all of them."""
LEGS = (12, 18)
"""Frames that the camera pans away, and back."""


def sample_panorama(rng: np.random.Generator, frames: int, aspect: float = 1.0) -> Scene:
    """Draw a panorama whose place is back at rest within ``frames``, if they are enough.

    The camera stays away for anything from no frames to most of them.
    """

    def pick(names: tuple[str, ...]) -> str:
        return names[int(rng.integers(len(names)))]

    sky, ground = pick(tuple(SKIES)), pick(tuple(GROUNDS))
    aside = pick(tuple(name for name in GROUNDS if name != ground))
    camera, pace = pick(SLOTS["camera"]), "fast"
    leg = int(rng.choice(LEGS))
    latest = frames - 1 - leg - BEAT
    turn = int(rng.choice(np.arange(leg, max(latest, leg) + 1, BEAT)))
    stay = (Turn(leg, ""),) if turn > leg else ()
    border = leg * PAN * PACE[pace]
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
        border=border if camera == "pan-right" else 1 - border,
        turns=(*stay, Turn(turn, BACK[camera]), Turn(turn + leg, "")),
        pace=pace,
    )
