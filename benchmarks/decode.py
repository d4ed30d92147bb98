"""Decoding latents as they come: how often each one is decoded, what that costs at the seams, and in memory.

Random latents of a video are decoded at once, as they come section by section, and as the released loop does
it: with every section it decodes as many latents before it again and cross-fades the two versions of these
(FramePack, demo_gradio.py: soft_append_bcthw; HunyuanVideoFramepackPipeline does the same). The bundled
codec has its weights; those of Wan and HunyuanVideo are small and random, with the released depth.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from rich.console import Console
from torch import Tensor

from framepack.codecs.streaming import stream_decoder
from framepack.codecs.video_vae import VideoCodec
from framepack.generation.decode import FrameDecoder
from framepack.models.loading import load_companions
from framepack.models.source import resolve_model
from framepack.planning.timeline import Timeline
from framepack.resources.machine import machine
from framepack.resources.tally import Tally
from shared.report import Report, Table, carry_out, finite

SECTION = 9
"""Latents of one section of the released models."""

NEAR = 4
"""Frames on both sides of a section's border that count as its seam."""

WHOLE, STREAMED, RELEASED = "at once", "as they come", "released loop"


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One way to decode a video.

    Attributes:
        called: latents that the codec was given. network: latents that its decoder network saw.
        error: largest difference to decoding all latents at once, of any frame. seam_error: near borders.
        seam_psnr: near borders, in dB of the range [-1, 1]; inf where nothing differs.
    """

    called: int
    network: int
    error: float = 0.0
    seam_error: float = 0.0
    seam_psnr: float = math.inf


def wan_2_1() -> VideoCodec:
    return VideoCodec(AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1]))


def wan_2_2() -> VideoCodec:
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=48,
        dim_mult=[1, 1, 1, 1],
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return VideoCodec(vae)


def hunyuan_video() -> VideoCodec:
    return VideoCodec(AutoencoderKLHunyuanVideo(block_out_channels=(8, 8, 8, 8), norm_num_groups=4))


RANDOM: dict[str, Callable[[], VideoCodec]] = {
    "Wan 2.1": wan_2_1,
    "Wan 2.2": wan_2_2,
    "HunyuanVideo": hunyuan_video,
}


class Network:
    """Counts the latents that a codec's decoder network sees, while it is used as a context."""

    def __init__(self, codec: Any) -> None:
        self.latents = 0
        self._frames_alone = codec.temporal_stride == 1  # frames are the batch there
        self._module = codec.decoder if self._frames_alone else codec.vae.decoder

    def __enter__(self) -> Network:
        self._hook = self._module.register_forward_pre_hook(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _see(self, module: Any, arguments: tuple[Tensor, ...]) -> None:
        self.latents += arguments[0].shape[0 if self._frames_alone else 2]


def streamed(codec: Any, latents: Tensor, borders: Sequence[int]) -> tuple[Tensor, int]:
    """The video, of latents that come up to each of ``borders``, and how many were pushed."""
    decoder, parts = stream_decoder(codec), []
    for start, stop in zip((0, *borders), borders, strict=False):
        parts.append(decoder.push(latents[:, :, start:stop]))
    return torch.cat([*parts, decoder.finish()], dim=2), latents.shape[2]


def released(codec: Any, latents: Tensor, borders: Sequence[int]) -> tuple[Tensor, int]:
    """The same with twice a section decoded for each, and the frames known before cross-faded."""
    overlap = (SECTION - 1) * codec.temporal_stride + 1
    video, called = codec.decode(latents[:, :, : borders[0]]), borders[0]
    for border in borders[1:]:
        given = latents[:, :, max(0, border - 2 * SECTION) : border]
        called += given.shape[2]
        now = codec.decode(given)
        fade = torch.linspace(1, 0, overlap).view(-1, 1, 1)
        joined = fade * video[:, :, -overlap:] + (1 - fade) * now[:, :, :overlap]
        video = torch.cat([video[:, :, :-overlap], joined, now[:, :, overlap:]], dim=2)
    return video, called


def compare(codec: Any, latents: Tensor, borders: Sequence[int]) -> dict[str, Decoded]:
    """Every way of decoding, against all at once."""
    with Network(codec) as network:
        whole = codec.decode(latents)
    found = {WHOLE: Decoded(called=latents.shape[2], network=network.latents)}
    stride, frames = codec.temporal_stride, whole.shape[2]
    near = torch.zeros(frames, dtype=torch.bool)
    for border in borders[:-1]:
        first = (border - 1) * stride + 1  # of the section after
        near[max(0, first - NEAR) : first + NEAR] = True
    for way, decode in ((STREAMED, streamed), (RELEASED, released)):
        with Network(codec) as network:
            video, called = decode(codec, latents, borders)
        assert video.shape == whole.shape, f"{way}: {tuple(video.shape)} of {tuple(whole.shape)}"
        difference = (video - whole).abs()
        square = difference[:, :, near].square().mean().item()
        found[way] = Decoded(
            called=called,
            network=network.latents,
            error=difference.max().item(),
            seam_error=difference[:, :, near].max().item(),
            seam_psnr=10 * math.log10(4 / square) if square else math.inf,
        )
    return found


def peaks(codec: Any, latents: Tensor, counts: Sequence[int], borders: Sequence[int]) -> dict[str, list[int]]:
    """Peak bytes of tensors by the number of sections, of decoding at once and as they come."""
    found: dict[str, list[int]] = {WHOLE: [], STREAMED: []}
    for count in counts:
        timeline = Timeline(
            frames=1 + (borders[count - 1] - 1) * codec.temporal_stride, fps=24, stride=codec.temporal_stride
        )
        with Tally() as tally:
            codec.decode(latents[:, :, : borders[count - 1]])
        found[WHOLE].append(tally.peak)
    # One video is enough here: after so many sections it has taken what a video of so many takes.
    decoder = FrameDecoder(codec, lambda at: latents[:, :, list(at)], timeline)
    with Tally() as tally:
        for section, border in enumerate(borders[: counts[-1]], start=1):
            for _ in decoder.advance(border):
                pass
            if section in counts:
                found[STREAMED].append(tally.peak)
    return found


def ratio_table(results: dict[str, dict[str, Decoded]], sections: int, latents: int) -> Table:
    rows = []
    for codec, ways in results.items():
        for way, found in ways.items():
            row = (f"{codec}, {way}", str(found.called), f"{found.called / latents:.2f}", str(found.network))
            row = (*row, f"{found.network / latents:.2f}")
            if way == WHOLE:
                rows.append((*row, "-", "-", "-"))
                continue
            psnr = f"{found.seam_psnr:.1f}" if math.isfinite(found.seam_psnr) else "exact"
            rows.append((*row, f"{found.error:.1e}", f"{found.seam_error:.1e}", psnr))
    return Table(
        title=f"Latents decoded, {sections} sections of {SECTION} and a start picture: {latents} latents",
        columns=(
            "codec, way",
            "given",
            "a latent",
            "in network",
            "a latent",
            "error",
            "at seams",
            "PSNR there, dB",
        ),
        rows=tuple(rows),
        notes=(
            "given: latents in all calls of the codec; in network: those that pass its decoder network, more "
            "where diffusers decodes in overlapping tiles",
            f"error: largest difference to decoding at once, pixels in [-1, 1]; seams: {NEAR} frames on both "
            "sides of a section's border",
            f"{RELEASED}: two sections decoded for each, cross-faded where they overlap",
        ),
    )


def memory_table(results: dict[str, dict[str, list[int]]], counts: Sequence[int]) -> Table:
    rows = []
    for codec, ways in results.items():
        for way, found in ways.items():
            shown = [f"{size / 2**20:.2f}" for size in found]
            rows.append((f"{codec}, {way}", *shown, f"{found[-1] / found[0]:.2f}"))
    return Table(
        title="Peak of tensors, MiB",
        columns=("codec, way", *(f"{count} sections" for count in counts), "last / first"),
        rows=tuple(rows),
        notes=("made while decoding; neither weights nor the latents themselves",),
    )


def load_codecs(model: str, seed: int) -> dict[str, Any]:
    """Codecs by name: that of a model, and random ones."""
    codec, _ = load_companions(resolve_model(model), torch.device("cpu"), torch.float32)
    codecs: dict[str, Any] = {model if model == "bundled" else "the model's": codec}
    for name, make in RANDOM.items():
        torch.manual_seed(seed)
        codecs[name] = make().eval().requires_grad_(False)
    return codecs


@torch.inference_mode()
def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    where = machine()
    sections = options.sections
    borders = [1 + SECTION * (n + 1) for n in range(sections)]
    counts = sorted({max(1, sections // 4), max(1, sections // 2), sections})
    results, memory = {}, {}
    for name, codec in load_codecs(options.model, options.seed).items():
        generator = torch.Generator().manual_seed(options.seed)
        shape = (1, codec.latent_channels, borders[-1], options.side, options.side)
        latents = torch.randn(shape, generator=generator)
        results[name] = compare(codec, latents, borders)
        memory[name] = peaks(codec, latents, counts, borders)
        console.print(f"{name}: done", style="dim")
    return Report(
        name="Decoding",
        command=command,
        machine=where,
        tables=(ratio_table(results, sections, borders[-1]), memory_table(memory, counts)),
        data={
            "sections": sections,
            "latents": borders[-1],
            "ways": {
                name: {
                    way: {
                        "called": found.called,
                        "network": found.network,
                        "error": found.error,
                        "seam_error": found.seam_error,
                        "seam_psnr": finite(found.seam_psnr),
                    }
                    for way, found in ways.items()
                }
                for name, ways in results.items()
            },
            "peak_bytes": {"sections": counts, **memory},
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder, of the codec with weights")
    parser.add_argument("--sections", type=int, default=20)
    parser.add_argument("--side", type=int, default=2, help="latents on a side of a frame")
    parser.add_argument("--seed", type=int, default=0)
    return carry_out("decode", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
