"""The held-out check: does a model do as it is told? Measured from pixels, not by a model.

Legend: B videos made at once, C latent channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from framepack.conditioning.embeds import Conditioning
from framepack.conditioning.lexicon import SLOT_OF, SLOTS
from framepack.data.captions import caption
from framepack.data.world import Scene, sample_scene
from framepack.errors import InputError, UnknownNameError
from framepack.generation.decode import to_uint8
from framepack.metrics.motion import direction
from framepack.models.bundle import Bundle
from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.training.rollout import rollout
from framepack.video.sheet import contact_sheet

HELD_OUT = 2_000_000_000
"""Scenes from this seed on are never trained on."""
LANGUAGES = ("en", "ja")
FEW = 10
"""Clips of the rows that check one ability each."""
FAR = 81
"""Frames of the row that looks at the far end."""


@dataclass(frozen=True)
class Pair:
    """A picture (H, W, 3) of an unseen scene, and a prompt whose direction the picture does not tell.

    Attributes:
        words: of the prompt, which is said as a sentence. colour, direction: those among them.
        given: further pictures, by frame. then: words from the middle of the video on, if they change.
    """

    picture: np.ndarray
    words: tuple[str, ...]
    colour: str
    direction: str
    given: Mapping[int, np.ndarray] = field(default_factory=dict)
    then: tuple[str, ...] = ()


def held_out_scenes(frames: int, size: tuple[int, int]) -> Iterator[Scene]:
    """Unseen scenes of ``size`` (H, W) without end."""
    index = 0
    while True:
        yield sample_scene(np.random.default_rng([HELD_OUT, index]), frames, size[0] / size[1])
        index += 1


def inside(scene: Scene, frame: int, margin: float = 0.25) -> bool:
    """Whether the shape is well inside the picture, with a ``margin`` of its width and height."""
    x, y = scene.position(frame)
    return margin < x < 1 - margin and margin < y / scene.aspect < 1 - margin


def held_out_pairs(count: int, size: tuple[int, int], *, margin: float = 0.25) -> list[Pair]:
    """Unseen pairs; directions in turn, the shape well inside the frame, the camera still."""
    pairs: list[Pair] = []
    for scene in held_out_scenes(64, size):
        if len(pairs) == count:
            break
        if not inside(scene, 0, margin):
            continue
        words = [w for w in scene.words(0, 1) if SLOT_OF[w] not in ("direction", "camera", "speed")]
        wanted = SLOTS["direction"][len(pairs) % len(SLOTS["direction"])]
        pairs.append(Pair(scene.render([0], *size)[0], (*words, wanted), scene.colour, wanted))
    return pairs


def sentences(words: Sequence[tuple[str, ...]], start: int = 0) -> list[str]:
    """Words as a user would write them, in English and in Japanese in turn."""
    return [
        caption(each, LANGUAGES[i % len(LANGUAGES)], np.random.default_rng([HELD_OUT, i]))
        for i, each in enumerate(words, start)
    ]


def make_videos(
    bundle: Bundle,
    pairs: list[Pair],
    method: Method,
    *,
    image: bool,
    frames: int,
    seed: int = 0,
    batch: int = 10,
    guidance: float | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """uint8 (frames, H, W, 3) for each pair, with its picture as the first frame or from its words alone.

    All pairs must have pictures of one size, given at the same frames.
    """
    spec, codec, conditioner = bundle.spec, bundle.codec, bundle.conditioner
    given = ({0} if image else set()) | set(pairs[0].given)
    timeline = Timeline(frames=frames, fps=spec.fps, stride=spec.temporal_stride, known=tuple(given))
    planned = plan(timeline, method)
    model = bundle.transformer
    height, width = pairs[0].picture.shape[:2]
    grid = (height // spec.spatial_stride, width // spec.spatial_stride)

    def encode(pictures: list[np.ndarray]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)[:, :, None]
        return codec.encode(pixels.float() / 127.5 - 1)[:, :, 0].float().cpu()

    videos: list[np.ndarray] = []
    with torch.inference_mode():
        for start in range(0, len(pairs), batch):
            chunk = pairs[start : start + batch]
            known = {f: encode([p.given.get(f, p.picture) for p in chunk]) for f in given}
            now, then = (
                conditioner.encode(sentences(words, start))
                for words in ([p.words for p in chunk], [p.then or p.words for p in chunk])
            )

            def prompt(section: Section, now: Conditioning = now, then: Conditioning = then) -> Conditioning:
                middle = (section.frames[0] + section.frames[-1]) / 2
                return now if middle < timeline.latent_frames / 2 else then

            latents = rollout(
                model,
                planned,
                known,
                prompt,
                conditioner.encode([""] * len(chunk)),
                shape=(len(chunk), spec.latent_channels, *grid),
                seed=seed + start,
                steps=spec.steps,
                guidance=spec.guidance if guidance is None else guidance,
                shift=spec.shift,
                base_kernel=spec.base_kernel,
                solver=spec.solver,
                device=model.device,
                dtype=model.dtype,
                centroids=None if bundle.codebook is None else bundle.codebook.centroids.cpu(),
            )
            videos += [to_uint8(video).cpu().numpy() for video in codec.decode(latents)]
            on_batch(len(videos))
    return videos


def sheet_of(videos: list[np.ndarray], columns: int = 9) -> Image:
    """A row of frames for each video."""
    shown = [v[i] for v in videos for i in np.linspace(0, len(v) - 1, columns).round().astype(int)]
    return contact_sheet(shown, columns, tile_width=128)


def sample_sheet(bundle: Bundle, path: Path, rows: int = 5, frames: int = 25) -> None:
    """A picture of a model at work on held-out pairs: ``rows`` with a picture, as many without."""
    pairs = held_out_pairs(rows, bundle.spec.buckets[0])
    method = bundle.spec.method(None)
    videos = [
        v for image in (True, False) for v in make_videos(bundle, pairs, method, image=image, frames=frames)
    ]
    sheet_of(videos).save(path)


# The rows of the check -------------------------------------------------------------------------------

Make = Callable[[list[Pair], bool, int], list[np.ndarray]]
"""(pairs, whether their picture is given, frames) -> videos."""


@dataclass(frozen=True)
class Measured:
    """A video and its scores, 0 or 1 where they are right or wrong, and the direction it should have."""

    video: np.ndarray
    scores: dict[str, float]
    direction: str | None = None


Measure = Callable[[Make, int, tuple[int, int], int], list[Measured]]
"""(make, clips, size (H, W), frames) -> what was measured, one for each clip."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method can do of one ability."""

    method: str
    ability: str
    frames: int
    seconds: float
    measured: list[Measured]

    def to_json(self) -> dict[str, object]:
        """Plain values: the mean of every score; shares by direction where it is a share of directions."""
        names = self.measured[0].scores
        told: dict[str, object] = {"method": self.method, "ability": self.ability}
        told |= {"clips": len(self.measured), "frames": self.frames}
        told |= {name: _mean(m.scores[name] for m in self.measured) for name in names}
        if self.measured[0].direction is not None:
            told["by_direction"] = {
                d: _mean(m.scores["share"] for m in self.measured if m.direction == d)
                for d in SLOTS["direction"]
                if any(m.direction == d for m in self.measured)
            }
        return told | {"seconds": round(self.seconds, 1)}

    def save_sheets(self, folder: Path, rows: int = 10) -> None:
        """``method-ability.png`` with the first videos, one sheet for each size of frame."""
        shapes = list(dict.fromkeys(m.video.shape[1:3] for m in self.measured))
        for height, width in shapes:
            size = "" if len(shapes) == 1 else f"-{width}x{height}"
            videos = [m.video for m in self.measured if m.video.shape[1:3] == (height, width)]
            sheet_of(videos[:rows]).save(folder / f"{self.method}-{self.ability}{size}.png")


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)


