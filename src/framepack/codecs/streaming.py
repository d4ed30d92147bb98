"""Latents to pixels a few at a time, in order of time, equal to decoding the whole video at once.

What a decoder keeps between two pushes does not grow with the video. Wan's VAE is causal: what its
convolutions saw last is carried on, and each latent goes through the network once. HunyuanVideo's VAE sees
all frames of a call at once; diffusers decodes long videos in overlapping tiles that it blends, and that
grid of tiles is replayed here. The bundled codec decodes each latent on its own.

Frames have the same bits however the latents are pushed. HunyuanVideo's are those of the whole video, bit
for bit, and so are Wan's where it is tiled in space; untiled, diffusers does a first convolution over single
positions for all latents at once, which rounds differently.

Shapes: C latent channels, N latents of the video, n latents and f frames of one push, h w latent grid,
H W pixels, s temporal stride.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from framepack.errors import InputError

CHUNK = 8
"""Frames that come from the latents of one push, about."""


def together(stride: int) -> int:
    """Latents that are pushed at once, of a codec with this temporal stride."""
    return max(1, CHUNK // stride)


class Codec(Protocol):
    """What streaming asks of a codec; one with a temporal stride is a ``VideoCodec``."""

    @property
    def temporal_stride(self) -> int: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class StreamingDecoder(Protocol):
    """One video being decoded."""

    @property
    def decoded(self) -> int:
        """Latents that went through the network, once for each tile in time that they are in; those that
        overlap in space, where ``enable_tiling`` made them, are not counted twice."""
        ...

    @property
    def held(self) -> list[Tensor]:
        """What is kept until the next push."""
        ...

    def push(self, latents: Tensor) -> Tensor:
        """The next latents (1, C, n, h, w), n > 0, on any device, to the frames that are certain now:
        (1, 3, f, H, W) in [-1, 1], where f may be 0."""
        ...

    def finish(self) -> Tensor:
        """The frames still missing, (1, 3, f, H, W), now that no latent follows. At least one was pushed."""
        ...


def stream_decoder(codec: Codec) -> StreamingDecoder:
    """A decoder for one video, from its first latent on.

    Raises:
        InputError: tiles in time that the VAE was set to have, which cannot be replayed.
    """
    return _kind(codec)(codec)


def restart(codec: Codec, frame: int) -> int:
    """The latent that a new decoder can begin at, as if the video did, to give the frames from ``frame`` on.

    These come out bit for bit as in the whole video; the decoder's first frame stands for frame ``s`` times
    the latent's index, and those before ``frame`` are to be dropped. For Wan the latents in between are what
    its network sees of the past; for HunyuanVideo they are a tile and its overlap at most.
    """
    return _kind(codec).restart(codec, frame)


def _kind(codec: Any) -> Any:
    return FrameStream if codec.temporal_stride == 1 else STREAMS[type(codec.vae).__name__]


class FrameStream:
    """A codec of single frames, given one at a time: batches of other sizes round differently."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._pixels = torch.empty(0)
        self.decoded = 0

    @staticmethod
    def restart(codec: Codec, frame: int) -> int:
        return frame

    @property
    def held(self) -> list[Tensor]:
        return []

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        pixels = torch.cat([self._codec.decode(latent) for latent in latents.split(1, dim=2)], dim=2)
        self.decoded += latents.shape[2]
        self._pixels = pixels.new_empty((*pixels.shape[:2], 0, *pixels.shape[3:]))
        return pixels

    def finish(self) -> Tensor:
        return self._pixels


