"""What tells one file from another, and one part of a model from another, without reading all of a film."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

import torch

from framepack.data.videos import Video

BLOCK, BLOCKS = 2**16, 16
WEIGHTS = (".safetensors", ".json", ".txt", ".model")


def content_digest(file: IO[bytes], offset: int, size: int) -> str:
    """sha256 of a size and of ``BLOCKS`` blocks spread over so many bytes, of all if they are few."""
    digest = hashlib.sha256(str(size).encode())
    if size <= BLOCK * BLOCKS:
        starts = list(range(0, size, BLOCK))
    else:
        starts = [(size - BLOCK) * block // (BLOCKS - 1) for block in range(BLOCKS)]
    for start in starts:
        file.seek(offset + start)
        digest.update(file.read(min(BLOCK, size - start)))
    return digest.hexdigest()


def video_digest(video: Video) -> str:
    """Of the file's content, and of the span and the caption that go with it."""
    with video.path.open("rb") as file:
        size = video.path.stat().st_size if video.size is None else video.size
        content = content_digest(file, video.offset, size)
    said = json.dumps([content, video.caption, video.start, video.stop])
    return hashlib.sha256(said.encode()).hexdigest()


def module_digest(module: Any) -> str:
    """Of a module's weights, in float32, and of its configuration."""
    settings = {name: value for name, value in module.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def conditioner_digest(conditioner: Any) -> str:
    """Of a conditioner's weights: its own, or those in the folders that it loads them from."""
    if isinstance(conditioner, torch.nn.Module):
        return module_digest(conditioner)
    digest = hashlib.sha256(f"{conditioner.prompt_tokens} {conditioner.dtype}".encode())
    for part, folder in sorted(conditioner.parts.items()):
        if part == "vae":
            continue
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in WEIGHTS and path.is_file():
                digest.update(f"{part}/{path.relative_to(folder).as_posix()}".encode())
                with path.open("rb") as file:
                    digest.update(content_digest(file, 0, path.stat().st_size).encode())
    return digest.hexdigest()
