"""What every row of a suite is asked for: a picture, a prompt and a length, clip by clip.

OUT/clips/clip-000.png, clip-000.txt    so that other tools can be asked for the same
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from framepack.data.captions import caption
from framepack.data.world import Scene
from framepack.errors import InputError
from framepack.evaluation.revisit import prompt_of, revisit_scenes
from framepack.generation.decode import to_uint8
from framepack.models.bundle import Bundle
from framepack.training.check import HELD_OUT, held_out_scenes
from framepack.video.images import read_image

NAMES = {"clips": "clip-{:03d}", "revisits": "revisit-{:03d}"}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One clip.

    name: of its files, in every row. prompt: as ``framepack generate`` takes it.
    picture: uint8 (H, W, 3) that it starts from; None is text-to-video.
    scene: of the procedural world, which can draw the truth; None for pictures and prompts of a user.
    """

    name: str
    prompt: str
    picture: NDArray[np.uint8] | None
    scene: Scene | None = None


def held_out(count: int, frames: int, size: tuple[int, int]) -> list[Scene]:
    """Scenes of ``size`` (H, W) never trained on, with one motion and one sky, so that their words hold."""
    return [
        replace(scene, motions=scene.motions[:1], skies=(scene.skies[0],) * 2)
        for scene in islice(held_out_scenes(frames, size), count)
    ]


def world_clips(count: int, frames: int, size: tuple[int, int]) -> list[Asked]:
    """Held-out scenes of the procedural world of ``size`` (H, W), from their first frame."""
    return [
        Asked(
            name=NAMES["clips"].format(index),
            prompt=caption(scene.words(0, frames), "en", np.random.default_rng([HELD_OUT, index])),
            picture=scene.render([0], *size)[0],
            scene=scene,
        )
        for index, scene in enumerate(held_out(count, frames, size))
    ]


def revisit_clips(count: int, frames: int, size: tuple[int, int]) -> list[Asked]:
    """Held-out panoramas, on which what left the view comes back. Raises InputError: see `revisit_scenes`."""
    return [
        Asked(
            name=NAMES["revisits"].format(index),
            prompt=prompt_of(scene, frames),
            picture=scene.render([0], *size)[0],
            scene=scene,
        )
        for index, scene in enumerate(revisit_scenes(count, frames, size))
    ]


def users_clips(folder: Path, count: int) -> list[Asked]:
    """The first prompts of a folder of .txt files, by name, each with the picture of the same name if any.

    Raises:
        InputError: no such folder, no prompts in it, or fewer than ``count``.
    """
    texts = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if len(texts) < max(count, 1):
        raise InputError(
            f"'{folder}' has {len(texts)} prompts for {count} clips: give a folder of .txt files, each with "
            "a picture of the same name for image-to-video, or lower --clips"
        )
    made = []
    for text in texts[:count]:
        pictures = [path for path in (text.with_suffix(end) for end in PICTURES) if path.is_file()]
        picture = np.asarray(read_image(pictures[0])) if pictures else None
        made.append(Asked(name=text.stem, prompt=text.read_text(encoding="utf-8").strip(), picture=picture))
    return made


@torch.inference_mode()
def through_codec(bundle: Bundle, drawn: NDArray[np.uint8], batch: int = 16) -> NDArray[np.uint8]:
    """(N, H, W, 3) encoded and decoded: the best that a generator of latents could do."""
    codec, parts = bundle.codec, []
    for start in range(0, len(drawn), batch):
        pixels = torch.from_numpy(drawn[start : start + batch]).permute(3, 0, 1, 2)[None]
        video = pixels.float() / 127.5 - 1
        parts.append(to_uint8(codec.decode(codec.encode(video))[0]).cpu().numpy())
    return np.concatenate(parts)
