"""What a model's codec takes, counted on tensors without data on the VAE class that really runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from framepack.codecs.frame import FrameAutoencoder
from framepack.codecs.streaming import stream_decoder, together
from framepack.errors import ModelError, first_line
from framepack.packing.schedule import Grid
from framepack.resources.alike import Alike
from framepack.resources.companions import Companion, config_of, fields_of
from framepack.resources.hollow import Architecture, empty_weights, made_in
from framepack.resources.operations import operation_counter
from framepack.resources.tally import Tally, bytes_of, tensors_in
from framepack.resources.weights import weigh

WAN_2_2_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,  # these decide nothing of the cost
    "latents_std": [1.0] * 48,
}
"""Of Wan-AI/Wan2.2-TI2V-5B-Diffusers; the other released VAEs are diffusers' defaults of their class."""
PARKING = torch.device("meta")
"""Stands for the system's memory beside a device, whose tensors are all said to be on the CPU here."""


class CodecCost:
    """Counts the work of a model's codec.

    Args:
        device: where it would work, which says what in.

    Raises:
        ModelError: a configuration that makes no codec.
    """

    def __init__(self, architecture: Architecture, grid: Grid, device: torch.device) -> None:
        from framepack.codecs.video_vae import VAES, VideoCodec, released_dtype

        spec = architecture.spec
        self.grid, self.spec = grid, spec
        self._mode, self._copies = FakeTensorMode(), device.type == "cpu"
        config, _ = config_of(architecture, "codec")
        if config is not None:
            self.published, self.what = False, FrameAutoencoder.__name__
            with torch.device("meta"):
                made: Any = FrameAutoencoder(**fields_of(config))
        else:
            config, self.published = config_of(architecture, "vae")
            self.what = "AutoencoderKLWan" if spec.family == "wan" else "AutoencoderKLHunyuanVideo"
            kind = VAES[self.what]
            config = config or (WAN_2_2_VAE if spec.latent_channels == 48 else {})
            try:
                with torch.device("meta"), made_in(released_dtype(kind, device)):
                    made = kind.from_config(config)
            except Exception as error:  # torch and diffusers have errors of many kinds for it
                raise ModelError(
                    f"{spec.name}'s vae has a configuration that makes no {self.what} "
                    f"({first_line(error)}): download it again"
                ) from error
        made.eval().requires_grad_(False)
        self.weights = weigh(made)
        with self._mode:
            empty_weights(made)
            self._codec: Any = made if self.what == FrameAutoencoder.__name__ else VideoCodec(made)
        if device.type == "cuda":
            self._codec.parking = PARKING

    @property
    def has_tiles(self) -> bool:
        return hasattr(self._codec, "enable_tiling")

    def _tile(self, tiled: bool) -> None:
        if self.has_tiles:
            self._codec.vae.use_tiling = tiled

    def _run(self, work: Callable[[Callable[[], int]], None]) -> tuple[int, int]:
        """Most bytes beside the weights, and operations; ``work`` is given what tells those so far."""
        tally = Tally(tensors_in(self._codec), apart=PARKING, copies=self._copies)
        with torch.no_grad(), self._mode, tally:
            before = tally.live
            with operation_counter() as counter:
                alike = Alike(tally, counter.get_total_flops)
                with alike.instead_of(getattr(self._codec, "vae", None)):
                    work(alike.operations)
                    return tally.peak - before, alike.operations()

    def encode(self, *, tiled: bool = False) -> Companion:
        """A start picture."""
        self._tile(tiled)
        height, width = (side * self.spec.spatial_stride for side in self.grid)
        peak, operations = self._run(lambda told: self._codec.encode(torch.empty(1, 3, 1, height, width)))
        return self._companion("encode tiled" if tiled else "encode", peak, operations)

    def decode(self, latents: int, *, tiled: bool = False) -> Companion:
        """A video of so many latents as `generation.decode` has it, a few at a time.

        Long ones are counted to where the work repeats itself, and from there by the latent.
        """
        self._tile(tiled)
        pushes = self._pushes(latents)
        done = sum(pushes)
        counts: list[int] = []
        parked: list[int] = []

        def push(told: Callable[[], int]) -> None:
            decoder = stream_decoder(self._codec)
            for count in pushes:
                # What came of one push is held during the next.
                pixels = decoder.push(torch.empty(1, self.spec.latent_channels, count, *self.grid))
                counts.append(told())
            pixels = decoder.finish()
            parked.append(bytes_of(kept for kept in decoder.held if kept.device == PARKING))
            del pixels

        peak, operations = self._run(push)
        if latents > done:
            operations += (counts[-1] - counts[-2]) * (latents - done) // pushes[-1]
        # Tiles' caches go and come with every push.
        moved = 2 * parked[0] * -(-latents // together(self.spec.temporal_stride))
        return self._companion("decode tiled" if tiled else "decode", peak, operations, moved)

    def _pushes(self, latents: int) -> list[int]:
        """Latents to be pushed one after the other, the last of which does what all after it would do."""
        count = together(self.spec.temporal_stride)
        wanted = [count, count, count]
        if self.what == "AutoencoderKLHunyuanVideo":  # which waits for a window, and then for each next one
            vae, stride = self._codec.vae, self.spec.temporal_stride
            wanted = [
                vae.tile_sample_min_num_frames // stride + 1,
                vae.tile_sample_stride_num_frames // stride,
            ]
        pushes: list[int] = []
        for most in wanted:
            now = min(most, latents - sum(pushes))
            pushes += [now] if now > 0 else []
        return pushes

    def _companion(self, name: str, activations: int, operations: float, moved: int = 0) -> Companion:
        return Companion(
            name=name,
            what=self.what,
            weights=self.weights,
            held=self.weights.total,
            activations=activations,
            operations=float(operations),
            moved=moved,
            published=self.published,
        )
