"""What a user asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framepack.errors import InputError
from framepack.generation.given import Keyframe
from framepack.models.lora import Lora
from framepack.models.step_cache import StepCache
from framepack.planning.prompts import read_prompt
from framepack.planning.script import Script
from framepack.resources.policy import AUTO, SPLIT, find_policy

if TYPE_CHECKING:
    from PIL.Image import Image

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
        prompt: what to show; one that changes is written by time or by section, see ``planning.prompts``.
        negative_prompt: what not to show.
        image: picture that the video starts from, a file or loaded; without it, text-to-video.
        keyframes: pictures at other times of it, the end among them.
        from_clip: a video file that it goes on from, whose frames are its first. to_clip: one that it leads
            to, whose frames are its last.
        copy_clips: show clips as they are, not as the model's codec has them.
        loop: its end leads to its start.
        seconds, frames: length without clips, one of the two; 5 s when neither is given. At most a day.
        method: a friendly name or a string in the paper's notation.
        schedule: instead of the method's own: a name, ``lambda=X``, ``budget=X`` or notation.
        untrained: allow methods and sizes that the model was not trained for.
        size: ``auto``, the model's size nearest in shape to the picture, or ``WxH`` in pixels.
        seed: 0 to 2^63 - 1.
        steps, guidance: denoising steps per section, classifier-free guidance scale (1: none).
        embedded_guidance: scale of distilled guidance, for models that take it. solver: euler or unipc.
        step_cache: some steps reuse what earlier ones computed: ``first-block``, ``mag`` or ``taylorseer``,
            with ``=`` and a value, see ``models.step_cache``. compile: have PyTorch compile the blocks first.
        attention: of diffusers' backends, by name.
        devices: how many compute each section together, or have a transformer split among them.
        device: ``auto`` or a PyTorch device. dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        memory: policy that the model is fitted into memory by, see ``resources.policy``.
        out: the MP4; ``outputs/{job}.mp4`` by default. workdir: run folder; ``{job}`` beside ``out``.
        overwrite: replace a file of another origin at ``out``.

    Raises:
        InputError: a value that is out of range by itself.
    """

    model: str = "bundled"
    parts: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    prompt: str | Script = ""
    negative_prompt: str = ""
    image: Path | Image | None = None
    keyframes: tuple[Keyframe, ...] = ()
    from_clip: Path | None = None
    to_clip: Path | None = None
    copy_clips: bool = False
    loop: bool = False
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
    step_cache: str | None = None
    compile: bool = False
    attention: str | None = None
    devices: int = 1
    device: str = "auto"
    dtype: str = "auto"
    memory: str = "full"
    out: Path | None = None
    workdir: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.seconds is not None and self.frames is not None:
            raise InputError(f"{self.seconds:g} seconds and {self.frames} frames were both given: give one")
        if self.image is not None and self.from_clip is not None:
            raise InputError("a start picture and a clip to go on from were both given: give one")
        if self.to_clip is not None and any(keyframe.at is None for keyframe in self.keyframes):
            raise InputError("an end picture and a clip to lead to were both given: give one")
        check_seed(self.seed)
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"{self.steps} steps: choose 1 to {MAX_STEPS}")
        for name, scale in (("guidance", self.guidance), ("embedded guidance", self.embedded_guidance)):
            if scale is not None and not (math.isfinite(scale) and 0 <= scale <= MAX_GUIDANCE):
                raise InputError(f"{name} {scale:g} must be 0 to {MAX_GUIDANCE:g}; 1 is none")
        if self.step_cache is not None:
            StepCache.parse(self.step_cache)
        if self.devices < 1:
            raise InputError(f"{self.devices} devices: use 1 or more")
        policy = None if self.memory == AUTO else find_policy(self.memory)
        splits = policy is not None and policy.placement == SPLIT
        if self.devices > 1 and not splits and (self.compile or self.step_cache is not None):
            what = "compiled blocks" if self.compile else f"step cache '{self.step_cache}'"
            raise InputError(f"{what} and {self.devices} devices do not go together: leave one of them out")
        if self.devices > 1 and policy is not None and not policy.for_many:
            raise InputError(
                f"memory policy '{self.memory}' and {self.devices} devices do not go together: leave one out "
                "or choose split"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"dtype '{self.dtype}' is not known: choose one of {', '.join(DTYPES)}")
        check_prompt(self.negative_prompt, "negative prompt")
        for text in (read_prompt(self.prompt) if isinstance(self.prompt, str) else self.prompt).prompts:
            check_prompt(text)


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes. Raises InputError."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed} must be 0 to {MAX_SEED}: choose one in that range")


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


def one_prompt(text: str) -> str:
    """A prompt that holds throughout, as it is read. Raises InputError: see ``check_prompt``, or several."""
    check_prompt(text)
    prompts = read_prompt(text).prompts
    if len(prompts) > 1:
        raise InputError(f"one prompt is wanted here, not several by time: take one out of '{text}'")
    return prompts[0]
