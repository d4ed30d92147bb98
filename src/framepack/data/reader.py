"""Reads a cache of encoded clips for training.

Legend: B clips of a batch, N latents, C latent channels, h w their grid, L prompt tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from framepack.conditioning.embeds import Conditioning
from framepack.data.encoded import MANIFEST, PLAN, TEXTS, VERSION, clip_of, latent_file, read_json, text_file
from framepack.data.fingerprint import conditioner_digest, module_digest, video_digest
from framepack.data.latents import send
from framepack.data.videos import Video
from framepack.errors import InputError
from framepack.video.clips import read_frames
from framepack.video.resize import Size

OPEN = 256
"""Files that stay mapped."""
SAMPLED = 64
"""Clips that tell the spread of channels."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A clip of a cache: ``latents`` of them, from ``start`` (s) of ``file``."""

    clip: int
    shard: int
    latents: int
    bucket: Size
    frames: int
    caption: int
    file: str
    start: float
    seconds: float


class EncodedClips:
    """Clips by number, 0 to ``len(self)`` - 1; files are mapped, and what is asked for goes to ``device``.

    Args:
        held_out: share of each clip's last latents that no draw reaches, and ``longest`` and ``lengths`` do
            not count. What comes before them owes nothing to them, for codecs are causal in time.
        section: latents below which what is left of a clip is not drawn.

    Attributes:
        settings: those that the cache was made with.
        entries: what is known of each clip. captions: distinct ones, the empty one first.
        rejected: (name, reason) of what gave no clip.

    Raises:
        InputError: no cache, or one that is not finished.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        *,
        held_out: float = 0.0,
        section: int = 1,
    ) -> None:
        if not (folder / MANIFEST).is_file():
            state = "is not finished" if (folder / PLAN).is_file() else "holds no cache"
            raise InputError(f"'{folder}' {state}: make it with framepack data cache")
        held = read_json(folder / MANIFEST)
        if held.get("version") != VERSION:
            raise InputError(f"'{folder}' holds a cache of another version: make it again")
        self.folder, self.device = folder, torch.device(device)
        self.settings: dict[str, Any] = held["settings"]
        self.entries = tuple(
            Entry(**row | {"bucket": (row["bucket"][0], row["bucket"][1])}) for row in held["clips"]
        )
        self.captions: tuple[str, ...] = tuple(held["captions"])
        self.rejected: tuple[tuple[str, str], ...] = tuple((name, why) for name, why in held["rejected"])
        self.held_out = held_out
        whole = np.array([entry.latents for entry in self.entries])
        left = whole - np.rint(held_out * whole).astype(whole.dtype)
        self.lengths = np.where(left >= section, left, 0)
        """Latents of each clip that are drawn from, its first ones; 0 of a clip that is not drawn."""
        sizes = sorted({entry.bucket for entry in self.entries})
        # Of each bucket, longest clips first, so that those long enough are a beginning.
        self._buckets = [
            sorted(
                (n for n, e in enumerate(self.entries) if e.bucket == size), key=lambda n: -self.lengths[n]
            )
            for size in sizes
        ]
        self._latents = lru_cache(OPEN)(lambda shard: load_file(latent_file(folder, shard)))
        self._texts = lru_cache(OPEN)(lambda number: _text(text_file(folder, number)))

    def check(self, codec: Any, conditioner: Any) -> None:
        """See that the cache was made with these parts.

        Raises:
            InputError: with others, so that a model would be trained on what it never gets to see.
        """
        found = {"codec": module_digest(codec), "conditioner": conditioner_digest(conditioner)}
        for name, digest in found.items():
            if self.settings[name] != digest:
                raise InputError(
                    f"'{self.folder}' was made with another {name} than the model's: make one for this model"
                )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def longest(self) -> int:
        """Latents of the longest clip that are drawn from."""
        return int(self.lengths.max())

    def draw(self, rng: np.random.Generator, count: int, frames: int = 1) -> list[int]:
        """Random clips of at least ``frames`` latents, all of one bucket; every such clip is as likely.

        Raises:
            InputError: no clip is as long.
        """
        fitting = [int((self.lengths[clips] >= frames).sum()) for clips in self._buckets]
        if not sum(fitting):
            raise InputError(
                f"no clip of '{self.folder}' has {frames} latents, the longest has {self.longest}: make "
                "longer clips, or train with shorter plans"
            )
        bucket = rng.choice(len(fitting), p=np.array(fitting) / sum(fitting))
        return [self._buckets[bucket][n] for n in rng.integers(0, fitting[bucket], count)]

    def pictures(self, clip: int) -> Iterator[np.ndarray]:
        """The frames of a clip, uint8 (H, W, 3), read anew from the video that it was made of.

        Raises:
            InputError: the video is not at its place any more, or is another one now, or is damaged.
        """
        plan, entry = read_json(self.folder / PLAN), self.entries[clip]
        row = plan["clips"][entry.clip]
        if "videos" not in plan:
            raise InputError(f"'{self.folder}' does not say where its videos are: make it again")
        told = plan["videos"][row["video"]]
        video = Video(**told | {"path": Path(told["path"])})
        if not video.path.is_file() or video_digest(video) != list(plan["sources"].values())[row["video"]]:
            raise InputError(f"'{video.path}' is not the video any more that '{self.folder}' was made of")
        yield from read_frames(clip_of(row, video))

    def latents(self, clips: Sequence[int], frames: Sequence[Sequence[int]]) -> torch.Tensor:
        """Latents (one list of times a clip, of equal lengths) of one bucket -> (B, C, N, h, w), float32."""
        rows = [self._of(clip, "latents")[list(at)] for clip, at in zip(clips, frames, strict=True)]
        return send(torch.stack(rows).transpose(1, 2).float(), self.device)

    def conditioning(
        self, clips: Sequence[int], keep: Sequence[bool] | None = None, *, image: bool = False
    ) -> Conditioning:
        """Captions of clips as the conditioner made them, on ``device``.

        Args:
            keep: false for a clip that gets the empty prompt instead.
            image: with the tokens of each clip's first frame, where the conditioner looks at pictures; right
                for draws that have it as their start frame, so those from latent 0 on.
        """
        kept = [True] * len(clips) if keep is None else list(keep)
        wanted = [self.entries[clip].caption if k else 0 for clip, k in zip(clips, kept, strict=True)]
        rows = [self._caption(number) for number in wanted]
        made = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        shown = image and f"{self.entries[clips[0]].clip}.image" in self._latents(
            self.entries[clips[0]].shard
        )
        return Conditioning(
            prompt=made["prompt"],
            mask=made.get("mask"),
            pooled=made.get("pooled"),
            image=torch.stack([self._of(clip, "image") for clip in clips]) if shown else None,
        ).to(self.device)

    def channel_std(self) -> torch.Tensor:
        """Standard deviation of each channel (C,), over some clips, on ``device``."""
        drawn = np.flatnonzero(self.lengths)[:: max(1, np.count_nonzero(self.lengths) // SAMPLED)]
        taken = [
            self._of(clip, "latents")[: self.lengths[clip] : 4].float().transpose(0, 1)
            for clip in drawn.tolist()
        ]
        return torch.cat([each.flatten(1) for each in taken], dim=1).std(dim=1).to(self.device)

    def _of(self, clip: int, name: str) -> torch.Tensor:
        entry = self.entries[clip]
        return self._latents(entry.shard)[f"{entry.clip}.{name}"]

    def _caption(self, number: int) -> dict[str, torch.Tensor]:
        tensors, length = self._texts(number // TEXTS)
        row = {
            name: tensors[f"{number}.{name}"]
            for name in ("prompt", "mask", "pooled")
            if f"{number}.{name}" in tensors
        }
        prompt = row["prompt"]
        padded = prompt.new_zeros(length, prompt.shape[1])
        padded[: len(prompt)] = prompt
        return row | {"prompt": padded}


def _text(file: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Tensors of captions by name, and L."""
    with safe_open(file, framework="pt") as held:
        return load_file(file), int(held.metadata()["length"])
