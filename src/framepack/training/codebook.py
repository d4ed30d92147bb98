"""Codewords for discretised history, by k-means over latent pixels of the training data.

Legend: n pixels, K codewords, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from framepack.data.latents import LatentCache
from framepack.data.reader import EncodedClips
from framepack.errors import InputError
from framepack.packing.discretisation import codewords

BATCHES, PIXELS = 96, 8192
"""Mini-batches, and pixels in each; a batch has ``PER_WORD`` pixels a codeword at least."""
PER_WORD = 16


def fit_codebook(batches: Iterable[torch.Tensor], size: int, seed: int = 0) -> torch.Tensor:
    """K = ``size`` centroids (K, C), float32, on the CPU.

    Mini-batch k-means (Sculley 2010) from a k-means++ start in the first batch: a centroid is the mean of
    all pixels it was ever given. The same batches and seed give the same centroids.

    Args:
        batches: pixels (n, C) each, at random from the data; the first has K or more that differ.

    Raises:
        InputError: fewer different pixels than codewords, or pixels that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.empty(0)
    counts = torch.zeros(size, dtype=torch.float64)
    sums = torch.empty(0)
    for batch in batches:
        pixels = batch.detach().float().cpu()
        if not bool(pixels.isfinite().all()):
            raise InputError("the latents have values that are not finite: encode the data again")
        if not len(centroids):
            centroids = _start(pixels, size, generator)
            sums = torch.zeros(centroids.shape, dtype=torch.float64)
        rows = codewords(pixels, centroids)
        sums.index_add_(0, rows, pixels.double())
        counts += rows.bincount(minlength=size)
        used = counts > 0
        centroids[used] = (sums[used] / counts[used, None]).float()
    return centroids


def _start(pixels: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """K of the pixels, each drawn by its squared distance to those already drawn (k-means++)."""
    chosen = [int(torch.randint(len(pixels), (1,), generator=generator))]
    distance = torch.full((len(pixels),), torch.inf)
    for _ in range(size - 1):
        # The difference itself, so that a pixel that was drawn, or equals one, is exactly 0 away.
        distance = torch.minimum(distance, (pixels - pixels[chosen[-1]]).square().sum(1))
        if not bool(distance.any()):
            raise InputError(
                f"{size} codewords, and the latents have {len(chosen)} different pixels: ask for fewer"
            )
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
    return pixels[chosen].clone()


def pixels_of(
    cache: LatentCache | EncodedClips, size: int, seed: int, batches: int = BATCHES
) -> Iterator[torch.Tensor]:
    """Random pixels (n, C) of a cache, enough for K = ``size``: of 16 clips a batch, four frames each."""
    rng = np.random.default_rng([seed, size])
    count = max(PIXELS, PER_WORD * size)
    for _ in range(batches):
        clips = cache.draw(rng, 16)
        lengths = (cache.config.frames if isinstance(cache, LatentCache) else cache.lengths[c] for c in clips)
        frames = [rng.integers(0, length, 4).tolist() for length in lengths]
        latents = cache.latents(clips, frames).movedim(1, -1).flatten(0, -2)
        chosen = torch.from_numpy(rng.integers(0, len(latents), count))
        yield latents[chosen.to(latents.device)]
