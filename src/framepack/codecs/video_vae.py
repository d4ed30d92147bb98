"""The video codecs of the HunyuanVideo and Wan families: diffusers' causal VAEs, with latents scaled as the
transformer takes them.

Shapes: B batch, F frames, H W pixels, C latent channels, N latents, h w their grid. The first latent holds
one frame, each after it ``temporal_stride`` frames: F = temporal_stride * (N - 1) + 1. Wan's VAE is causal:
the latents of a video begin with those of its first frames. HunyuanVideo's is not quite, since its norms are
taken over all frames, and diffusers codes more than 17 frames, or 4 latents, in windows that it blends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from torch import Tensor, nn

from framepack.codecs.latent_colours import LATENT_COLOURS
from framepack.codecs.loading import class_of, load_module
from framepack.errors import InputError, ModelError

VAES = {kind.__name__: kind for kind in (AutoencoderKLHunyuanVideo, AutoencoderKLWan)}
RELEASED_DTYPES = {AutoencoderKLHunyuanVideo: torch.float16, AutoencoderKLWan: torch.float32}
"""What the released programs run each VAE in."""

PREVIEW_SIDE = 16
"""Longest side of latents decoded for a preview, where no linear map to colours is published."""


class VideoCodec(nn.Module):
    """Whole videos to latents and back.

    ``encode`` takes the mode of the posterior, so that a picture always gives the same latents; the loops of
    HunyuanVideoFramepackPipeline and HeliosPipeline draw a sample instead. Scaling is done in float32,
    whatever the weights are in.

    Args:
        vae: an AutoencoderKLHunyuanVideo, or an AutoencoderKLWan of Wan 2.1 or 2.2.

    Attributes:
        parking: where a decoder keeps what it knows of a tile while it is at another.
    """

    parking = torch.device("cpu")

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        config = vae.config
        if isinstance(vae, AutoencoderKLWan):  # WanPipeline: (latents - mean) / std
            self.latent_channels: int = config.z_dim
            self.spatial_stride: int = config.scale_factor_spatial
            self.temporal_stride: int = config.scale_factor_temporal
            mean, scale = torch.tensor(config.latents_mean), 1.0 / torch.tensor(config.latents_std)
        else:  # HunyuanVideoPipeline: latents * scaling_factor
            self.latent_channels = config.latent_channels
            self.spatial_stride = config.spatial_compression_ratio
            self.temporal_stride = config.temporal_compression_ratio
            mean, scale = torch.zeros(1), torch.tensor([config.scaling_factor])
        self.execution: torch.device | None = None
        # No buffers: these would be rounded to the weights' dtype.
        self._mean, self._scale = mean[:, None, None, None], scale[:, None, None, None]

    @property
    def config(self) -> Any:
        """The VAE's own configuration."""
        return self.vae.config

    @property
    def device(self) -> torch.device:
        """Where it computes: ``execution``, if its weights lie elsewhere until they are needed."""
        return self.execution or self.vae.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    @property
    def tiled(self) -> bool:
        """Whether frames larger than a tile are encoded and decoded in tiles."""
        return self.vae.use_tiling

    def enable_tiling(self) -> None:
        """Encode and decode in overlapping tiles, with diffusers' sizes: less memory, faint seams."""
        self.vae.enable_tiling()

    def save_pretrained(self, folder: Path) -> None:
        """Write the VAE as diffusers does; ``load_codec`` reads it."""
        self.vae.save_pretrained(folder)

    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, F, H, W) in [-1, 1], on any device, to float32 latents (B, C, N, h, w) on the codec's.

        Raises:
            InputError: H or W is not a multiple of ``spatial_stride``, or F - 1 of ``temporal_stride``.
        """
        frames, height, width = video.shape[2:]
        space, time = self.spatial_stride, self.temporal_stride
        if height % space or width % space:
            raise InputError(
                f"frames of {width} x {height} pixels: the codec needs multiples of {space}; "
                "resize or crop them"
            )
        if (frames - 1) % time:
            fitting = max(frames - 1, 0) // time * time + 1
            raise InputError(
                f"a video of {frames} frames: the codec takes one and a multiple of {time} more; "
                f"cut it to {fitting} or repeat its last frame up to {fitting + time}"
            )
        latents = self.vae.encode(video.to(self.device, self.dtype)).latent_dist.mode().float()
        return (latents - self._mean.to(latents.device)) * self._scale.to(latents.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, N, h, w), on any device, to video (B, 3, F, H, W), clamped to [-1, 1]."""
        return self.vae.decode(self.unscale(latents), return_dict=False)[0].clamp(-1, 1)

    def unscale(self, latents: Tensor) -> Tensor:
        """Latents of any shape (B, C, N, h, w), on any device, as the VAE's own decoder takes them."""
        scaled = latents.to(self.device, torch.float32)
        raw = scaled / self._scale.to(scaled.device) + self._mean.to(scaled.device)
        return raw.to(self.dtype)

    def preview(self, latents: Tensor) -> Tensor:
        """A rough picture of each latent on its own, (B, C, N, h, w) -> (B, 3, N, h', w') in [-1, 1].

        The published map from latents to colours, so that h' = h and w' = w; without one, each latent is
        shrunk and decoded as if it began a video.
        """
        latents = latents.to(self.device, torch.float32)
        colours = LATENT_COLOURS.get((type(self.vae).__name__, self.latent_channels))
        if colours is None:
            height, width = latents.shape[3:]
            shrink = max(height, width, PREVIEW_SIDE) / PREVIEW_SIDE
            size = (1, max(1, round(height / shrink)), max(1, round(width / shrink)))
            small = [F.adaptive_avg_pool3d(latent, size) for latent in latents.split(1, dim=2)]
            return torch.cat([self.decode(latent) for latent in small], dim=2)
        factors = torch.tensor(colours.factors, device=latents.device)
        bias = torch.tensor(colours.bias, device=latents.device)[:, None, None, None]
        return (torch.einsum("bcnhw,cr->brnhw", latents, factors) + bias).clamp(-1, 1)


def released_dtype(kind: type, device: torch.device) -> torch.dtype:
    """What a VAE runs in: float32 on the CPU, elsewhere as the released programs have it."""
    return torch.float32 if device.type == "cpu" else RELEASED_DTYPES[kind]


def load_codec(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VideoCodec:
    """The codec in a diffusers folder of a VAE, for inference.

    Args:
        dtype: of the weights; None is float32 on the CPU and as the released programs have it elsewhere.

    Raises:
        ModelError: no VAE of these families, or weights that are missing, damaged or not finite.
    """
    name, device = class_of(folder), torch.device(device)
    if name not in VAES:
        raise ModelError(f"'{folder}' holds a {name}: give a folder of {' or '.join(VAES)}")
    vae = load_module(VAES[name], folder, dtype or released_dtype(VAES[name], device))
    for key, value in vae.state_dict().items():
        if not value.isfinite().all():
            raise ModelError(f"'{folder}' has weights that are not finite, in {key}: download it again")
    return VideoCodec(vae.to(device))
