"""What can be settled about a video from Python, and the forms of pictures given and frames got."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from PIL import Image

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError
from framepack.generation.given import Keyframe
from framepack.generation.request import MAX_SEED
from framepack.models.lora import Lora
from framepack.video.images import as_rgb

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = get_args(OutputType)
Picture = Path | str | Image.Image | np.ndarray
Embeds = Conditioning | torch.Tensor

RENAMED = {"num_frames": "frames", "num_inference_steps": "steps", "guidance_scale": "guidance"}
"""Settings that diffusers' pipelines name otherwise than the command line."""


class Settings(TypedDict, total=False):
    """What can be settled about a video; all that is left out is the model's own choice.

    num_frames, seconds: length, one of the two; 5 s when neither is given.
    height, width: one of the model's sizes, in pixels; both or none.
    method, schedule: as ``framepack generate`` takes them. untrained: allow all of them, and all sizes.
    num_inference_steps: per section. solver: euler or unipc.
    step_cache: some steps reuse earlier ones: ``first-block``, ``mag`` or ``taylorseer``, with ``=`` and a
        value.
    guidance_scale: of classifier-free guidance, 1 is none. embedded_guidance: of distilled models.
    seed: of the noise. generator: draws the seed where none is given; with neither it is 0.
    prompt_embeds, negative_prompt_embeds: in place of the prompts; a tensor is (1, L, D), and families that
        take more than that need a ``Conditioning``.
    loras: for this call alone, in place of those that were loaded.
    last_image: picture that the video ends on. keyframes: pictures at other times, ``Keyframe`` each.
    from_clip, to_clip: video files that it goes on from and leads to, whose frames are its first and last;
        copy_clips: shown as they are. loop: its end leads to its start.
    """

    negative_prompt: str
    num_frames: int | None
    seconds: float | None
    height: int | None
    width: int | None
    method: str | None
    schedule: str | None
    untrained: bool
    num_inference_steps: int | None
    solver: str | None
    step_cache: str | None
    guidance_scale: float | None
    embedded_guidance: float | None
    seed: int | None
    generator: torch.Generator | None
    prompt_embeds: Embeds | None
    negative_prompt_embeds: Embeds | None
    loras: Sequence[str | Path | Lora] | None
    last_image: Picture | None
    keyframes: Sequence[Keyframe]
    from_clip: str | Path | None
    to_clip: str | Path | None
    copy_clips: bool
    loop: bool


def read_picture(image: Picture | None) -> Path | Image.Image | None:
    """A picture as ``GenerateRequest`` takes it. Raises InputError: an array of another kind."""
    if image is None or isinstance(image, Path):
        return image
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"image of {image.dtype} {image.shape}: give uint8 (height, width, 3)")
        return Image.fromarray(image)
    return as_rgb(image)


def draw_seed(generator: torch.Generator) -> int:
    """A run's seed; the generator goes on by one draw."""
    return int(torch.randint(MAX_SEED, (1,), generator=generator, device=generator.device))


def read_loras(files: Sequence[str | Path | Lora]) -> tuple[Lora, ...]:
    """LoRAs with their weights. Raises InputError: no such file, or no such weight."""
    return tuple(file if isinstance(file, Lora) else Lora.parse(str(file)) for file in files)


def shown(frames: np.ndarray, output_type: OutputType) -> Any:
    """uint8 (F, H, W, 3) as ``output_type`` has it."""
    if output_type == "pil":
        return [Image.fromarray(frame) for frame in frames]
    scaled = frames.astype(np.float32) / 255
    return scaled if output_type == "np" else torch.from_numpy(scaled).permute(0, 3, 1, 2)
