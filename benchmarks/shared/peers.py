"""The same small random weights as diffusers' pipelines run them, and as framepack does, from call to MP4.

Legend: C latent channels, N latents, h w latent grid; F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HeliosPipeline,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
)

import framepack.conditioning.encoders
import framepack.conditioning.hunyuan_video
import framepack.conditioning.wan
from framepack.codecs.video_vae import VideoCodec
from framepack.generation.clock import Clock
from framepack.generation.decode import to_uint8
from framepack.generation.hashing import section_seed
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import latents_of
from framepack.models.bundle import Bundle
from framepack.models.loading import load_bundle
from framepack.models.source import resolve_model
from framepack.video.growing import GrowingVideo
from framepack.video.io import write_video
from shared.peer_weights import Sizes, hunyuan_parts, load_parts, save_framepack, save_helios
from shared.stopwatch import REST, Stopwatch
from tiny_framepack import picture  # of the tests, which shared.peer_weights has found

PROMPT, SEED = "a red ball rolls over the green grass", 7
S = 9
"""Latents of a section."""
LOAD, ENCODE, SAMPLE, DECODE, WRITE = "load", "encode", "sample", "decode", "write"
STAGES = (ENCODE, SAMPLE, DECODE, WRITE, REST)
"""Of what is timed: prompt and picture, denoising, pixels from latents, the MP4. Weights are there before."""
OF_CLOCK = {"sample": SAMPLE, "decode": DECODE, "encode": WRITE}
"""Our own stages; those that are not here are the rest."""
ORDERS = {"f1": "vanilla", "inverted": "inverted_anti_drifting"}
"""Ours, and what diffusers calls it."""


@dataclass(frozen=True, eq=False)
class Made:
    """What a call made: latents (C, N, h, w), frames uint8 (F, H, W, 3), and where its time went."""

    latents: torch.Tensor
    frames: np.ndarray
    watch: Stopwatch


# Theirs ----------------------------------------------------------------------------------------------


class _Noise:
    """Gives a pipeline the noise of our run, section by section, and keeps the sections' latents."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.sections = pipe, 0
        self.made: list[torch.Tensor] = []
        self._prepare, self._step = pipe.prepare_latents, pipe.scheduler.step

    def prepare_latents(self, *args: Any, generator: Any = None, **named: Any) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(section_seed(SEED, self.sections))
        noise = self._prepare(*args, generator=drawn, **named)
        self.sections += 1
        self.made.append(noise)
        return noise

    def step(self, *args: Any, **named: Any) -> Any:
        found = self._step(*args, **named)
        self.made[-1] = found[0]
        return found


