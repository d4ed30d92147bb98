"""Whether a video of the bundled model's world shows what its prompt says, from the pixels alone.

The object is found by its colour and told by its silhouette, which is compared with the world's own drawing
of every shape; sky and ground are told by their colours. A score is 1 where it is as told and 0 where not.
The world is a torus: a moving object leaves at one edge and is away for a while; frames in which it may be
away have no score.

Legend: N frames, H W pixels, K scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from framepack.conditioning.lexicon import SLOT_OF, SLOTS, parse
from framepack.data.drawing import GROUNDS, OUTLINE, SHAPES, SKIES, palette
from framepack.data.world import STEP
from framepack.metrics.colour import difference
from framepack.metrics.metric import Metric, Per, Subject, windows
from framepack.metrics.motion import Track, direction_of, fill, track

SIDE = 192
"""Pixels of a template: 4 units of `fitted`, on which each shape has an area of 1."""
SPAN = 4.0
WIDEST = 0.32
"""Of an object, with the room that the world leaves beside the frame, in frame widths."""
EDGE = 0.02
"""Nearer to the frame's edge than this, in frame widths, an object may be cut: codecs blur what is there."""
LEAVING = OUTLINE * 0.15 + STEP["fast"]
"""Nearer than this it may be outside a frame later: an outline and a step."""
BAND = 0.06
"""Of the frame's height at the top and at the bottom, where sky and ground are looked at."""


def words_of(prompt: str) -> dict[str, str]:
    """The words of a prompt by slot of the lexicon."""
    return {SLOT_OF[word]: word for word in parse(prompt).words}


# Silhouettes ------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def templates() -> dict[str, NDArray[np.bool_]]:
    """Of each shape's fill, inside its outline: (SIDE, SIDE), its centre in the middle, its area 1."""
    fine = (np.arange(512, dtype=np.float32) + 0.5) / 256 - 1
    x, y = np.meshgrid(fine * 1.2, fine * 1.2)
    grid = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * SPAN
    made = {}
    for name in SLOTS["shape"]:
        inside = _fill_of(name, x, y)
        area, cx, cy = inside.sum() * (2.4 / 512) ** 2, x[inside].mean(), y[inside].mean()
        scaled = (grid * math.sqrt(area)).astype(np.float32)
        made[name] = _fill_of(name, *np.meshgrid(scaled + cx, scaled + cy))
    return made


