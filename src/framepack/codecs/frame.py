"""The bundled codec: one latent frame for each frame, 24 channels at a sixteenth of the size.

A linear path (the principal components of 16 x 16 pixel patches) carries most of the picture, and
small residual convolutions on both sides correct it. The latents keep their share of the pixels'
energy: a shift for each channel and one common scale, so that faint channels stay faint.

Shapes: B batch, T frames, H W pixels, h = H / 16, w = W / 16, C latent channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from framepack.errors import InputError


class Residual(nn.Module):
    """Two 3 x 3 convolutions added to their input; zero at the start of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) to latents (N, C, h, w), before shift and scale."""

    def __init__(self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Conv2d(3 * stride * stride, channels, 1)
        self.patch = stride >> (len(widths) - 1)
        layers: list[nn.Module] = [nn.Conv2d(3 * self.patch**2, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers += [nn.Conv2d(widths[level - 1], width, 2, stride=2)]
            layers += [Residual(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[-1], channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The linear part and the correction, to be added."""
        linear = self.linear(F.pixel_unshuffle(pixels, self.stride))
        return linear, self.out(F.silu(self.layers(F.pixel_unshuffle(pixels, self.patch))))


class Decoder(nn.Module):
    """Latents (N, C, h, w), shift and scale undone, to pixels (N, 3, H, W)."""

    def __init__(self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Conv2d(channels, 3 * stride * stride, 1)
        self.patch = stride >> (len(widths) - 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers += [nn.Conv2d(widths[level - 1], 4 * width, 1), nn.PixelShuffle(2)]
            layers += [Residual(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[-1], 3 * self.patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, latents: Tensor) -> Tensor:
        rough = F.pixel_shuffle(self.linear(latents), self.stride)
        return rough + F.pixel_shuffle(self.out(F.silu(self.layers(latents))), self.patch)


class FrameAutoencoder(ModelMixin, ConfigMixin):
    """Codec of single frames with spatial stride 16 and temporal stride 1.

    Args:
        channels: latent channels C.
        stride: pixels in a side of one latent position.
        scale: latents are (encoded - shift) * scale, so that their mean square is about 1.
        encoder_widths, encoder_blocks: width and residual blocks of each level, fine to coarse.
        decoder_widths, decoder_blocks: the same, coarse to fine.
    """

    config_name = "config.json"
    temporal_stride = 1

    @register_to_config
    def __init__(
        self,
        channels: int = 24,
        stride: int = 16,
        scale: float = 1.0,
        encoder_widths: tuple[int, ...] = (48, 96, 128),
        encoder_blocks: tuple[int, ...] = (1, 1, 1),
        decoder_widths: tuple[int, ...] = (192, 128, 64),
        decoder_blocks: tuple[int, ...] = (2, 2, 2),
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, tuple(encoder_widths), tuple(encoder_blocks), stride)
        self.decoder = Decoder(channels, tuple(decoder_widths), tuple(decoder_blocks), stride)
        self.register_buffer("shift", torch.zeros(channels))
        self.shift: Tensor

    @property
    def spatial_stride(self) -> int:
        return self.config.stride

    @property
    def latent_channels(self) -> int:
        return self.config.channels

    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1], on any device, to scaled latents (B, C, T, h, w) on the codec's.

        Raises:
            InputError: H or W is not a multiple of the stride.
        """
        batch, _, frames, height, width = video.shape
        stride = self.config.stride
        if height % stride or width % stride:
            raise InputError(
                f"frames of {width} x {height} pixels: the codec needs multiples of {stride}; "
                "resize or crop them"
            )
        pixels = video.transpose(1, 2).reshape(batch * frames, 3, height, width)
        linear, correction = self.encoder(pixels.to(self.shift))
        latents = (linear + correction - self.shift[:, None, None]) * self.config.scale
        return latents.unflatten(0, (batch, frames)).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, T, h, w), on any device, to video (B, 3, T, H, W), clamped to [-1, 1]."""
        batch, _, frames = latents.shape[:3]
        flat = latents.transpose(1, 2).flatten(0, 1).to(self.shift)
        pixels = self.decoder(flat / self.config.scale + self.shift[:, None, None])
        return pixels.clamp(-1, 1).unflatten(0, (batch, frames)).transpose(1, 2)

    def preview(self, latents: Tensor) -> Tensor:
        """A rough video from the linear path alone; shapes as in ``decode``, any device."""
        batch, _, frames = latents.shape[:3]
        flat = latents.transpose(1, 2).flatten(0, 1).to(self.shift)
        raw = flat / self.config.scale + self.shift[:, None, None]
        pixels = F.pixel_shuffle(self.decoder.linear(raw), self.config.stride)
        return pixels.clamp(-1, 1).unflatten(0, (batch, frames)).transpose(1, 2)
