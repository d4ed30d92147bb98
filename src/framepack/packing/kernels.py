"""Patchify kernels of several sizes, made from one base kernel.

Legend: B batch, C latent channels, N frames of one level, h w latent grid, D model width,
n tokens of one level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from framepack.packing.schedule import Kernel


def kernel_name(kernel: Kernel) -> str:
    """Parameter name of a kernel: (2, 4, 4) is ``k2h4w4``, the paper's long notation."""
    return f"k{kernel[0]}h{kernel[1]}w{kernel[2]}"


def pad_to_kernel(latents: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """Replicate the last frame, row and column of (B, C, N, h, w) until the kernel divides them."""
    pads = [(-size) % k for size, k in zip(latents.shape[2:], kernel, strict=True)]
    if not any(pads):
        return latents
    return F.pad(latents, (0, pads[2], 0, pads[1], 0, pads[0]), mode="replicate")


def expand_kernel(weight: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """Initialise a larger kernel from the base one.

    The base weight (D, C, p_t, p_h, p_w) is repeated along time, height and width and divided by
    the number of repeats, so that on a constant input both kernels give the same token
    (Zhang and others 2025, "independent patchifying parameters").

    Raises:
        ValueError: the base kernel does not divide the wanted one.
    """
    base = weight.shape[2:]
    repeats = [k // b for k, b in zip(kernel, base, strict=True)]
    if any(r * b != k for r, b, k in zip(repeats, base, kernel, strict=True)):
        raise ValueError(f"kernel {kernel} is not a multiple of the base kernel {tuple(base)}")
    return weight.repeat(1, 1, *repeats) / (repeats[0] * repeats[1] * repeats[2])


class PatchKernels(nn.Module):
    """One projection (C -> D) for each kernel size, with parameters of its own.

    Args:
        kernels: the sizes, each once.
        channels: C.
        width: D.
    """

    def __init__(self, kernels: Iterable[Sequence[int]], channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        sizes = [(t, h, w) for t, h, w in kernels]  # a configuration read from JSON has lists
        self.projections = nn.ModuleDict(
            {kernel_name(k): nn.Conv3d(channels, width, kernel_size=k, stride=k) for k in sizes}
        )

    def has(self, kernel: Kernel) -> bool:
        return kernel_name(kernel) in self.projections

    def add(self, kernels: Iterable[Kernel], base: nn.Conv3d) -> None:
        """New kernels, made from ``base`` as ``initialise`` makes them; the others stay as they are."""
        fresh = PatchKernels(kernels, self.channels, base.weight.shape[0]).to(base.weight)
        fresh.initialise(base)
        self.projections.update(dict(fresh.projections.items()))

    @torch.no_grad()
    def initialise(self, base: nn.Conv3d) -> None:
        """Set every kernel from the base projection, of whose input the first C channels are latents."""
        for projection in self.projections.values():
            assert isinstance(projection, nn.Conv3d) and projection.bias is not None and base.bias is not None
            weight = base.weight[:, : projection.in_channels]
            kernel: Kernel = projection.kernel_size  # type: ignore[assignment]
            projection.weight.copy_(expand_kernel(weight.float(), kernel))
            projection.bias.copy_(base.bias)

    def forward(self, latents: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        """(B, C, N, h, w) -> (B, n, D), padded to the kernel first, and computed in its precision."""
        projection: Any = self.projections[kernel_name(kernel)]
        tokens = projection(pad_to_kernel(latents, kernel).to(projection.weight.dtype))
        return tokens.flatten(2).transpose(1, 2).to(latents.dtype)
