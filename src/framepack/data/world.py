"""A flat world in motion: a sky, hills and one outlined shape, as a function of integer time.

Motion is decided by words and the first frame alone: the shape moves at a constant speed on a torus
a little larger than the frame, so it leaves on one side and returns on the other, and the hills
repeat after one frame width. In a panorama no shape moves: the camera pans away from another ground at
the edge of its first frame, stays there, and pans back to it. Any frame of any scene can be rendered,
however far in time.
Lengths are in widths of the frame, y points down, times are frames at 8 a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from framepack.conditioning.lexicon import SLOTS
from framepack.data.drawing import GROUNDS, HILLS, OUTLINE, SHAPES, SKIES, cover, palette
from framepack.metrics.colour import COLOURS, difference

FPS = 8
STEP: dict[str, float] = {"slowly": 1.5 / 128, "": 3 / 128, "fast": 5 / 128}
"""Widths a frame, by word of speed."""
VECTOR = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
PAN = 2 / 128
"""Widths a frame that the view moves over the near hills; over the far ones it is `FAR` of that."""
SIDE = {"": 0, "pan-left": -1, "pan-right": 1}
BACK = {"": "", "pan-left": "pan-right", "pan-right": "pan-left"}
PACE = {"": 1, "fast": 2}
"""How many times `PAN` a panorama moves, by word of speed."""
FAR = 0.5
FADE = 8
"""Frames that a change of the sky takes."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """From frame `start` on, until the next one begins, the shape moves in `direction` at `speed`."""

    start: int
    direction: str
    speed: str = ""

    @property
    def step(self) -> tuple[float, float]:
        """Widths moved from one frame to the next."""
        dx, dy = VECTOR[self.direction]
        return dx * STEP[self.speed], dy * STEP[self.speed]


@dataclass(frozen=True)
class Turn:
    """From frame `start` on, until the next one begins, the camera does as `camera` says; "" is static."""

    start: int
    camera: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One endless clip.

    Attributes:
        shape, colour, ground, camera: words of the lexicon; camera "" is static, shape "" is none, which
            has no colour and no motion to tell of either.
        skies: the sky before and after the change (equal when it does not change).
        sky_change: frame in the middle of the cross-fade.
        motions: one or more, ascending in start; the first also holds before its start.
        radius: of the shape; its outline included.
        origin: centre of the shape at frame 0.
        disc: x, y, radius of sun and moon.
        phases: of the far and the near hills.
        aspect: height / width of the frames.
        aside: another ground, on the side that the camera pans away from; "" is none. No words tell of it.
        border: where it begins, in widths from the left of the first frame; it goes with the near hills.
        turns: what the camera does after `camera`, ascending in start. pace: of the camera, told where it
            moves and no shape does.
    """

    shape: str
    colour: str
    skies: tuple[str, str]
    sky_change: int
    ground: str
    camera: str
    motions: tuple[Motion, ...]
    radius: float
    origin: tuple[float, float]
    disc: tuple[float, float, float]
    phases: tuple[tuple[float, float, float], tuple[float, float, float]]
    aspect: float = 1.0
    aside: str = ""
    border: float = 0.0
    turns: tuple[Turn, ...] = ()
    pace: str = ""

    @property
    def torus(self) -> tuple[float, float]:
        """Width and height of the torus: the frame and room for the shape to vanish beside it."""
        return 1 + 2 * self.radius + 0.02, self.aspect + 2 * self.radius + 0.02

    def displacement(self, t0: int, t1: int) -> tuple[float, float]:
        """Widths moved (x, y) from frame t0 to frame t1, as if there were no edges."""
        if t1 < t0:
            x, y = self.displacement(t1, t0)
            return -x, -y
        x = y = 0.0
        for n, motion in enumerate(self.motions):
            start = t0 if n == 0 else max(t0, motion.start)
            stop = t1 if n + 1 == len(self.motions) else min(t1, self.motions[n + 1].start)
            steps = max(0, stop - start)
            x, y = x + steps * motion.step[0], y + steps * motion.step[1]
        return x, y

    def position(self, t: int) -> tuple[float, float]:
        """Centre of the shape at frame t; a little outside of [0, 1] x [0, aspect] when it has left."""
        moved = self.displacement(0, t)
        wrapped = []
        for origin, move, size, extent in zip(
            self.origin, moved, self.torus, (1.0, self.aspect), strict=True
        ):
            margin = (size - extent) / 2
            wrapped.append((origin + move + margin) % size - margin)
        return wrapped[0], wrapped[1]

    def fade(self, t: int) -> float:
        """Share of the second sky at frame t."""
        if self.skies[0] == self.skies[1]:
            return 0.0
        return float(np.clip((t - self.sky_change) / FADE + 0.5, 0, 1))

    def pan(self, t: int) -> float:
        """Widths that the view of frame t lies to the right of the first one's."""
        # Steps are counted whole, so that who is back is back exactly.
        steps, began, camera = 0, 0, self.camera
        for turn in (*self.turns, Turn(t, "")):
            stop = min(turn.start, t)
            steps += (stop - began) * SIDE[camera]
            began, camera = stop, turn.camera
        return PAN * PACE[self.pace] * steps

    def turned(self, t: float) -> str:
        """What the camera does at time t, in frames."""
        return next((turn.camera for turn in reversed(self.turns) if turn.start <= t), self.camera)

    def motion(self, t: int) -> Motion:
        """What moves frame t to frame t + 1."""
        current = self.motions[0]
        for motion in self.motions[1:]:
            if motion.start <= t:
                current = motion
        return current

    def words(self, start: int, stop: int) -> tuple[str, ...]:
        """Canonical words, in order of slots, of frames [start, stop): what holds for most of them."""
        most, longest = self.motions[0], -1
        for n, motion in enumerate(self.motions):
            first = start if n == 0 else max(start, motion.start)
            last = stop if n + 1 == len(self.motions) else min(stop, self.motions[n + 1].start)
            if last - first > longest:
                most, longest = motion, last - first
        middle = (start + stop - 1) / 2
        sky = self.skies[1 if middle >= self.sky_change else 0]
        camera = self.turned(middle)
        moves = (most.direction, most.speed) if self.shape else ("", self.pace if camera else "")
        words = (self.shape, self.colour, sky, self.ground, *moves, camera)
        return tuple(word for word in words if word)

    def caption(self, start: int, stop: int, language: str, rng: np.random.Generator) -> str:
        """A sentence about frames [start, stop), "en" or "ja", whose words are exactly `words`."""
        from framepack.data.captions import caption

        return caption(self.words(start, stop), language, rng)

    def render(self, frames: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
        """Draw frames of any time as (N, height, width, 3) in 0..255."""
        out = np.empty((len(frames), height, width, 3), np.uint8)
        drawn: tuple[float, float] | None = None
        background = None
        for n, t in enumerate(frames):
            fade, pan = self.fade(t), self.pan(t) % (1 / FAR)
            if background is None or drawn != (fade, pan):
                background, outline = self._background(fade, pan, height, width)
                drawn = (fade, pan)
            out[n] = background
            if self.aside:
                self._draw_aside(out[n], t, fade, pan)
            if self.shape:
                _draw_shape(out[n], self.shape, self.colour, self.radius, self.position(t), outline)
        return out

    def _draw_aside(self, image: NDArray[np.uint8], t: int, fade: float, pan: float) -> None:
        """The other ground, in place, under the same sky."""
        height, width = image.shape[:2]
        places = (np.arange(width) + 0.5) / width + self.pan(t)
        there = places < self.border if SIDE[self.camera] > 0 else places > self.border
        if there.any():
            beside = replace(self, ground=self.aside)
            other, _ = beside._background(fade, pan, height, width, horizon=HILLS[self.ground][1])
            image[:, there] = other[:, there]

    def _background(
        self, fade: float, pan: float, height: int, width: int, *, horizon: float | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """uint8 (height, width, 3) without the shape, and the colour (3,) of its outline.

        horizon: height at which the sky ends, where it is not that of the far hills.
        """
        colours, discs = palette(self.skies[0], self.ground, self.colour)
        if fade > 0:
            colours2, discs2 = palette(self.skies[1], self.ground, self.colour)
            colours, discs = colours + fade * (colours2 - colours), discs + fade * (discs2 - discs)
        top, bottom, far, near, sun, outline = colours
        x = (np.arange(width, dtype=np.float32) + 0.5) / width
        y = (np.arange(height, dtype=np.float32) + 0.5) / width
        far_height, far_base, near_height, near_base = HILLS[self.ground]
        ends = self.aspect * (1 - (far_base if horizon is None else horizon))
        ramp = np.clip(y / ends, 0, 1)[:, None, None]
        image = np.broadcast_to(top + ramp * (bottom - top), (height, width, 3)).copy()
        self._draw_disc(image, discs, sun)
        samples = 4 if self.ground == "city" else 2
        xs = x[None] + ((np.arange(samples, dtype=np.float32) + 0.5) / samples - 0.5)[:, None] / width
        layers = ((far, far_height, far_base, FAR, 0), (near, near_height, near_base, 1.0, 1))
        for colour, shape, base, speed, which in layers:
            phase = np.array(self.phases[which], np.float32)
            line = self.aspect * (1 - base) - shape(xs + np.float32((pan * speed) % 1), phase)
            first = max(0, int(line.min() * width) - 1)
            share = cover(line, y[first:], width)[..., None]
            image[first:] += share * (colour - image[first:])
        return (image + 0.5).astype(np.uint8), outline

    def _draw_disc(self, image: NDArray[np.float32], strengths: NDArray[np.float32], colour) -> None:
        """The sun, or the moon as a crescent, in place."""
        if strengths.max() <= 0:
            return
        height, width = image.shape[:2]
        cx, cy, r = self.disc
        rows = slice(max(0, int((cy - r) * width) - 1), min(height, int((cy + r) * width) + 2))
        columns = slice(max(0, int((cx - r) * width) - 1), min(width, int((cx + r) * width) + 2))
        x = ((np.arange(width, dtype=np.float32) + 0.5) / width - cx)[None, columns]
        y = ((np.arange(height, dtype=np.float32) + 0.5) / width - cy)[rows, None]
        disc = np.hypot(x, y) - r
        bite = np.hypot(x - 0.5 * r, y + 0.3 * r) - 0.9 * r
        for distance, strength in ((disc, strengths[0]), (np.maximum(disc, -bite), strengths[1])):
            share = strength * np.clip(0.5 - distance * width, 0, 1)[..., None]
            image[rows, columns] += share * (colour - image[rows, columns])


def _draw_shape(
    image: NDArray[np.uint8],
    shape: str,
    colour: str,
    radius: float,
    centre: tuple[float, float],
    outline: NDArray[np.float32],
) -> None:
    """A shape with its outline, in place; nothing where it is out of view."""
    height, width = image.shape[:2]
    cx, cy = centre
    reach = radius * 1.1
    x0, x1 = max(0, int((cx - reach) * width) - 1), min(width, int((cx + reach) * width) + 2)
    y0, y1 = max(0, int((cy - reach) * width) - 1), min(height, int((cy + reach) * width) + 2)
    if x0 >= x1 or y0 >= y1:
        return
    x = ((np.arange(x0, x1) + 0.5) / width - cx).astype(np.float32)[None, :]
    y = ((np.arange(y0, y1) + 0.5) / width - cy).astype(np.float32)[:, None]
    x, y = np.broadcast_arrays(x, y)
    line = radius * OUTLINE
    distance = SHAPES[shape](x, y, radius - line / 2) - line / 2
    outer = np.clip(0.5 - distance * width, 0, 1)[..., None]
    inner = np.clip(0.5 - (distance + line) * width, 0, 1)[..., None]
    paint = outline + inner * (np.array(COLOURS[colour], np.float32) - outline)
    under = image[y0:y1, x0:x1].astype(np.float32)
    image[y0:y1, x0:x1] = (under + outer * (paint - under) + 0.5).astype(np.uint8)


@lru_cache
def visible_colours(sky: str, ground: str) -> tuple[str, ...]:
    """Colour words whose shape stands out from everything that may be behind it."""
    top, bottom, far, near, sun, _ = palette(sky, ground, "red")[0]
    behind = [top + w * (bottom - top) for w in np.linspace(0, 1, 5)] + [far, near, sun]
    return tuple(word for word, rgb in COLOURS.items() if difference(behind, rgb).min() > 27)


def sample_scene(rng: np.random.Generator, frames: int, aspect: float = 1.0) -> Scene:
    """Draw a scene whose changes, if any, fall inside its first `frames` frames.

    About 40 % of scenes change direction once (long ones sometimes twice), 15 % change the sky.
    """
    sky = _pick(rng, tuple(SKIES))
    ground = _pick(rng, tuple(GROUNDS))
    later = _pick(rng, tuple(s for s in SKIES if s != sky)) if rng.random() < 0.15 else sky
    colours = [c for c in visible_colours(sky, ground) if c in visible_colours(later, ground)]
    if not colours:
        later, colours = sky, list(visible_colours(sky, ground))
    radius = float(rng.uniform(0.125, 0.15)) * min(1.0, aspect)
    disc = (
        float(rng.uniform(0.14, 0.86)),
        float(rng.uniform(0.14, 0.3)) * aspect,
        float(rng.uniform(0.07, 0.095)),
    )
    phases = [tuple(float(p) for p in rng.uniform(0, 1, 3)) for _ in range(2)]
    scene = Scene(
        shape=_pick(rng, SLOTS["shape"]),
        colour=_pick(rng, colours),
        skies=(sky, later),
        sky_change=int(rng.integers(max(1, frames // 5), max(2, frames * 4 // 5))),
        ground=ground,
        camera=_pick(rng, SLOTS["camera"]) if rng.random() < 0.3 else "",
        motions=(_motion(rng, 0, ""),),
        radius=radius,
        origin=(float(rng.uniform(radius, 1 - radius)), float(rng.uniform(radius, aspect - radius))),
        disc=disc,
        phases=(phases[0], phases[1]),  # type: ignore[arg-type]
        aspect=aspect,
    )
    if rng.random() < 0.4 and frames > 2:
        changes = 2 if frames >= 64 and rng.random() < 0.35 else 1
        for at in sorted(
            int(a) for a in rng.integers(frames // 5, max(frames // 5 + 1, frames * 4 // 5), changes)
        ):
            scene = _turn(rng, scene, at)
    return scene


def _turn(rng: np.random.Generator, scene: Scene, at: int) -> Scene:
    """The scene with a new motion from about frame `at` on, at a moment when the shape is in view.

    Turned while outside, it would never come back.
    """
    for start in range(max(at, scene.motions[-1].start + 1), at + 64):
        x, y = scene.position(start)
        r = scene.radius * 0.7
        if r <= x <= 1 - r and r <= y <= scene.aspect - r:
            motion = _motion(rng, start, scene.motions[-1].direction)
            return replace(scene, motions=(*scene.motions, motion))
    return scene


def _motion(rng: np.random.Generator, start: int, but: str) -> Motion:
    """A random motion; "still" is half as likely as each direction."""
    names = [name for name in VECTOR if name != but]
    weights = np.array([0.5 if name == "still" else 1.0 for name in names])
    direction = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    speed = ("", "slowly", "fast")[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    return Motion(start=start, direction=direction, speed="" if direction == "still" else speed)


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]
