"""What a user gives of a video: pictures at any time of it, and clips that it goes on from or leads to.

Legend: F frames, H W pixels, s frames per latent frame.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError
from framepack.planning.planners import Plan
from framepack.planning.timeline import Timeline
from framepack.video.audio import Audio, audio_of, audio_remarks
from framepack.video.clips import read_clip, read_still
from framepack.video.images import picture_digest
from framepack.video.resize import to_bucket

if TYPE_CHECKING:
    from PIL.Image import Image

    from framepack.models.spec import ModelSpec

Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Keyframe:
    """A picture that the video shows at a time.

    Args:
        picture: a file, ``clip.mp4@3.5s`` for a frame of a clip, or loaded.
        at: seconds from the start; None: the last frame.

    Raises:
        InputError: a time that is none.
    """

    picture: Path | Image
    at: float | None = None

    def __post_init__(self) -> None:
        if self.at is not None and not (math.isfinite(self.at) and self.at >= 0):
            raise InputError(f"keyframe at {self.at:g} s: give a time from 0 on")

    @classmethod
    def parse(cls, text: str) -> Keyframe:
        """``SECONDS=PICTURE``. Raises InputError: it is not of this form."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*s?\s*=(.+)", text)
        if found is None:
            raise InputError(f"keyframe '{text}': write SECONDS=PICTURE, such as 2.5=door.png")
        return cls(at=float(found[1]), picture=Path(found[2].strip()))

    @property
    def told(self) -> str:
        names = {None: "the end picture", 0.0: "the start picture"}
        return names.get(self.at) or f"the keyframe at {self.at:g} s"


def open_picture(picture: Path | Image) -> Image:
    """A picture file, or a frame of a clip, loaded. Raises InputError: see ``read_still``."""
    return read_still(picture) if isinstance(picture, Path) else picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """Frames that stand in the video from its latent frame ``at`` on.

    Attributes:
        latents: how many latent frames they fill. pixels: (F, H, W, 3) of the video's size; of a keyframe
            the one picture, which is held for its latent frame.
        digest: of the pixels. told: what it is, for people.
        clip: whether these are frames of a clip, one for each frame of the video. sound: the clip's.
    """

    at: int
    latents: int
    pixels: Frames
    digest: str
    told: str
    clip: bool = False
    sound: Audio | None = None

    @property
    def frames(self) -> range:
        """Latent frames."""
        return range(self.at, self.at + self.latents)

    @property
    def picture(self) -> Image:
        """The first frame."""
        from PIL import Image as pillow

        return pillow.fromarray(self.pixels[0])


def given_picture(picture: Image, size: tuple[int, int], at: int, told: str) -> Given:
    """A picture cropped and resized to ``size`` (height, width), at one latent frame."""
    fitted = to_bucket(picture, size)
    pixels = np.asarray(fitted)[None]
    return Given(at=at, latents=1, pixels=pixels, digest=picture_digest(fitted), told=told)


def given_clips(
    before: Path | None, after: Path | None, spec: ModelSpec, size: tuple[int, int]
) -> tuple[Given | None, Given | None, list[str]]:
    """Clips at a model's rate and ``size``, and what is told of them; where the second stands is still open.

    Raises:
        InputError: a file that cannot be read.
    """
    stride = spec.temporal_stride
    made: list[Given | None] = []
    told: list[str] = []
    for path, cut in ((before, "start"), (after, "end")):
        if path is None:
            made.append(None)
            continue
        clip = read_clip(path, spec.fps, size, stride=stride, cut=cut)  # type: ignore[arg-type]
        told += clip.remarks
        frames = np.stack([*clip.frames()])
        sound = audio_of(path, start=clip.start, stop=clip.stop)
        if cut == "end" and stride > 1:  # the first frame of a video alone has a latent frame of its own
            frames = frames[1:]
            sound = audio_of(path, start=clip.start + 1 / spec.fps, stop=clip.stop)
            if not len(frames):
                raise InputError(f"clip '{path}' has one frame: give it as the end picture")
        given = given_clip(frames, 0 if cut == "start" else 1, stride, f"clip '{path.name}'")
        made.append(replace(given, sound=sound))
    told += audio_remarks([each.sound for each in made if each is not None and each.sound is not None])
    return made[0], made[1], told


def sounds_of(given: Sequence[Given], timeline: Timeline) -> list[Audio]:
    """The sounds of clips, each from where its clip begins in the video."""
    fps = Fraction(timeline.fps).limit_denominator(1001)
    return [
        replace(each.sound, at=timeline.frames_of(each.at).start / fps)
        for each in given
        if each.sound is not None
    ]


def with_copies(
    frames: Iterator[Frames], given: Sequence[Given], timeline: Timeline, first: int = 0
) -> Iterator[Frames]:
    """The frames of a video from number ``first`` on, those of clips as they were given."""
    clips = [(timeline.frames_of(each.at).start, each.pixels) for each in given if each.clip]
    for number, frame in enumerate(frames, first):
        inside = (pixels[number - start] for start, pixels in clips if 0 <= number - start < len(pixels))
        yield next(inside, frame)


def given_clip(frames: Frames, at: int, stride: int, told: str) -> Given:
    """Frames (F, H, W, 3) of a clip from latent frame ``at`` on: F is 1 + s n at 0, and s n elsewhere."""
    latents = -(-(len(frames) - (at == 0)) // stride) + (at == 0)
    digest = hashlib.sha256(f"{frames.shape}".encode() + frames.tobytes()).hexdigest()
    return Given(at=at, latents=latents, pixels=frames, digest=digest, told=told, clip=True)


def latent_at(keyframe: Keyframe, timeline: Timeline) -> int:
    """The latent frame of a keyframe.

    Raises:
        InputError: a time after the end.
    """
    if keyframe.at is None:
        return timeline.latent_frames - 1
    # A time may be so late that its frame is no number any more.
    frame = math.floor(min(keyframe.at * timeline.fps, timeline.frames) + 0.5)
    if frame >= timeline.frames:
        raise InputError(
            f"{keyframe.told}: the video has {timeline.seconds:.2f} s; give an earlier time, or ask for more"
        )
    return timeline.latent_of(frame)


def check_apart(given: Sequence[Given], timeline: Timeline) -> None:
    """See that no two of what is given stand at the same latent frame.

    Raises:
        InputError: two do.
    """
    held: dict[int, Given] = {}
    for each in sorted(given, key=lambda one: one.at):
        for latent in each.frames:
            if latent in held:
                first, apart = timeline.frames_of(latent).start, timeline.stride / timeline.fps
                raise InputError(
                    f"{held[latent].told} and {each.told} fall on one latent frame, at frame {first}: keep "
                    f"them {apart:.2f} s apart, or leave one out"
                )
            held[latent] = each


def unseen(plan: Plan, given: Sequence[Given]) -> str | None:
    """The first of what is known that a section beside it does not see, for people: there it would jump.

    In a loop the start is known at the end as well.
    """
    again = range(plan.shown.latent_frames, plan.timeline.latent_frames)
    known = dict.fromkeys(again, "the start that its end leads to")
    known |= {frame: each.told for each in given for frame in each.frames}
    for section in plan.sections:
        beside = {at for span in section.spans for at in (span.start - 1, span.stop)} & known.keys()
        # Only then, for a tail may be all that is before it.
        missed = beside and beside - {*section.context_frames, *section.candidates}
        if missed:
            return known[min(missed)]
    return None
