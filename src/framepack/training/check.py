"""The held-out check: does what moves move as the prompt says? Measured from pixels, not by a model.

Legend: B videos made at once, C latent channels, h w latent grid.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from framepack.conditioning.lexicon import SLOT_OF, SLOTS
from framepack.data.world import sample_scene
from framepack.generation.decode import to_uint8
from framepack.metrics.motion import direction
from framepack.models.bundle import Bundle, load_bundle
from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.training.rollout import rollout
from framepack.video.sheet import contact_sheet

HELD_OUT = 2_000_000_000
"""Scenes from this seed on are never trained on."""


@dataclass(frozen=True)
class Pair:
    """A picture (h, w, 3) of an unseen scene, and a prompt whose direction the picture does not tell."""

    picture: np.ndarray
    words: tuple[str, ...]
    colour: str
    direction: str


def held_out_pairs(count: int, size: tuple[int, int]) -> list[Pair]:
    """Unseen pairs; directions in turn, the shape well inside the frame, the camera still."""
    pairs: list[Pair] = []
    index = 0
    while len(pairs) < count:
        scene = sample_scene(np.random.default_rng([HELD_OUT, index]), 64)
        index += 1
        words = [w for w in scene.words(0, 1) if SLOT_OF[w] not in ("direction", "camera", "speed")]
        x, y = scene.position(0)
        if not (0.25 < x < 0.75 and 0.25 < y < 0.75):
            continue
        wanted = SLOTS["direction"][len(pairs) % len(SLOTS["direction"])]
        colour = next(w for w in words if SLOT_OF[w] == "colour")
        pairs.append(Pair(scene.render([0], *size)[0], (*words, wanted), colour, wanted))
    return pairs


def make_videos(
    bundle: Bundle,
    pairs: list[Pair],
    method: Method,
    *,
    image: bool,
    frames: int,
    seed: int = 0,
    batch: int = 10,
    guidance: float | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """uint8 (frames, H, W, 3) for each pair, with its picture as the first frame or from its words alone."""
    spec, codec, conditioner = bundle.spec, bundle.codec, bundle.conditioner
    timeline = Timeline(frames=frames, fps=spec.fps, stride=spec.temporal_stride, known=(0,) if image else ())
    planned = plan(timeline, method)
    model = bundle.transformer
    videos: list[np.ndarray] = []
    with torch.inference_mode():
        for start in range(0, len(pairs), batch):
            chunk = pairs[start : start + batch]
            pixels = torch.from_numpy(np.stack([p.picture for p in chunk])).permute(0, 3, 1, 2)[:, :, None]
            first = codec.encode(pixels.to(model.device).float() / 127.5 - 1).float().cpu()
            device = conditioner.table.weight.device
            rows = torch.tensor([conditioner.rows_of(p.words) for p in chunk], device=device)
            prompt = conditioner(rows)
            latents = rollout(
                model,
                planned,
                {0: first[:, :, 0]} if image else {},
                lambda section, prompt=prompt: prompt,  # type: ignore[misc]
                conditioner(torch.zeros_like(rows)),
                shape=(len(chunk), *first.shape[1:2], *first.shape[3:]),
                seed=seed + start,
                steps=spec.steps,
                guidance=spec.guidance if guidance is None else guidance,
                shift=spec.shift,
                base_kernel=spec.base_kernel,
                solver=spec.solver,
                device=model.device,
                dtype=model.dtype,
            )
            videos += [to_uint8(v).cpu().numpy() for v in codec.decode(latents.to(model.device))]
            on_batch(len(videos))
    return videos


def sheet_of(videos: list[np.ndarray], columns: int = 9) -> Image:
    """A row of frames for each video."""
    shown = [v[i] for v in videos for i in np.linspace(0, len(v) - 1, columns).round().astype(int)]
    return contact_sheet(shown, columns, tile_width=128)


def sample_sheet(bundle: Bundle, path: Path, rows: int = 5, frames: int = 25) -> None:
    """A picture of a model at work on held-out pairs: ``rows`` with a picture, as many without."""
    pairs = held_out_pairs(rows, bundle.spec.buckets[0])
    method = bundle.spec.method(None)
    videos = [
        v for image in (True, False) for v in make_videos(bundle, pairs, method, image=image, frames=frames)
    ]
    sheet_of(videos).save(path)


def held_out_check(
    model: str, *, clips: int, out: Path, method: str | None = None, frames: int = 25
) -> dict[str, object]:
    """Share of unseen pairs whose shape moves as the prompt says, with a picture and without.

    Writes ``check.json`` and a sheet for each kind into ``out``.
    """
    bundle = load_bundle(model)
    wanted = bundle.spec.method(method)
    pairs = held_out_pairs(clips, bundle.spec.buckets[0])
    report: dict[str, object] = {"model": model, "clips": clips, "method": str(wanted), "frames": frames}
    out.mkdir(parents=True, exist_ok=True)
    for kind in ("image-to-video", "text-to-video"):
        videos = make_videos(bundle, pairs, wanted, image=kind == "image-to-video", frames=frames)
        found = [direction(v, p.colour) for v, p in zip(videos, pairs, strict=True)]
        right = [f == p.direction for f, p in zip(found, pairs, strict=True)]
        report[kind] = {
            "share": float(np.mean(right)),
            "by_direction": {
                d: float(np.mean([r for r, p in zip(right, pairs, strict=True) if p.direction == d]))
                for d in SLOTS["direction"]
                if any(p.direction == d for p in pairs)
            },
        }
        sheet_of(videos[:10]).save(out / f"{kind}.png")
    (out / "check.json").write_text(json.dumps(report, indent=2) + "\n")
    return report