def follows_prompt(
    make: Make, clips: int, size: tuple[int, int], frames: int, *, image: bool, last: int | None = None
) -> list[Measured]:
    """Whether the shape moves as the prompt says, in the ``last`` frames or all."""
    pairs = held_out_pairs(clips, size)
    measured = []
    for pair, video in zip(pairs, make(pairs, image, frames), strict=True):
        found = direction(video if last is None else video[-last:], pair.colour)
        measured.append(Measured(video, {"share": float(found == pair.direction)}, pair.direction))
    return measured


def prompt_change(make: Make, clips: int, size: tuple[int, int], frames: int) -> list[Measured]:
    """The same before and after the middle, where the prompt asks for another direction."""
    names = SLOTS["direction"]
    pairs = []
    # From the centre, so that the shape is still in view when it turns.
    for pair in held_out_pairs(clips, size, margin=0.4):
        other = names[(names.index(pair.direction) + 2) % len(names)]
        pairs.append(replace(pair, then=(*pair.words[:-1], other)))
    measured = []
    for pair, video in zip(pairs, make(pairs, True, frames), strict=True):
        # The section that holds the middle may go either way.
        middle, margin = frames // 2, frames // 8
        before = direction(video[: middle - margin], pair.colour) == pair.direction
        after = direction(video[middle + margin :], pair.colour) == pair.then[-1]
        measured.append(Measured(video, {"share_before": float(before), "share_after": float(after)}))
    return measured


