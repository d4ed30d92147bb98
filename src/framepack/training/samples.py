"""Videos made while a model is fine-tuned, from clips that it learns.

Legend: C latent channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import replace
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
) -> None:
    """``step-N-clip-M.mp4`` for clips spread over the cache, and once what the codec makes of them.

    Each begins with a clip's own first latent, has its caption, and is at most as long.

    Args:
        dtype: in which the transformer computes. centroids: (K, C), for methods with discretised history.

    Raises:
        OutputError: a place that cannot be written.
    """
    spec = bundle.spec
    count = min(config.count, len(clips))
    for number in (len(clips) * n // count for n in range(count)):
        latents = min(clips.entries[number].latents, 1 + config.sections * method.section_size)
        timeline = Timeline(
            frames=1 + (latents - 1) * spec.temporal_stride,
            fps=spec.fps,
            stride=spec.temporal_stride,
            known=(0,),
        )
        real = clips.latents([number], [range(latents)])
        prompt = replace(clips.conditioning([number], image=True), guidance=objective.guidance)
        negative = replace(clips.conditioning([number], [False], image=True), guidance=objective.guidance)
        made = rollout(
            bundle.transformer,
            plan(timeline, method),
            {0: real[:, :, 0].cpu()},
            lambda section, prompt=prompt: prompt,  # type: ignore[misc]
            negative,
            shape=(1, real.shape[1], real.shape[3], real.shape[4]),
            seed=number,
            steps=config.steps or spec.steps,
            guidance=spec.guidance,
            shift=objective.shift,
            base_kernel=spec.base_kernel,
            solver=spec.solver,
            device=clips.device,
            dtype=dtype,
            centroids=centroids,
        )
        original = folder / f"clip-{number}.mp4"
        if not original.exists():
            write_video(
                original,
                decode_frames(bundle.codec, lambda at, real=real: real[:, :, list(at)], timeline),  # type: ignore[misc]
                spec.fps,
            )
        write_video(
            folder / f"step-{step:06d}-clip-{number}.mp4",
            decode_frames(bundle.codec, lambda at, made=made: made[:, :, list(at)], timeline),  # type: ignore[misc]
            spec.fps,
            overwrite=True,
        )
