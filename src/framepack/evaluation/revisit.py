"""Whether what leaves the view comes back as it was: forgetting, measured where the world knows the truth.

In a panorama of the procedural world the camera pans away from another ground and back to it; that is in the
first frame and in no word of the prompt, so that only memory brings it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from framepack.data.latents import PANORAMA
from framepack.data.panorama import BEAT, LEGS, sample_panorama
from framepack.data.world import FPS, SIDE, Scene
from framepack.errors import InputError
from framepack.evaluation.results import Revisit
from framepack.metrics.colour import difference
from framepack.planning.script import Cue, Script
from framepack.training.check import HELD_OUT

FEWEST = 2 * max(LEGS) + BEAT + 1
"""Frames in which every place can leave the view and be back."""
STRIP = 1 / 8
"""Of the width: what is compared lies in such a strip at the side from which it comes back."""
HALF = 0.5
"""Share of the strip's columns in which it must be."""


@dataclass(frozen=True)
class Return:
    """A place that is back: in ``box`` of frame ``at``, of which the newest column had been out of view for
    ``away`` frames when it came back."""

    at: int
    away: int
    box: tuple[slice, slice]


def revisit_scenes(count: int, frames: int, size: tuple[int, int]) -> list[Scene]:
    """Panoramas of ``size`` (H, W) never trained on, in each of which the place is back within ``frames``.

    Raises:
        InputError: frames too few for that.
    """
    if frames < FEWEST:
        raise InputError(
            f"{frames} frames: a place takes up to {FEWEST} to leave the view and be back; ask for more"
        )
    rngs = (np.random.default_rng([HELD_OUT, index, PANORAMA]) for index in range(count))
    return [sample_panorama(rng, frames, size[0] / size[1]) for rng in rngs]


def prompt_of(scene: Scene, frames: int, fps: float = FPS) -> str:
    """What happens in the first ``frames`` of a scene, by time, as ``framepack generate`` takes it."""
    changes = {0, *(motion.start for motion in scene.motions)}
    changes |= {turn.start for turn in scene.turns} | ({scene.sky_change} - {0})
    starts = sorted(change for change in changes if change < frames)
    cues: list[Cue] = []
    words: tuple[str, ...] = ()
    for n, (start, stop) in enumerate(zip(starts, [*starts[1:], frames], strict=True)):
        if scene.words(start, stop) != words:
            words = scene.words(start, stop)
            said = scene.caption(start, stop, "en", np.random.default_rng([HELD_OUT, n]))
            cues.append(Cue(at=start / fps, prompt=said))
    return str(Script(tuple(cues)))


def revisits(scene: Scene, frames: NDArray[np.uint8], *, clip: str = "") -> Revisit:
    """How far a place that is back in view is from what the world shows there.

    It is compared on the way back and for a moment of rest after it, in the strip of columns that came into
    view last. The error is the mean over the strip, as high as the place, of the distance in CIE Lab from the
    world's own frame; about 2 is just visible, and another ground is 10 to 40.

    Where the place never leaves the view, because the video does not follow the camera, nothing comes back
    and nothing is compared: at the turn, its strip is then nearer to the first frame than to the world's.

    Args:
        frames: uint8 (N, H, W, 3) of the scene from its start.

    Raises:
        InputError: frames of another shape than the scene's.
    """
    _, height, width, _ = frames.shape
    if abs(height / width - scene.aspect) > 1e-6:
        raise InputError(
            f"frames of {width} x {height} px, of a scene of height / width {scene.aspect:g}: give frames of "
            "that shape"
        )
    found = list(returns(scene, len(frames), (height, width)))
    if found and not _left(scene, frames, found[-1].box):
        found = []
    truth = scene.render([back.at for back in found], height, width)
    return Revisit(
        clip=clip,
        away=tuple(back.away for back in found),
        error=tuple(
            float(difference(frames[back.at][back.box], true[back.box]).mean())
            for back, true in zip(found, truth, strict=True)
        ),
        at=tuple(back.at for back in found),
    )


def _left(scene: Scene, frames: NDArray[np.uint8], box: tuple[slice, slice]) -> bool:
    """Whether the place is out of view when the camera turns; ``box``: where it is at rest."""
    turn = _turn(scene, len(frames))
    first, away = (
        difference(frames[turn][box], frame[box]).mean()
        for frame in scene.render([0, turn], *frames.shape[1:3])
    )
    return bool(away < first)


def view_revisits(frames: NDArray[np.uint8], pairs: Sequence[tuple[int, int]], *, clip: str = "") -> Revisit:
    """How far views are from what the video itself showed there before, as mean distance in CIE Lab.

    For worlds of which the first frame does not tell all: what a model made up, it is to remember.

    Args:
        frames: uint8 (N, H, W, 3). pairs: (now, then) of frames that must show the same, such as those of
            `framepack.data.vizdoom.revisit_path`.
    """
    return Revisit(
        clip=clip,
        away=tuple(now - then for now, then in pairs),
        error=tuple(float(difference(frames[now], frames[then]).mean()) for now, then in pairs),
        at=tuple(now for now, _ in pairs),
    )


def returns(scene: Scene, frames: int, size: tuple[int, int]) -> Iterator[Return]:
    """Where and when the other ground of a panorama comes back within so many frames of ``size`` (H, W)."""
    pans, turn = [scene.pan(at) for at in range(frames)], _turn(scene, frames)
    drawn = scene.render(range(frames), *size)
    marked = (drawn != replace(scene, aside="").render(range(frames), *size)).any(axis=-1)
    strip = max(2, round(STRIP * size[1]))
    # The camera goes back to the side that it came from.
    columns = slice(0, strip) if SIDE[scene.camera] > 0 else slice(size[1] - strip, size[1])
    rest = pans.index(pans[-1], turn)
    for at in range(turn + 1, min(rest + BEAT + 1, frames)):
        there = marked[at][:, columns]
        if there.any(axis=0).mean() >= HALF:
            rows = np.flatnonzero(there.any(axis=1))
            came, left = pans.index(pans[at], turn), pans[:turn].index(pans[at])
            yield Return(at=at, away=came - left, box=(slice(rows[0], rows[-1] + 1), columns))


def _turn(scene: Scene, frames: int) -> int:
    """The last frame before the way back: none is further from where the camera began."""
    return max(range(frames), key=lambda at: (abs(scene.pan(at)), at))