def keyframes(
    make: Make, clips: int, size: tuple[int, int], frames: int, *, given: Sequence[int]
) -> list[Measured]:
    """PSNR to the truth beside the pictures given, and what those pictures would have in their place."""
    pairs: list[Pair] = []
    truths = []
    for scene in held_out_scenes(frames, size):
        if len(pairs) == clips:
            break
        scene = replace(scene, motions=scene.motions[:1], skies=(scene.skies[0],) * 2)
        if not all(inside(scene, f) for f in (0, *given)):
            continue
        truth = scene.render(range(frames), *size)
        words = scene.words(0, frames)
        pictures = {f: truth[f] for f in given}
        pairs.append(Pair(truth[0], words, scene.colour, scene.motions[0].direction, pictures))
        truths.append(truth)
    known = {0, *given}
    beside = [(f, near) for f in given for near in (f - 1, f + 1) if near < frames and near not in known]
    measured = []
    for truth, video in zip(truths, make(pairs, True, frames), strict=True):
        made = [psnr(video[near], truth[near]) for _, near in beside]
        copied = [psnr(truth[f], truth[near]) for f, near in beside]
        measured.append(Measured(video, {"psnr": _mean(made), "psnr_of_copies": _mean(copied)}))
    return measured


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    """In dB, of uint8 frames; at most 60."""
    error = np.square(made.astype(np.float64) - true).mean()
    return float(10 * np.log10(255**2 / max(error, 255**2 / 1e6)))


def abilities(frames: int) -> dict[str, tuple[int, Measure]]:
    """What is promised: by name its frames and its measure."""
    third = frames // 3
    ends = [*range(1, third), *range(2 * third, frames)]
    return {
        "image-to-video": (frames, partial(follows_prompt, image=True)),
        "text-to-video": (frames, partial(follows_prompt, image=False)),
        "end-keyframe": (frames, partial(keyframes, given=[frames - 1])),
        "middle-keyframe": (frames, partial(keyframes, given=[frames // 2])),
        "filled-gap": (frames, partial(keyframes, given=ends)),
        "prompt-change": (frames, prompt_change),
        "far-end": (max(FAR, frames), partial(follows_prompt, image=True, last=frames)),
    }


ABILITIES = tuple(abilities(25))


def held_out_check(
    bundle: Bundle,
    methods: Sequence[str] = (),
    *,
    clips: int,
    frames: int = 25,
    guidance: float | None = None,
    only: Sequence[str] = (),
    on_clips: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Iterator[Row]:
    """One row for each method and ability, as it is done; clips are divided among the model's sizes.

    Args:
        methods: names or strings that the model was trained for; its default where empty.
        clips: of the first two abilities; at most ``FEW`` of the others, which are there to be seen.
        guidance: the model's own where None.
        only: names of abilities; all where empty.
        on_clips: told (method and ability, finished clips, all clips).

    Raises:
        InputError: no clips, frames too few to tell motion, or a method or ability that there is not.
    """
    if clips < 1 or frames < 9:
        raise InputError(f"{clips} clips of {frames} frames: a check needs 1 clip of 9 frames; ask for more")
    for name in only:
        if name not in ABILITIES:
            raise UnknownNameError("ability", name, ABILITIES)
    wanted = {name: bundle.spec.method(name) for name in methods or [bundle.spec.default_method]}
    return _rows(bundle, wanted, clips, frames, guidance, only or ABILITIES, on_clips)


def _rows(
    bundle: Bundle,
    methods: dict[str, Method],
    clips: int,
    frames: int,
    guidance: float | None,
    names: Sequence[str],
    on_clips: Callable[[str, int, int], None],
) -> Iterator[Row]:
    table, sizes = abilities(frames), bundle.spec.buckets
    for method_name, method in methods.items():
        for name in names:
            length, measure = table[name]
            total = clips if name in ABILITIES[:2] else min(clips, FEW)
            measured: list[Measured] = []

            def make(pairs: list[Pair], image: bool, frames: int) -> list[np.ndarray]:
                return make_videos(
                    bundle,
                    pairs,
                    method,  # noqa: B023
                    image=image,
                    frames=frames,
                    guidance=guidance,
                    on_batch=lambda done: on_clips(label, len(measured) + done, total),  # noqa: B023
                )

            label, begun = f"{method_name} {name}", time.perf_counter()
            on_clips(label, 0, total)
            for i, size in enumerate(sizes):
                count = (i + 1) * total // len(sizes) - i * total // len(sizes)
                if count:
                    measured += measure(make, count, size, length)
            yield Row(
                method=method_name,
                ability=name,
                frames=length,
                seconds=time.perf_counter() - begun,
                measured=measured,
            )
