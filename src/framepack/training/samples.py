"""Videos made while a model is fine-tuned, from clips that it learns.

Legend: C latent channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from framepack.data.reader import EncodedClips
from framepack.generation.decode import decode_frames
from framepack.models.bundle import Bundle
from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.training.finetune_config import FlowConfig, SampleConfig
from framepack.training.rollout import rollout
from framepack.video.io import write_video


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a model that is fine-tuned makes videos of clips.

    Attributes:
        steps: of a section. dtype: in which the transformer computes.
        centroids: (K, C), for methods with discretised history.
    """

    bundle: Bundle
    clips: EncodedClips
    method: Method
    objective: FlowConfig
    steps: int
    dtype: torch.dtype
    centroids: torch.Tensor | None = None

    def timeline(self, latents: int, known: int) -> Timeline:
        """Of so many latents, the first ``known`` of them known."""
        spec = self.bundle.spec
        return Timeline(
            frames=1 + (latents - 1) * spec.temporal_stride,
            fps=spec.fps,
            stride=spec.temporal_stride,
            known=tuple(range(known)),
        )

    def go_on(self, clip: int, timeline: Timeline, seed: int) -> torch.Tensor:
        """The known latents of a clip and what the model makes after them: (1, C, F, h, w), on the CPU."""
        clips, spec, objective = self.clips, self.bundle.spec, self.objective
        real = clips.latents([clip], [timeline.known]).cpu()
        prompt, negative = (
            replace(clips.conditioning([clip], [keep], image=True), guidance=objective.guidance)
            for keep in (True, False)
        )
        # Without a caption both are one, and guidance would only take its time.
        guidance = spec.guidance if clips.captions[clips.entries[clip].caption] else 1.0
        return rollout(
            self.bundle.transformer,
            plan(timeline, self.method),
            dict(zip(timeline.known, real.unbind(2), strict=True)),
            lambda section: prompt,
            negative,
            shape=(1, real.shape[1], real.shape[3], real.shape[4]),
            seed=seed,
            steps=self.steps,
            guidance=guidance,
            shift=objective.shift,
            base_kernel=spec.base_kernel,
            solver=spec.solver,
            device=clips.device,
            dtype=self.dtype,
            centroids=self.centroids,
        )


def write_samples(
    bundle: Bundle,
    clips: EncodedClips,
    method: Method,
    config: SampleConfig,
    objective: FlowConfig,
    folder: Path,
    step: int,
    *,
    dtype: torch.dtype,
    centroids: torch.Tensor | None = None,
    write: bool = True,
) -> None:
    """``step-N-clip-M.mp4`` for clips spread over the cache, and once what the codec makes of them.

    Each begins with a clip's own first latent, has its caption, and is at most as long.

    Args:
        dtype: in which the transformer computes. centroids: (K, C), for methods with discretised history.
        write: false in all but one of the processes that share the model.

    Raises:
        OutputError: a place that cannot be written.
    """
    sampling = Sampling(
        bundle=bundle,
        clips=clips,
        method=method,
        objective=objective,
        steps=config.steps or bundle.spec.steps,
        dtype=dtype,
        centroids=centroids,
    )
    count = min(config.count, len(clips))
    for number in (len(clips) * n // count for n in range(count)):
        latents = min(clips.entries[number].latents, 1 + config.sections * method.section_size)
        timeline = sampling.timeline(latents, known=1)
        made = sampling.go_on(number, timeline, seed=number)
        if not write:
            continue
        videos = {f"step-{step:06d}-clip-{number}.mp4": made}
        if not (folder / f"clip-{number}.mp4").exists():
            videos[f"clip-{number}.mp4"] = clips.latents([number], [range(latents)])
        for name, video in videos.items():
            frames = decode_frames(bundle.codec, lambda at, video=video: video[:, :, list(at)], timeline)  # type: ignore[misc]
            write_video(folder / name, frames, bundle.spec.fps, overwrite=True)
