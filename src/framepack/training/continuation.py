"""How near a model's continuations come to held-out ends of clips, before it was fine-tuned and after.

The known frames of each are all real latents before a clip's held-out end, and the model goes on from there
as it does in generation: by its default method, in the order of that, with the clip's caption.

Legend: C latent channels, T latents of an end, h w latent grid, F frames of an end, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from framepack.data.encoded import whole
from framepack.data.reader import EncodedClips
from framepack.errors import InputError
from framepack.generation.decode import decode_frames
from framepack.metrics.features import Features, weights_file
from framepack.metrics.fidelity import psnr
from framepack.planning.timeline import Timeline
from framepack.training.progress import Advance
from framepack.training.samples import Sampling
from framepack.video.sheet import spread

BEFORE = "before.safetensors"
ROWS = ("before", "after", "copy", "codec")
"""The model as it came; as it is now; the last known frame, repeated; real latents through the codec."""
Frames = NDArray[np.uint8]
Scores = dict[str, NDArray[np.float64]]
"""Of each frame of an end (F,), by name: ``psnr`` in dB and, where it can be measured, ``distance``."""


@dataclass(frozen=True)
class End:
    """The latents of a clip from ``start`` to ``latents``, which no draw has seen."""

    clip: int
    start: int
    latents: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One end, and what is there in its place.

    Attributes:
        real: whether ``truth`` was read from the video; else it is what the codec makes of real latents.
        first: frames of the first section after what is known. seconds: where the end begins in its file.
        pictures: frames (F, H, W, 3) by row, of the first seed. scores: by row, means over the seeds.
    """

    end: End
    file: str
    real: bool
    first: int
    seconds: float
    truth: Frames
    pictures: dict[str, Frames]
    scores: dict[str, Scores]


def ends_of(clips: EncodedClips, count: int) -> list[End]:
    """Held-out ends of clips that are drawn from, at most ``count``, spread over the cache."""
    held = [
        End(clip, int(clips.lengths[clip]), entry.latents)
        for clip, entry in enumerate(clips.entries)
        if 0 < clips.lengths[clip] < entry.latents
    ]
    return [held[number] for number in spread(len(held), count)]


class Continuations:
    """Of the ends of some clips, ``seeds`` of each."""

    def __init__(self, sampling: Sampling, ends: list[End], seeds: int) -> None:
        self.sampling, self.ends, self.seeds = sampling, ends, seeds

    def keep(self, folder: Path, advance: Advance) -> dict[str, torch.Tensor]:
        """What the model makes now, kept in ``folder``; what is there already is not made again.

        Raises:
            OutputError: it cannot be written.
        """
        file = folder / BEFORE
        if not file.exists():
            made = self.make(advance)
            with whole(file) as part:
                save_file(made, part)
        return load_file(file)

    def make(self, advance: Advance) -> dict[str, torch.Tensor]:
        """Latents (C, T, h, w), float32, by ``CLIP.SEED``."""
        made: dict[str, torch.Tensor] = {}
        for end in self.ends:
            timeline = self._timeline(end)
            for seed in range(self.seeds):
                latents = self.sampling.go_on(end.clip, timeline, seed)
                made[f"{end.clip}.{seed}"] = latents[0, :, end.start :].contiguous()
                advance(len(made), len(self.ends) * self.seeds)
        return made

    def compare(
        self, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], advance: Advance
    ) -> list[Compared]:
        """Every end with what stands in its place."""
        features = Features(self.sampling.clips.device) if weights_file() is not None else None
        pictures = [self._pictures(end) for end in self.ends]
        if any(seen is None for seen in pictures):  # all ends are compared with one kind of truth
            pictures = [None] * len(self.ends)
        done = []
        for end, seen in zip(self.ends, pictures, strict=True):
            done.append(self._compare(end, {"before": before, "after": after}, seen, features))
            advance(len(done), len(self.ends))
        return done

    def _compare(
        self,
        end: End,
        made: dict[str, dict[str, torch.Tensor]],
        pictures: Frames | None,
        features: Features | None,
    ) -> Compared:
        timeline, entry = self._timeline(end), self.sampling.clips.entries[end.clip]
        first = timeline.frames_of(end.start).start
        latents = self.sampling.clips.latents([end.clip], [range(end.latents)])[0].cpu()
        through = self._decode(latents, timeline)
        last, truth = np.split(through[first - 1 :] if pictures is None else pictures, [1])
        shown = {
            row: [
                self._decode(torch.cat([latents[:, : end.start], held[f"{end.clip}.{seed}"]], 1), timeline)[
                    first:
                ]
                for seed in range(self.seeds)
            ]
            for row, held in made.items()
        }
        shown["copy"] = [np.repeat(last, len(truth), axis=0)]
        shown["codec"] = [through[first:]]
        wanted = None if features is None else features.of(truth)
        scores: dict[str, Scores] = {}
        for row in ROWS:
            scores[row] = {"psnr": np.mean([psnr(frames, truth) for frames in shown[row]], axis=0)}
            if features is not None and wanted is not None:
                found = [features.between(features.of(frames), wanted) for frames in shown[row]]
                scores[row]["distance"] = np.mean(found, axis=0)
        section = min(self.sampling.method.section_size, end.latents - end.start)
        return Compared(
            end=end,
            file=entry.file,
            real=pictures is not None,
            first=timeline.frames_of(end.start + section - 1).stop - first,
            seconds=entry.start + first / timeline.fps,
            truth=truth,
            pictures={row: frames[0] for row, frames in shown.items()},
            scores=scores,
        )

    def _pictures(self, end: End) -> Frames | None:
        """The last known frame and those of the end, from the video itself if it is still there."""
        first = self._timeline(end).frames_of(end.start).start
        try:
            return np.stack(list(islice(self.sampling.clips.pictures(end.clip), first - 1, None)))
        except InputError:
            return None

    def _timeline(self, end: End) -> Timeline:
        return self.sampling.timeline(end.latents, known=end.start)

    def _decode(self, latents: torch.Tensor, timeline: Timeline) -> Frames:
        """Latents (C, N, h, w) of a whole clip -> all its frames."""
        codec = self.sampling.bundle.codec
        return np.stack(list(decode_frames(codec, lambda at: latents[None, :, list(at)], timeline)))
