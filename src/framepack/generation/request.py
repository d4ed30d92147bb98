"""What a user asks for, and the parts of it that are settled before any weight is loaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framepack.errors import InputError
from framepack.models.lora import Lora
from framepack.models.spec import ModelSpec
from framepack.planning.method import Method
from framepack.planning.planners import Plan, plan
from framepack.planning.timeline import Timeline
from framepack.video.io import read_image
from framepack.video.resize import nearest_bucket, to_bucket

if TYPE_CHECKING:
    from PIL.Image import Image

SECONDS = 5.0
"""Length of a video when none is given."""
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_SEED = 2**63 - 1
MAX_PROMPT = 10_000
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One video, as asked for. ``None`` stands for the model's own choice throughout.

    Args:
        model: ``bundled``, a folder, a safetensors file or a hub id, see ``models.source``.
        parts: folders or hub ids of what the model comes without, such as text encoders.
        loras: LoRA files with their weights, added up.
        prompt, negative_prompt: what to show, and what not to.
        image: picture that the video starts from, a file or loaded; without it, text-to-video.
        seconds, frames: length, one of the two; 5 s when neither is given. At most a day.
        method: a friendly name or a string in the paper's notation.
        schedule: instead of the method's own: a name, ``lambda=X``, ``budget=X`` or notation.
        untrained: allow methods and sizes that the model was not trained for.
        size: ``auto``, the model's size nearest in shape to the picture, or ``WxH`` in pixels.
        seed: 0 to 2^63 - 1.
        steps, guidance: denoising steps per section, classifier-free guidance scale (1: none).
        embedded_guidance: scale of distilled guidance, for models that take it. solver: euler or unipc.
        device: ``auto`` or a PyTorch device. dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        out: the MP4; ``outputs/{job}.mp4`` by default. workdir: run folder; ``{job}`` beside ``out``.
        overwrite: replace a file of another origin at ``out``.

    Raises:
        InputError: a value that is out of range by itself.
    """

    model: str = "bundled"
    parts: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    prompt: str = ""
    negative_prompt: str = ""
    image: Path | Image | None = None
    seconds: float | None = None
    frames: int | None = None
    method: str | None = None
    schedule: str | None = None
    untrained: bool = False
    size: str = "auto"
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    embedded_guidance: float | None = None
    solver: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    out: Path | None = None
    workdir: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.seconds is not None and self.frames is not None:
            raise InputError(f"{self.seconds:g} seconds and {self.frames} frames were both given: give one")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed {self.seed} must be 0 to {MAX_SEED}: choose one in that range")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"{self.steps} steps: choose 1 to {MAX_STEPS}")
        for name, scale in (("guidance", self.guidance), ("embedded guidance", self.embedded_guidance)):
            if scale is not None and not (math.isfinite(scale) and 0 <= scale <= MAX_GUIDANCE):
                raise InputError(f"{name} {scale:g} must be 0 to {MAX_GUIDANCE:g}; 1 is none")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype '{self.dtype}' is not known: choose one of {', '.join(DTYPES)}")
        for name, text in (("prompt", self.prompt), ("negative prompt", self.negative_prompt)):
            check_prompt(text, name)


def check_prompt(text: str, name: str = "prompt") -> None:
    """Refuse a prompt that is too long, or that no file could hold.

    Raises:
        InputError: more than ``MAX_PROMPT`` characters, or bytes that were not UTF-8.
    """
    if len(text) > MAX_PROMPT:
        raise InputError(f"the {name} has {len(text)} characters: at most {MAX_PROMPT} are read, shorten it")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python keeps such bytes of a command line as lone surrogates
        raise InputError(
            f"the {name} is not UTF-8 at character {error.start + 1}: give it as UTF-8 text"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a request comes to for one model: all integers, no tensors.

    Attributes:
        size: (height, width) in pixels. grid: the same on the latent grid.
        picture: the start image, cropped and resized to ``size``.
    """

    method: Method
    timeline: Timeline
    plan: Plan
    size: tuple[int, int]
    grid: tuple[int, int]
    picture: Image | None

    @property
    def context_tokens(self) -> int:
        """The most tokens of history, tail included, that a section sees."""
        return self.plan.context_tokens(self.grid, "tail", "history")


def select(request: GenerateRequest, spec: ModelSpec) -> Selection:
    """Settle method, length, size, picture and plan of a request.

    Raises:
        InputError: a length, size or picture that cannot be used.
        NotationError, UnknownNameError: a method or schedule that is neither a name nor parses.
        UntrainedMethodError: the model was not trained for it, and ``untrained`` is off.
    """
    method = spec.method(request.method, request.schedule, untrained=request.untrained)
    timeline = _timeline(request, spec, method)
    if request.embedded_guidance is not None and spec.embedded_guidance is None:
        raise InputError(
            f"embedded guidance {request.embedded_guidance:g}: {spec.name} takes none, its guidance is not "
            "distilled; use guidance"
        )
    given = request.image
    image = read_image(given) if isinstance(given, Path) else given
    size = _size(request, spec, None if image is None else (image.height, image.width))
    grid = (size[0] // spec.spatial_stride, size[1] // spec.spatial_stride)
    if spec.pyramid is not None:
        spec.pyramid.check(request.steps or spec.steps, grid, spec.base_kernel)
    return Selection(
        method=method,
        timeline=timeline,
        plan=plan(timeline, method),
        size=size,
        grid=grid,
        picture=None if image is None else to_bucket(image, size),
    )


def _timeline(request: GenerateRequest, spec: ModelSpec, method: Method) -> Timeline:
    known, fps, stride = () if request.image is None else (0,), spec.fps, spec.temporal_stride
    clip = spec.clip(method)
    if request.frames is not None:
        timeline = Timeline(frames=request.frames, fps=fps, stride=stride, known=known, clip=clip)
        # One limit for both ways of asking; seconds state it in their own words.
        Timeline.from_seconds(timeline.seconds, fps=fps, stride=stride)
    else:
        seconds = SECONDS if request.seconds is None else request.seconds
        timeline = Timeline.from_seconds(seconds, fps=fps, stride=stride, known=known, clip=clip)
    return timeline


def _size(request: GenerateRequest, spec: ModelSpec, picture: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width), one of the model's buckets unless ``untrained``."""
    if request.size == "auto":
        return spec.buckets[0] if picture is None else nearest_bucket(picture, spec.buckets)
    found = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", request.size.strip())
    if found is None:
        raise InputError(
            f"size '{request.size}' is not WIDTHxHEIGHT: give one such as {_shown(spec.buckets[0])}"
        )
    width, height = int(found[1]), int(found[2])
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