class FramepackPeer:
    """``HunyuanVideoFramepackPipeline`` on a folder, with the mode of the start picture's posterior."""

    def __init__(self, folder: Path) -> None:
        kinds = {
            "vae": AutoencoderKLHunyuanVideo,
            "transformer": HunyuanVideoFramepackTransformer3DModel,
            "scheduler": FlowMatchEulerDiscreteScheduler,
        }
        self.pipe = HunyuanVideoFramepackPipeline(**hunyuan_parts(folder), **load_parts(folder, **kinds))
        self.pipe.set_progress_bar_config(disable=True)
        self.codec = VideoCodec(self.pipe.vae.eval())
        self.held: torch.Tensor | None = None

    def watched(self) -> list[tuple[Any, str, str]]:
        pipe = self.pipe
        encode = [(pipe, name, ENCODE) for name in ("encode_prompt", "encode_image", "prepare_image_latents")]
        return [*encode, (pipe, "_soft_append", DECODE), *_watched(pipe)]

    def prepare_image_latents(self, image: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        self.held = (
            self.pipe.vae.encode(image[:, :, None]).latent_dist.mode() * self.codec.config.scaling_factor
        )
        return self.held

    @contextmanager
    def adjusted(self) -> Iterator[None]:
        with mock.patch.object(self.pipe, "prepare_image_latents", self.prepare_image_latents):
            yield

    def arguments(self, sizes: Sizes, sections: int) -> dict[str, Any]:
        return {
            "image": picture(sizes.side, sizes.side),
            "num_frames": ((S - 1) * 4 + 1) * sections,
            "guidance_scale": 10.0,
            "sampling_type": ORDERS[sizes.order],
        }

    def joined(self, sections: Sequence[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        assert self.held is not None
        in_time = sections if sizes.order == "f1" else sections[::-1]
        return torch.cat([self.held, *in_time], dim=2)[0]


class HeliosPeer:
    """``HeliosPipeline`` on a folder."""

    def __init__(self, folder: Path) -> None:
        self.pipe = HeliosPipeline.from_pretrained(folder)
        self.pipe.set_progress_bar_config(disable=True)
        self.codec = VideoCodec(self.pipe.vae.eval())

    def watched(self) -> list[tuple[Any, str, str]]:
        return [(self.pipe, "encode_prompt", ENCODE), *_watched(self.pipe)]

    @contextmanager
    def adjusted(self) -> Iterator[None]:
        # Its own wants ftfy, which mends broken Unicode; the prompt is clean.
        with mock.patch(f"{HeliosPipeline.__module__}.prompt_clean", lambda text: text):
            yield

    def arguments(self, sizes: Sizes, sections: int) -> dict[str, Any]:
        return {"num_frames": ((S - 1) * 4 + 1) * sections, "guidance_scale": 5.0, "negative_prompt": ""}

    def joined(self, sections: Sequence[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        return torch.cat([*sections], dim=2)[0]


def _watched(pipe: Any) -> list[tuple[Any, str, str]]:
    return [
        (pipe, "prepare_latents", SAMPLE),
        (pipe.transformer, "forward", SAMPLE),
        (pipe.scheduler, "set_timesteps", SAMPLE),
        (pipe.scheduler, "step", SAMPLE),
        (pipe.vae, "decode", DECODE),
        (pipe.video_processor, "postprocess_video", DECODE),
    ]


def theirs(peer: Any, sizes: Sizes, sections: int, folder: Path, fps: float) -> Made:
    """The peer's pipeline to frames, and these to an MP4 with our encoder's settings."""
    noise = _Noise(peer.pipe)
    watch = Stopwatch()
    with (
        peer.adjusted(),
        mock.patch.object(peer.pipe, "prepare_latents", noise.prepare_latents),
        mock.patch.object(peer.pipe.scheduler, "step", noise.step),
        watch.watching(*peer.watched()),
        watch,
    ):
        video = peer.pipe(
            prompt=PROMPT,
            height=sizes.side,
            width=sizes.side,
            num_inference_steps=sizes.steps,
            output_type="np",
            **peer.arguments(sizes, sections),
        ).frames[0]
        with watch.stage(DECODE):
            frames = (video * 255).round().astype(np.uint8)
        with watch.stage(WRITE):
            write_video(folder / "theirs.mp4", frames, fps, overwrite=True)
    return Made(peer.joined(noise.made, sizes), frames, watch)


# Ours ------------------------------------------------------------------------------------------------


def load_ours(folder: Path, dtype: torch.dtype = torch.float32) -> Bundle:
    return load_bundle(resolve_model(str(folder)), torch.device("cpu"), dtype)


def ours(
    bundle: Bundle, sizes: Sizes, sections: int, folder: Path, asked: dict[str, Any], *, keep: bool = True
) -> Made:
    """A run as ``framepack generate`` makes one.

    Args:
        asked: of the request, where families differ. keep: its frames, before they are encoded as video.
    """
    watch, kept = Stopwatch(), []
    request = GenerateRequest(
        prompt=PROMPT,
        seed=SEED,
        size=f"{sizes.side}x{sizes.side}",
        steps=sizes.steps,
        untrained=True,
        out=folder / "ours.mp4",
        workdir=folder / "ours",
        overwrite=True,
        **asked,
    )
    clocked, append = Clock.__call__, GrowingVideo.append

    @contextmanager
    def on_clock(clock: Clock, stage: str) -> Iterator[None]:
        with watch.stage(OF_CLOCK.get(stage, REST)), clocked(clock, stage):
            yield

    def tee(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            if keep:
                kept.append(frame.copy())
            yield frame

    # Encoders are loaded when they are needed, and freed.
    conditioning, loading = framepack.conditioning, []
    for module in (conditioning.encoders, conditioning.hunyuan_video, conditioning.wan):
        for name in ("load_module", "load_tokenizer"):
            if hasattr(module, name):
                loading.append((module, name, LOAD))
    with (
        mock.patch.object(Clock, "__call__", on_clock),
        mock.patch.object(GrowingVideo, "append", lambda video, frames: append(video, tee(frames))),
        watch.watching(
            *loading,
            *((bundle.conditioner, name, ENCODE) for name in ("encode", "remarks")),
            *((bundle.codec, name, ENCODE) for name in ("encode", "decode")),  # the start picture, checked
        ),
        watch,
    ):
        job = prepare(request, bundle)
        job.carry_out(lambda event: None)
    latents = latents_of(job, lambda event: None)[0]
    return Made(latents, np.stack(kept) if keep else np.empty(0), watch)


def framepack_asks(sizes: Sizes, sections: int) -> dict[str, Any]:
    start = picture(sizes.side, sizes.side)
    return {"image": start, "frames": 1 + 4 * S * sections, "method": sizes.order, "solver": "euler"}


def helios_asks(sizes: Sizes, sections: int) -> dict[str, Any]:
    return {"frames": ((S - 1) * 4 + 1) * sections, "guidance": 5.0}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A pipeline of diffusers, and ours in its place."""

    pipeline: str
    save: Callable[[Path, Sizes], None]
    peer: Callable[[Path], Any]
    asks: Callable[[Sizes, int], dict[str, Any]]


FAMILIES = {
    "framepack": Family(
        pipeline="HunyuanVideoFramepackPipeline",
        save=save_framepack,
        peer=FramepackPeer,
        asks=framepack_asks,
    ),
    "helios": Family(pipeline="HeliosPipeline", save=save_helios, peer=HeliosPeer, asks=helios_asks),
}


@torch.inference_mode()
def decoded_once(peer: Any, family: str, latents: torch.Tensor) -> np.ndarray:
    """Frames (F, H, W, 3) of latents (C, N, h, w), each decoded once: by itself or, of Helios, by section."""
    parts = latents.split(S, dim=1) if family == "helios" else [latents]
    return to_uint8(torch.cat([peer.codec.decode(part[None]) for part in parts], dim=2)[0]).numpy()