def _fill_of(shape: str, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where a shape of radius 1 is filled, as the world draws it."""
    return SHAPES[shape](x, y, 1 - OUTLINE / 2) + OUTLINE / 2 < 0


def likeness(x: NDArray[np.int_], y: NDArray[np.int_]) -> dict[str, float]:
    """Intersection over union of a silhouette with every shape drawn at its centre and of its area.

    Args:
        x, y: of the pixels that it covers, as `fill` gives them.
    """
    unit = math.sqrt(len(x))
    cx, cy = x.mean(), y.mean()
    reach = math.ceil(unit * SPAN / 2)
    mask = np.zeros((2 * reach + 1, 2 * reach + 1), bool)
    columns, rows = x - round(cx) + reach, y - round(cy) + reach
    kept = (np.minimum(columns, rows) >= 0) & (np.maximum(columns, rows) <= 2 * reach)
    mask[rows[kept], columns[kept]] = True
    at_x, at_y = (_places(np.arange(-reach, reach + 1) + round(c) - c, unit) for c in (cx, cy))
    found = {}
    for name, template in templates().items():
        drawn = template[at_y[:, None], at_x[None]]
        found[name] = float((mask & drawn).sum() / (mask | drawn).sum())
    return found


def _places(offsets: NDArray[np.float64], unit: float) -> NDArray[np.int_]:
    """Of pixels, so far from the centre, on a template."""
    return np.clip(((offsets / unit / SPAN + 0.5) * SIDE).astype(int), 0, SIDE - 1)


# Scores -----------------------------------------------------------------------------------------------


def at_edge(followed: Track, aspect: float, margin: float) -> NDArray[np.bool_]:
    """(N,) whether the object is within ``margin`` of an edge of frames of ``aspect`` (height / width)."""
    left, top, right, bottom = followed.boxes.T
    with np.errstate(invalid="ignore"):
        return np.minimum(np.minimum(left, top), np.minimum(1 - right, aspect - bottom)) < margin


def away(followed: Track, aspect: float, words: Mapping[str, str]) -> NDArray[np.bool_]:
    """(N,) frames without the object in which it may be outside: it left at an edge, and not long ago.

    An object that is not said to move may never be away. One that comes in at the beginning may be.
    """
    seen = followed.seen
    out = np.zeros(len(seen), bool)
    if words.get("direction") == "still":
        return out
    longest = math.ceil(WIDEST / STEP[words.get("speed", "")])
    near = at_edge(followed, aspect, LEAVING)
    since, leaving = 0, True
    for n, there in enumerate(seen):
        if there:
            since, leaving = 0, bool(near[n])
        else:
            since += 1
            out[n] = leaving and since <= longest
    return out


def right_colour(subject: Subject, words: Mapping[str, str]) -> NDArray[np.float64]:
    """(N,) whether an object of the told colour is there."""
    followed = track(subject.frames, words["colour"])
    scores = followed.seen.astype(np.float64)
    scores[away(followed, _aspect(subject), words)] = np.nan
    return scores


def right_shape(subject: Subject, words: Mapping[str, str]) -> NDArray[np.float64]:
    """(N,) whether the object of the told colour has the told shape; no score where the frame cuts it."""
    followed = track(subject.frames, words["colour"])
    scores = np.zeros(len(subject.frames))
    aspect = _aspect(subject)
    scores[away(followed, aspect, words) | at_edge(followed, aspect, EDGE)] = np.nan
    for n in np.flatnonzero(followed.seen & np.isfinite(scores)):
        found = likeness(*fill(subject.frames[n], words["colour"]))
        scores[n] = max(found, key=found.__getitem__) == words["shape"]
    return scores


def right_motion(subject: Subject, words: Mapping[str, str]) -> NDArray[np.float64]:
    """(K,) whether the object moves in the told direction, in each window of the video."""
    scores = []
    for window in windows(len(subject.frames)):
        followed = track(subject.frames[window], words["colour"])
        found = direction_of(followed)
        excused = found is None and (followed.seen | away(followed, _aspect(subject), words)).all()
        scores.append(np.nan if excused else float(found == words["direction"]))
    return np.array(scores)


def right_sky(subject: Subject, words: Mapping[str, str]) -> NDArray[np.float64]:
    """(N,) whether the top of the frame is nearest to the told sky's colour there, of all skies."""
    tops = {sky: palette(sky, "grass", "red")[0][0] for sky in SKIES}
    return _nearest(subject.frames, slice(0, _band(subject)), tops, words["sky"])


def right_ground(subject: Subject, words: Mapping[str, str]) -> NDArray[np.float64]:
    """(N,) whether the bottom of the frame is nearest to the told ground's colour under the told sky."""
    near = {ground: palette(words["sky"], ground, "red")[0][3] for ground in GROUNDS}
    return _nearest(subject.frames, slice(-_band(subject), None), near, words["ground"])


def _aspect(subject: Subject) -> float:
    return subject.frames.shape[1] / subject.frames.shape[2]


def _band(subject: Subject) -> int:
    return max(1, round(BAND * subject.frames.shape[1]))


def _nearest(
    frames: NDArray[np.uint8], rows: slice, colours: Mapping[str, NDArray[np.floating]], told: str
) -> NDArray[np.float64]:
    """(N,) whether the median colour of some rows is nearest to that of ``told``."""
    shown = np.median(frames[:, rows].reshape(len(frames), -1, 3), axis=1)
    names = list(colours)
    distances = np.stack([difference(shown, colours[name]) for name in names], axis=1)
    return (distances.argmin(axis=1) == names.index(told)).astype(np.float64)


# The table --------------------------------------------------------------------------------------------

Truth = Callable[[Subject, Mapping[str, str]], NDArray[np.float64]]


def _metric(name: str, title: str, score: Truth, slots: tuple[str, ...], per: Per = "frame") -> Metric:
    def lacks(subject: Subject) -> str | None:
        if subject.words is None:
            return "it is not known to show the bundled model's world"
        missing = [slot for slot in slots if slot not in subject.words]
        return f"its prompt has no word for {', '.join(missing)}" if missing else None

    def scorer(subject: Subject) -> NDArray[np.float64]:
        assert subject.words is not None
        return score(subject, subject.words)

    return Metric(
        name=name,
        title=title,
        unit="share",
        better="higher",
        source="the bundled model's world: its palette and its drawing",
        per=per,
        needs="clips of the bundled model's world",
        lacks=lacks,
        load=lambda device: scorer,
    )


TRUTH: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric("right-colour", "Object of the told colour", right_colour, ("colour",)),
        _metric("right-shape", "Object of the told shape", right_shape, ("colour", "shape")),
        _metric("right-motion", "Moves as told", right_motion, ("colour", "direction"), "window"),
        _metric("right-sky", "Told sky", right_sky, ("sky",)),
        _metric("right-ground", "Told ground", right_ground, ("sky", "ground")),
    )
}
