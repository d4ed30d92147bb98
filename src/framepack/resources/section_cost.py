"""What denoising one section takes, counted on tensors without data: operations and bytes.

Operations of a call are a polynomial in what it is given: linear in tokens where each goes through the same
matrices, in pairs of tokens where they attend to each other, and linear in the latent pixels that context
kernels gather. Counting at a few small sizes gives its coefficients, exactly.

Legend: B samples, C latent channels, T target frames, N context frames, h w latent grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from framepack.conditioning.embeds import Conditioning
from framepack.models.attention import attention_for
from framepack.packing.context import ContextTensors, Memory, PackedContext
from framepack.packing.schedule import Grid, Kernel, context_tensor_tokens
from framepack.resources.hollow import IMAGE_TOKENS, Architecture, empty_weights
from framepack.resources.operations import operation_counter
from framepack.resources.tally import Tally, bytes_of, tensors_in

COUNTED_BELOW = 4096
"""Tokens of context below which memory is counted, where attention with few tokens is another."""


@dataclass(frozen=True)
class Seen:
    """``frames`` latent frames of context, pooled by ``pool`` and cut by ``kernel``."""

    kernel: Kernel
    frames: int
    pool: Kernel | None = None

    def tokens(self, grid: Grid) -> int:
        """Padding included."""
        return context_tensor_tokens(self.frames, grid, self.kernel, self.pool)


@dataclass(frozen=True)
class Shape:
    """What the cost of a section depends on: latent frames that it makes, and the context that it sees."""

    target: int
    seen: tuple[Seen, ...] = ()

    def target_tokens(self, grid: Grid, base: Kernel) -> int:
        return context_tensor_tokens(self.target, grid, base)

    def context_tokens(self, grid: Grid) -> int:
        return sum(level.tokens(grid) for level in self.seen)

    def context_pixels(self, grid: Grid) -> int:
        """Latent pixels that the kernels gather, padding included."""
        return sum(level.tokens(grid) * math.prod(level.kernel) for level in self.seen)


@dataclass(frozen=True)
class Count:
    """Of the calls of one section.

    first, later: operations of its first call, and of each after it; they differ only where history is
        isolated, whose keys and values the first call computes and the others find.
    peak: most bytes held during a later call, weights and what is cached included.
    cached: bytes of keys and values that are kept between the calls.
    """

    first: int
    later: int
    peak: int
    cached: int


Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Operations:
    """Of the first call of each section, and of a later one; attention between latent tokens by itself."""

    first_rest: Numbers
    first_attention: Numbers
    later_rest: Numbers
    later_attention: Numbers

    @property
    def first(self) -> Numbers:
        return self.first_rest + self.first_attention

    @property
    def later(self) -> Numbers:
        return self.later_rest + self.later_attention


class SectionCost:
    """Counts sections of one transformer on one latent grid.

    Args:
        section: latent frames that a whole section makes.
        kernels: of the methods to be counted.
        batch: samples to a call, such as 2 where the branches of guidance go together.
        timestep: of the context, see `PackedContext`.
        device: where it would compute; on a CPU attention is the one that sampling takes there.
        isolated: history attends to history only, and is cached.
    """

    def __init__(
        self,
        architecture: Architecture,
        grid: Grid,
        *,
        section: int,
        kernels: Iterable[Kernel] = (),
        dtype: torch.dtype,
        device: torch.device,
        batch: int = 1,
        timestep: float | None = None,
        isolated: bool = False,
    ) -> None:
        spec = architecture.spec
        self.architecture, self.grid, self.base = architecture, grid, spec.base_kernel
        self.dtype, self.device, self.batch, self.section = dtype, device, batch, section
        self.kernels = tuple(dict.fromkeys((self.base, *kernels)))
        self.isolated = isolated or bool(architecture.arguments.get("isolated_history"))
        self.timestep = 0.0 if self.isolated else timestep
        self._mode = FakeTensorMode()
        # Blocks of a stack are alike, so what one adds is counted, and taken as often as there are more. Two
        # at least: in the first of all, memory does not yet hold what it holds in the others.
        blocks = architecture.blocks
        least = {name: min(count, 1 if len(blocks) > 1 else 2) for name, count in blocks.items()}
        self._parts = [(1, self._made(least))]
        for name, count in blocks.items():
            if count > least[name]:
                self._parts.append((count - least[name], self._made(least | {name: least[name] + 1})))
        self._counts: dict[Shape, Count] = {}

    def _made(self, blocks: Mapping[str, int]) -> Any:
        made = self.architecture.hollow(self.kernels, self.dtype, isolated=self.isolated, blocks=blocks)
        with self._mode:
            empty_weights(made)
        return made

    def _whole(self, values: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """What the whole model comes to, by what each of its parts does."""
        least = values[0]
        more = (
            times * (value - least) for (times, _), value in zip(self._parts[1:], values[1:], strict=True)
        )
        return sum(more, start=least)

    @cached_property
    def weights(self) -> int:
        """Bytes of them."""
        return int(self._whole([np.array(bytes_of(tensors_in(part))) for _, part in self._parts]))

    # Counted -------------------------------------------------------------------------------------------

    def count(self, shape: Shape) -> Count:
        """The calls of a section, carried out without data."""
        if shape not in self._counts:
            counted = self._whole([self._counted(part, shape) for _, part in self._parts])
            self._counts[shape] = Count(*map(int, counted))
        return self._counts[shape]

    def _counted(self, transformer: Any, shape: Shape) -> NDArray[np.int64]:
        """Fields of `Count`."""
        context = self._context(transformer, shape)
        operations = []
        with torch.no_grad(), self._mode, Tally(tensors_in(transformer)) as tally:
            for _ in range(2 if context.memory is not None else 1):
                tally.rewind()
                with operation_counter() as counter:
                    self._call(transformer, shape, context)
                operations.append(counter.get_total_flops())
        held = () if context.memory is None else context.memory.held.values()
        cached = bytes_of(tensor for pair in held for tensor in pair)
        return np.array([operations[0], operations[-1], tally.peak, cached], dtype=np.int64)

    def _context(self, transformer: Any, shape: Shape) -> PackedContext:
        with self._mode:
            context = packed_context(
                shape,
                self.architecture.spec.latent_channels,
                self.grid,
                lambda *sizes: torch.empty(self.batch, *sizes, dtype=self.dtype),
                aligned=bool(transformer.config.aligned),
                timestep=self.timestep,
            )
        return replace(context, memory=Memory() if self.isolated and shape.seen else None)

    def _call(self, transformer: Any, shape: Shape, context: PackedContext) -> None:
        spec, config = self.architecture.spec, transformer.config

        def empty(*sizes: int) -> torch.Tensor:
            return torch.empty(self.batch, *sizes, dtype=self.dtype)

        steered = steering(self.architecture, config, empty)
        noisy = empty(spec.latent_channels, shape.target, *self.grid)
        timestep = torch.full((self.batch,), 500.0)
        with attention_for(self.device, self.dtype):
            transformer(noisy, timestep, steered, torch.arange(shape.target), context)

    # Foretold ------------------------------------------------------------------------------------------

    def plain(self, target: int, frames: int) -> Shape:
        """A section that sees ``frames`` at the base kernel."""
        return Shape(target, (Seen(self.base, frames),) if frames else ())

    def sizes(self, shapes: Sequence[Shape]) -> tuple[Integers, Integers, Integers]:
        """Target and context tokens, and latent pixels of the context, by shape."""
        found = [
            (s.target_tokens(self.grid, self.base), s.context_tokens(self.grid), s.context_pixels(self.grid))
            for s in shapes
        ]
        target, context, pixels = np.array(found, dtype=np.int64).T
        return target, context, pixels

    @cached_property
    def _polynomials(self) -> Numbers:
        """Coefficients (first or later, 7) of `_terms`, by counting where there is context."""
        t, n = self.section, self._foretold_from
        pairs = [*((t, frames) for frames in n[:3]), (t + 1, n[0]), (t + 1, n[1]), (t + 2, n[0])]
        points = [self.plain(target, frames) for target, frames in pairs]
        coarse = [kernel for kernel in self.kernels if kernel != self.base]
        points += [Shape(t, (Seen(self.base, n[0]), Seen(kernel, n[0]))) for kernel in coarse[:1]]
        rows = _terms(*self.sizes(points))
        counts = [self.count(point) for point in points]
        wanted = np.array([(count.first, count.later) for count in counts], dtype=np.float64)
        scale = rows.max(axis=0)
        found = np.linalg.lstsq(rows / scale, wanted, rcond=None)[0]
        return (found / scale[:, None]).T

    def operations(self, target: Integers, context: Integers, pixels: Integers) -> Operations:
        """Operations of sections' calls.

        Args:
            target, context: tokens. pixels: latent pixels of the context, see `Shape`.
        """
        terms = _terms(target, context, pixels)
        pairs = np.array([False] * 4 + [True] * 3)
        parts = [[terms[:, chosen] @ row[chosen] for chosen in (~pairs, pairs)] for row in self._polynomials]
        # Without context a model may leave out what has to do with it: few sections, which are counted.
        per_frame = self.plain(1, 0).target_tokens(self.grid, self.base)
        for tokens in np.unique(target[context == 0]):
            count = self.count(self.plain(int(tokens) // per_frame, 0))
            alone = (context == 0) & (target == tokens)
            for (rest, attention), whole in zip(parts, (count.first, count.later), strict=True):
                rest[alone] = whole - attention[alone]
        return Operations(*parts[0], *parts[1])

    @property
    def attention_varies(self) -> bool:
        """Whether sections of few tokens have attention of another kind, which keeps its probabilities."""
        return not isinstance(attention_for(self.device, self.dtype), nullcontext)

    @cached_property
    def _foretold_from(self) -> tuple[int, ...]:
        """Latent frames at the base kernel that memory is foretold from, and operations too."""
        low = self.section
        if self.attention_varies:
            low = max(low, -(-COUNTED_BELOW // self.plain(1, 0).target_tokens(self.grid, self.base)))
        return low, 4 * low, 16 * low, 64 * low

    def peaks(self, frames: Integers) -> Numbers:
        """Bytes at the peak of whole sections that see so many frames at the base kernel.

        Along lines between counted points, for all that grows does so evenly: only what is at the peak
        changes. What lies below the first of them is counted.
        """
        at = np.array(self._foretold_from)
        counted = np.array([self.count(self.plain(self.section, int(n))).peak for n in at])
        slope = (counted[-1] - counted[-2]) / (at[-1] - at[-2])
        peaks = np.interp(frames, at, counted) + slope * np.maximum(frames - at[-1], 0)
        for n in np.unique(frames[frames < at[0]]):
            peaks[frames == n] = self.count(self.plain(self.section, int(n))).peak
        return peaks


def packed_context(
    shape: Shape,
    channels: int,
    grid: Grid,
    make: Callable[..., torch.Tensor],
    *,
    aligned: bool,
    timestep: float | None,
) -> PackedContext:
    """Context of a shape; ``make`` adds the batch. The others as in `PackedContext`."""
    levels, at = [], 0
    for level in shape.seen:
        frames, h, w = (
            -(-n // p) for n, p in zip((level.frames, *grid), level.pool or (1, 1, 1), strict=True)
        )
        # Where frames stand decides nothing of the cost.
        positions = torch.arange(at, at + frames)
        levels.append(
            ContextTensors(make(channels, frames, h, w), positions, level.kernel, level.pool or (1, 1, 1))
        )
        at += frames
    beside = make(2 * channels + 2, shape.target, *grid) if aligned else None
    return PackedContext(tuple(levels), beside, timestep)


def steering(architecture: Architecture, config: Any, make: Callable[..., torch.Tensor]) -> Conditioning:
    """What steers a transformer of this configuration, of the sizes that it has; ``make`` adds the batch."""
    tokens = architecture.prompt_tokens
    if architecture.spec.family == "wan":
        return Conditioning(prompt=make(tokens, config.text_dim))
    return Conditioning(
        prompt=make(tokens, config.text_embed_dim),
        pooled=make(config.pooled_projection_dim),
        image=make(IMAGE_TOKENS, config.image_proj_dim) if config.has_image_proj else None,
        guidance=architecture.spec.embedded_guidance if config.guidance_embeds else None,
    )


def _terms(target: Integers, context: Integers, pixels: Integers) -> Numbers:
    """(sections, 7): what operations are a sum of."""
    t, c, p = (part.astype(np.float64) for part in (target, context, pixels))
    return np.stack([np.ones_like(t), t, c, p, t * t, t * c, c * c], axis=1)