class WanStream:
    """AutoencoderKLWan of Wan 2.1 and 2.2, as its ``_decode`` and ``tiled_decode`` go about it.

    Each tile in space, where ``enable_tiling`` made them, has a cache of its own. All latents of a push go
    through one tile and then through the next, whose cache lies in system memory meanwhile.
    """

    def __init__(self, codec: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

        self._codec, self._vae, self._unpatchify = codec, codec.vae, unpatchify
        self._convolutions = sum(isinstance(m, WanCausalConv3d) for m in codec.vae.decoder.modules())
        self._caches: dict[tuple[int, int], list[Any]] = {}
        self._pixels = torch.empty(0)
        self.decoded = 0

    @staticmethod
    def restart(codec: Any, frame: int) -> int:
        return max(0, -(-frame // codec.temporal_stride) - receptive_field(codec.vae.decoder))

    @property
    def held(self) -> list[Tensor]:
        return [kept for cache in self._caches.values() for kept in cache if isinstance(kept, Tensor)]

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        frames = self._frames(self._codec.unscale(latents))
        if self._patch > 1:
            frames = self._unpatchify(frames, self._patch)
        pixels = frames.clamp(-1, 1)
        self._pixels = pixels.new_empty((*pixels.shape[:2], 0, *pixels.shape[3:]))
        return pixels

    def finish(self) -> Tensor:
        return self._pixels

    @property
    def _patch(self) -> int:
        return self._vae.config.patch_size or 1

    def _frames(self, raw: Tensor) -> Tensor:
        """Latents (1, C, n, h, w) to their frames, before they are unpatchified."""
        vae, ratio, patch = self._vae, self._vae.spatial_compression_ratio, self._patch
        height, width = raw.shape[3:]
        tile = (vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio)
        step = (vae.tile_sample_stride_height // ratio, vae.tile_sample_stride_width // ratio)
        if not (vae.use_tiling and (height > tile[0] or width > tile[1])):
            tile = step = (height, width)
        shown = (vae.tile_sample_stride_height // patch, vae.tile_sample_stride_width // patch)
        blend = (
            vae.tile_sample_min_height // patch - shown[0],
            vae.tile_sample_min_width // patch - shown[1],
        )
        alone = step == (height, width)
        rows = [
            [
                self._tile(raw[..., top : top + tile[0], left : left + tile[1]], (top, left), alone=alone)
                for left in range(0, width, step[1])
            ]
            for top in range(0, height, step[0])
        ]
        self.decoded += raw.shape[2]
        if len(rows) == len(rows[0]) == 1:
            return rows[0][0]
        for i, row in enumerate(rows):
            for j, part in enumerate(row):  # in place: the next ones see what was blended
                if i > 0:
                    vae.blend_v(rows[i - 1][j], part, blend[0])
                if j > 0:
                    vae.blend_h(row[j - 1], part, blend[1])
        cut = [torch.cat([part[..., : shown[0], : shown[1]] for part in row], dim=-1) for row in rows]
        return torch.cat(cut, dim=3)[..., : height * ratio // patch, : width * ratio // patch]

    def _tile(self, raw: Tensor, corner: tuple[int, int], *, alone: bool) -> Tensor:
        """A tile's latents (1, C, n, h, w) to its frames. Of several, its cache is on the device just now."""
        vae, cache = self._vae, _moved(self._caches.pop(corner, [None] * self._convolutions), raw.device)
        frames = [
            vae.decoder(
                vae.post_quant_conv(latent),
                feat_cache=cache,
                feat_idx=[0],
                first_chunk=self.decoded + number == 0,
            )
            for number, latent in enumerate(raw.split(1, dim=2))
        ]
        self._caches[corner] = cache if alone else _moved(cache, self._codec.parking)
        return torch.cat(frames, dim=2)


def _moved(cache: list[Any], device: torch.device) -> list[Any]:
    """What convolutions saw last, and marks of those that saw nothing yet."""
    return [kept.to(device) if isinstance(kept, Tensor) else kept for kept in cache]


def receptive_field(decoder: Any) -> int:
    """Latents before one that its frames depend on, in Wan's decoder: 38 in the released ones.

    A convolution over k frames sees k - 1 before it, and frames double in number where time is upsampled.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    seen, rate = 0.0, 1
    for name, module in decoder.named_modules():  # in the order that they are passed
        if isinstance(module, WanCausalConv3d):
            seen += (module.kernel_size[0] - 1) / rate
            rate *= 2 if name.endswith("time_conv") else 1
    return math.ceil(seen)


class HunyuanVideoStream:
    """AutoencoderKLHunyuanVideo, as its ``_temporal_tiled_decode`` goes about it.

    A tile is decoded when its last latent is there. The frames in which it overlaps the next one are the
    next one's, so that they wait for it. Whether a video is long enough for tiles is known when the first
    one is full: until then, everything waits. Without ``use_framewise_decoding`` the whole video does.
    """

    def __init__(self, codec: Any) -> None:
        vae, stride = codec.vae, codec.temporal_stride
        self._codec, self._vae = codec, vae
        self._size, self._step = _tiles(vae, stride)
        self._frames = vae.tile_sample_stride_num_frames
        self._blend = vae.tile_sample_min_num_frames - self._frames
        self._waiting: Tensor | None = None  # latents from the next tile's first on
        self._tail: Tensor | None = None  # the last tile's frames in the next one
        self.decoded = 0

    @staticmethod
    def restart(codec: Any, frame: int) -> int:
        vae, stride = codec.vae, codec.temporal_stride
        size, step = _tiles(vae, stride)
        if not vae.use_framewise_decoding or step + 2 < size:
            return 0  # three tiles or more share a frame, or there are none
        # Tile i > 0 shows frames [1 + i * step * s, 1 + (i + 1) * step * s), the first ones blended.
        tile, inside = divmod(max(frame - 1, 0), step * stride)
        blended = inside < vae.tile_sample_min_num_frames - vae.tile_sample_stride_num_frames
        return max(0, tile - blended) * step

    @property
    def held(self) -> list[Tensor]:
        return [kept for kept in (self._waiting, self._tail) if kept is not None]

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        raw = self._codec.unscale(latents)
        waiting = raw if self._waiting is None else torch.cat([self._waiting, raw], dim=2)
        pixels = []
        while self._vae.use_framewise_decoding and waiting.shape[2] >= self._size:
            pixels.append(self._tile(waiting[:, :, : self._size]))
            waiting = waiting[:, :, self._step :]
        self._waiting = waiting.clone()  # not what it was cut from
        return self._join(pixels, raw)

    @torch.no_grad()
    def finish(self) -> Tensor:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None, "no latent was pushed"
        if self._tail is None:  # too short for tiles
            self.decoded += waiting.shape[2]
            return self._vae.decode(waiting, return_dict=False)[0].clamp(-1, 1)
        pixels = []
        while waiting.shape[2] > 1:  # of a tile of one latent, no frame is shown
            pixels.append(self._tile(waiting[:, :, : self._size]))
            waiting = waiting[:, :, self._step :]
        self._tail = None
        return self._join(pixels, waiting)

    def _join(self, pixels: list[Tensor], latents: Tensor) -> Tensor:
        if pixels:
            return torch.cat(pixels, dim=2).clamp(-1, 1)
        ratio = self._vae.spatial_compression_ratio
        return latents.new_empty(1, 3, 0, latents.shape[3] * ratio, latents.shape[4] * ratio)

    def _tile(self, raw: Tensor) -> Tensor:
        """A tile's latents (1, C, n, h, w) to the frames it shows, blended with the tile before."""
        vae, ratio = self._vae, self._vae.spatial_compression_ratio
        self.decoded += raw.shape[2]
        limits = (vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio)
        if vae.use_tiling and (raw.shape[3] > limits[0] or raw.shape[4] > limits[1]):
            frames = vae.tiled_decode(raw, return_dict=False)[0]
        else:
            frames = vae.decoder(vae.post_quant_conv(raw))
        shown = self._frames
        if self._tail is None:
            shown += 1
        else:
            frames = vae.blend_t(self._tail, frames[:, :, 1:], self._blend)
        self._tail = frames[:, :, -self._blend :].clone()
        return frames[:, :, :shown]


def _tiles(vae: Any, stride: int) -> tuple[int, int]:
    """Latents of a full tile, and from one tile to the next."""
    step, left = divmod(vae.tile_sample_stride_num_frames, stride)
    if left:
        raise InputError(
            f"tiles {vae.tile_sample_stride_num_frames} frames apart: a latent holds {stride}; "
            f"set tile_sample_stride_num_frames to a multiple of {stride}"
        )
    return vae.tile_sample_min_num_frames // stride + 1, step


STREAMS = {"AutoencoderKLHunyuanVideo": HunyuanVideoStream, "AutoencoderKLWan": WanStream}
"""By class of the VAE."""
