"""What of a request is settled before any weight is loaded: size, length, what is given, and the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from framepack.errors import InputError
from framepack.generation.given import (
    Given,
    Keyframe,
    check_apart,
    given_clips,
    given_picture,
    latent_at,
    open_picture,
    unseen,
)
from framepack.generation.request import GenerateRequest
from framepack.models.spec import ModelSpec
from framepack.planning.method import Method
from framepack.planning.planners import Plan, plan, tiles
from framepack.planning.prompts import script_of
from framepack.planning.script import Script
from framepack.planning.timeline import Timeline
from framepack.video.buckets import read_size
from framepack.video.clips import track_of
from framepack.video.resize import nearest_bucket

if TYPE_CHECKING:
    from PIL.Image import Image

SECONDS = 5.0
"""Length of a video when none is given."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a request comes to for one model: all integers, no tensors.

    Attributes:
        script: the prompts by time.
        size: (height, width) in pixels. grid: the same on the latent grid.
        picture: the start image, or the first frame of the clip that the video goes on from, at ``size``.
        given: all that stands in the video as it is, pictures and clips. remarks: a line each, for the user.
    """

    method: Method
    timeline: Timeline
    plan: Plan
    script: Script
    size: tuple[int, int]
    grid: tuple[int, int]
    picture: Image | None
    given: tuple[Given, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def context_tokens(self) -> int:
        """The most tokens of history, tail included, that a section sees."""
        return self.plan.context_tokens(self.grid, "tail", "history")


def select(request: GenerateRequest, spec: ModelSpec) -> Selection:
    """Settle method, length, size, picture and plan of a request.

    Raises:
        InputError: a length, size, picture or prompt that cannot be used.
        NotationError, UnknownNameError: a method or schedule that is neither a name nor parses.
        UntrainedMethodError: the model was not trained for it, and ``untrained`` is off.
    """
    method = spec.method(request.method, request.schedule, untrained=request.untrained)
    if request.embedded_guidance is not None and spec.embedded_guidance is None:
        raise InputError(
            f"embedded guidance {request.embedded_guidance:g}: {spec.name} takes none, its guidance is not "
            "distilled; use guidance"
        )
    start = [] if request.image is None else [Keyframe(picture=request.image, at=0.0)]
    pictures = [(keyframe, open_picture(keyframe.picture)) for keyframe in (*start, *request.keyframes)]
    clips = [path for path in (request.from_clip, request.to_clip) if path is not None]
    shapes = [*(track_of(clip).size for clip in clips), *((p.height, p.width) for _, p in pictures)]
    size = _size(request, spec, shapes[0] if shapes else None)
    grid = (size[0] // spec.spatial_stride, size[1] // spec.spatial_stride)
    if spec.pyramid is not None:
        spec.pyramid.check(request.steps or spec.steps, grid, spec.base_kernel)
    before, after, told = given_clips(request.from_clip, request.to_clip, spec, size)
    timeline = _around(_timeline(request, spec, method), before, after)
    if request.loop and timeline.trimmed_frames:
        timeline = _looping(timeline, request)
    given = [] if before is None else [before]
    given += [given_picture(p, size, latent_at(k, timeline), k.told) for k, p in pictures]
    given += [] if after is None else [replace(after, at=timeline.latent_frames - after.latents)]
    check_apart(given, timeline)
    timeline = replace(timeline, known=tuple(frame for each in given for frame in each.frames))
    chosen, remarks = _that_sees(request, spec, timeline, given)
    script = script_of(request.prompt, tiles(timeline, chosen.method), timeline)
    return Selection(
        method=chosen.method,
        timeline=timeline,
        plan=chosen,
        script=script,
        size=size,
        grid=grid,
        # A keyframe at the very start is the start picture, however it was written.
        picture=next((each.picture for each in given if each.at == 0), None),
        given=tuple(given),
        remarks=(*told, *remarks, *_unheard(script, timeline, chosen.method)),
    )


def _that_sees(
    request: GenerateRequest, spec: ModelSpec, timeline: Timeline, given: Sequence[Given]
) -> tuple[Plan, tuple[str, ...]]:
    """The plan by the method asked for; where none is, and the model's own would jump, by one that does not.

    What is told: that another method was taken, or that the one asked for jumps.
    """

    def planned(name: str | None) -> tuple[Plan, str | None]:
        method = spec.method(name, request.schedule, untrained=request.untrained)
        script = script_of(request.prompt, tiles(timeline, method), timeline)
        made = plan(timeline, method, loop=request.loop, script=script)
        return made, unseen(made, given)

    wanted, missed = planned(request.method)
    if missed is None:
        return wanted, ()
    blind = f"sees nothing of {missed} from the section beside it"
    for name in spec.methods:
        other, also_missed = planned(name)
        if also_missed is None and request.method is None:
            return other, (f"made by method {name}: {wanted.method.order} {blind}",)
        if also_missed is None:
            return wanted, (
                f"method {request.method} {blind}: the video may jump there, with {name} it does not",
            )
    told = f"no method of {spec.name} sees {missed} from the section beside it: the video may jump there"
    return wanted, (told,)


def _unheard(script: Script, timeline: Timeline, method: Method) -> list[str]:
    """Prompts that hold for less than a section, and so for none."""
    return [
        f"the prompt from {turn.at:g} s on is in no section, for the middle of none falls in its time: "
        "have it hold longer"
        for turn, span in script.switches(tiles(timeline, method), timeline)
        if span is None
    ]


def _timeline(request: GenerateRequest, spec: ModelSpec, method: Method) -> Timeline:
    fps, stride, clip = spec.fps, spec.temporal_stride, spec.clip(method)
    # A model whose codec takes a section at a time counts a start picture by itself.
    known = () if request.image is None else (0,)
    if request.frames is not None:
        timeline = Timeline(frames=request.frames, fps=fps, stride=stride, known=known, clip=clip)
        # One limit for both ways of asking; seconds state it in their own words.
        Timeline.from_seconds(timeline.seconds, fps=fps, stride=stride)
    else:
        seconds = SECONDS if request.seconds is None else request.seconds
        timeline = Timeline.from_seconds(seconds, fps=fps, stride=stride, known=known, clip=clip)
    return timeline


def _looping(timeline: Timeline, request: GenerateRequest) -> Timeline:
    """The timeline to the end of its last latent frame, as a loop needs it.

    Raises:
        InputError: another number of frames was asked for.
    """
    if request.frames is not None:
        raise InputError(
            f"a loop of {request.frames} frames ends within a latent frame: ask for "
            f"{request.frames + timeline.trimmed_frames}"
        )
    return replace(timeline, frames=timeline.padded_frames)


def _around(timeline: Timeline, before: Given | None, after: Given | None) -> Timeline:
    """The timeline with room for a clip before what is asked for, and for one after it."""
    frames = timeline.frames + (0 if before is None else len(before.pixels))
    if after is not None:
        # Whole latent frames before it, so that its own are its own.
        latents = replace(timeline, frames=frames, known=()).latent_frames + after.latents
        frames = 1 + (latents - 1) * timeline.stride
    return replace(timeline, frames=frames)


def _size(request: GenerateRequest, spec: ModelSpec, picture: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width), one of the model's buckets unless ``untrained``."""
    if request.size == "auto":
        return spec.buckets[0] if picture is None else nearest_bucket(picture, spec.buckets)
    height, width = read_size(request.size, _shown(spec.buckets[0]))
    if (height, width) in spec.buckets:
        return height, width
    if not request.untrained:
        choices = ", ".join(_shown(bucket) for bucket in spec.buckets)
        raise InputError(
            f"size {width}x{height}: {spec.name} was trained for {choices}; choose one of these, "
            "or add --untrained to try it all the same"
        )
    stride = spec.spatial_stride
    largest = 4 * max(max(bucket) for bucket in spec.buckets)
    if width % stride or height % stride or not (stride <= width <= largest and stride <= height <= largest):
        raise InputError(f"size {width}x{height}: both must be multiples of {stride}, {stride} to {largest}")
    return height, width


def _shown(bucket: tuple[int, int]) -> str:
    return f"{bucket[1]}x{bucket[0]}"
