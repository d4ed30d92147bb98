"""Encode what a plan of a cache holds: captions, clips, and first frames where a conditioner looks at them.

Legend: n latents of a clip, C latent channels, h w their grid, F frames, L prompt tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from framepack.data.clips import Clip
from framepack.data.encoded import (
    DTYPES,
    MANIFEST,
    VERSION,
    Encoding,
    Plan,
    latent_file,
    text_file,
    whole,
    write_json,
)
from framepack.data.videos import Rejected
from framepack.errors import InputError
from framepack.video.clips import read_frames

Tell = Callable[[int, int], None]
"""(done, all)."""


def build_cache(
    folder: Path,
    plan: Plan,
    encoding: Encoding,
    *,
    part: tuple[int, int] = (0, 1),
    on_text: Tell = lambda done, total: None,
    on_frames: Tell = lambda done, total: None,
    on_rejected: Callable[[Rejected], None] = lambda rejected: None,
) -> bool:
    """Write the files of a plan that are missing, and the manifest when all are there; say whether they are.

    Args:
        part: (i, n) writes every n-th file from the i-th on, so that n machines share the work.
        on_rejected: told of clips that cannot be decoded, which are left out.

    Raises:
        OutputError: a file cannot be written.
    """
    turn = slice(part[0], None, part[1])
    texts = list(enumerate(plan.texts))[turn]
    for done, (number, captions) in enumerate(texts, start=1):
        file = text_file(folder, number)
        if not file.is_file():
            prompts = [plan.captions[caption] for caption in captions]
            tensors, length = _encode_text(encoding.conditioner, captions, prompts)
            _save(file, tensors, {"length": str(length)})
        on_text(done, len(texts))
    shards = list(enumerate(plan.shards))[turn]
    total = sum(plan.clips[clip].frames for _, shard in shards for clip in shard)
    done = 0
    for number, shard in shards:
        file = latent_file(folder, number)
        if file.is_file():
            done += sum(plan.clips[clip].frames for clip in shard)
            on_frames(done, total)
            continue
        tensors, rejected = {}, {}
        pictures: dict[int, np.ndarray] = {}
        for clip in shard:
            try:
                tensors[f"{clip}.latents"], pictures[clip] = encode_clip(plan.clips[clip], encoding)
            except InputError as error:
                rejected[clip] = Rejected(plan.clips[clip].video.name, str(error))
                on_rejected(rejected[clip])
            done += plan.clips[clip].frames
            on_frames(done, total)
        if pictures and encoding.conditioner.sees_picture:
            tokens = encoding.conditioner.look([Image.fromarray(picture) for picture in pictures.values()])
            for clip, token in zip(pictures, tokens, strict=True):
                tensors[f"{clip}.image"] = token.contiguous()
        _save(file, tensors, {"rejected": json.dumps([[r.name, r.reason] for r in rejected.values()])})
    return _finish(folder, plan)


@torch.inference_mode()
def encode_clip(clip: Clip, encoding: Encoding) -> tuple[torch.Tensor, np.ndarray]:
    """Latents (n, C, h, w) of a clip, coded as one video, and its first frame (H, W, 3).

    Raises:
        InputError: damage, or latents that the dtype cannot hold; the message stands after the file's name.
    """
    pixels = np.empty((clip.frames, *clip.bucket, 3), np.uint8)
    for number, frame in enumerate(read_frames(clip)):
        pixels[number] = frame
    video = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    latents = encoding.codec.encode(video)[0].transpose(0, 1).to(DTYPES[encoding.dtype]).cpu()
    if not latents.isfinite().all():
        raise InputError(
            f"has latents that are not finite in {encoding.dtype}, from {float(clip.start):.2f} s"
        )
    return latents.contiguous(), pixels[0].copy()


@torch.inference_mode()
def _encode_text(
    conditioner: Any, captions: range, prompts: list[str]
) -> tuple[dict[str, torch.Tensor], int]:
    """Tensors by name, and L. Zeros at the end of prompts without a mask are left out."""
    made = conditioner.encode(prompts)
    tensors: dict[str, torch.Tensor] = {}
    for row, caption in enumerate(captions):
        prompt = made.prompt[row]
        if made.mask is None:
            used = prompt.ne(0).any(dim=1).nonzero()
            prompt = prompt[: int(used[-1]) + 1 if len(used) else 1]
        named = {"prompt": prompt}
        named |= {} if made.mask is None else {"mask": made.mask[row]}
        named |= {} if made.pooled is None else {"pooled": made.pooled[row]}
        tensors |= {f"{caption}.{name}": tensor.cpu().clone() for name, tensor in named.items()}
    return tensors, made.prompt.shape[1]


def _finish(folder: Path, plan: Plan) -> bool:
    """Write the manifest if every file is there."""
    shards = [latent_file(folder, number) for number in range(len(plan.shards))]
    texts = [text_file(folder, number) for number in range(len(plan.texts))]
    if not all(file.is_file() for file in (*shards, *texts)):
        return False
    rejected = [[r.name, r.reason] for r in plan.rejected]
    numbers = {caption: number for number, caption in enumerate(plan.captions)}
    clips = []
    for number, (shard, file) in enumerate(zip(plan.shards, shards, strict=True)):
        with safe_open(file, framework="numpy") as held:
            rejected += json.loads(held.metadata()["rejected"])
            shapes = {name: held.get_slice(name).get_shape() for name in list(held.keys())}
        for clip in shard:
            if f"{clip}.latents" in shapes:
                row = plan.clips[clip]
                clips.append(
                    {
                        "clip": clip,
                        "shard": number,
                        "latents": shapes[f"{clip}.latents"][0],
                        "bucket": row.bucket,
                        "frames": row.frames,
                        "caption": numbers[row.video.caption],
                        "file": row.video.name,
                        "start": round(float(row.start), 6),
                        "seconds": round(row.seconds, 6),
                    }
                )
    if not clips:
        raise InputError(
            f"none of {len(plan.clips)} clips can be decoded; '{rejected[-1][0]}' {rejected[-1][1]}"
        )
    said = {"version": VERSION, "settings": plan.settings, "clips": clips, "captions": plan.captions}
    write_json(folder / MANIFEST, said | {"rejected": rejected})
    return True


def _save(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    with whole(file) as part:
        save_file(tensors, part, metadata)
