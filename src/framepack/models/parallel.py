"""One sequence of tokens computed by several processes, each on a device of its own.

Ulysses (Jacobs and others 2023, "DeepSpeed Ulysses"): a process has its part of the tokens and all heads, but
in self-attention it has all tokens and its part of the heads. The exchange in attention is diffusers'
(``ContextParallelConfig``). Which tokens are whose is settled here, for history and noisy tokens apart, so
that each process has as much of both; diffusers' own hooks split a sequence as a whole, ask for an
accelerator, and cannot put parts of unequal length together on CPUs.

Legend: B batch, n tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ParallelConfig, gather_size_by_comm
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch.distributed.device_mesh import init_device_mesh

from framepack.codecs.loading import CONFIG_FILE, read_json
from framepack.errors import InputError
from framepack.models.single_file import read_config
from framepack.models.source import Source


@dataclass(frozen=True, kw_only=True)
class Share:
    """Process ``rank`` of ``count`` that compute one sequence."""

    rank: int
    count: int

    def sizes(self, tokens: int) -> list[int]:
        """How many of so many tokens each process has, as ``tensor_split`` shares them out."""
        each, rest = divmod(tokens, self.count)
        return [each + (rank < rest) for rank in range(self.count)]

    def own(self, tokens: torch.Tensor, noisy: int, dim: int = 1) -> torch.Tensor:
        """Of a sequence along ``dim``, whose last ``noisy`` are one kind and all before another, this part.

        Raises:
            InputError: fewer of one kind than there are processes.
        """
        parts = []
        for part in tokens.split([tokens.shape[dim] - noisy, noisy], dim):
            if 0 < part.shape[dim] < self.count:
                raise InputError(
                    f"{part.shape[dim]} tokens cannot be shared by {self.count} devices: use fewer "
                    "--devices, or a larger --size"
                )
            parts.append(part.tensor_split(self.count, dim)[self.rank])
        return torch.cat(parts, dim)

    def enough(
        self, text: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompt tokens (B, L, D), at least one for each process, and where they hold something, (B, L)."""
        short = self.count - text.shape[1]
        if short <= 0:
            return text, mask
        mask = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
        return F.pad(text, (0, 0, 0, short)), F.pad(mask, (0, short))

    def mask(self, latents: int, text_mask: torch.Tensor) -> torch.Tensor:
        """Of all keys in attention (B, n), where each process has some latents and then its part of the text.

        Args:
            latents: how many of them this one has; all are shown. text_mask: of the whole text.
        """
        counts = gather_size_by_comm(latents, dist.group.WORLD)
        parts = text_mask.tensor_split(self.count, 1)
        return torch.cat([F.pad(part, (n, 0), value=1) for n, part in zip(counts, parts, strict=True)], dim=1)

    def whole(self, own: torch.Tensor, tokens: int) -> torch.Tensor:
        """Of ``tokens`` of one kind (B, tokens, D), from the parts of all processes."""
        sizes = self.sizes(tokens)
        # Of one size, as gloo wants them.
        padded = F.pad(own, (0, 0, 0, sizes[0] - own.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)


@contextmanager
def shared(model: Any, device: torch.device) -> Iterator[None]:
    """Have the processes of the default group compute what the packed transformer ``model`` is called with.

    All must make the same calls. On the way out it is as it was.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    config = ParallelConfig(
        context_parallel_config=ContextParallelConfig(ulysses_degree=count, ulysses_anything=True)
    )
    mesh = init_device_mesh(device.type, (1, count), mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, count, device, mesh=mesh)
    processors = [getattr(module, "processor", None) for module in model.modules()]
    parallel: list[Any] = [processor for processor in processors if hasattr(processor, "_parallel_config")]
    assert parallel, type(model)
    try:
        for processor in parallel:
            processor._parallel_config = config
        model.share = Share(rank=rank, count=count)
        yield
    finally:
        model.share = None
        for processor in parallel:
            processor._parallel_config = None


def shares_attention(backend: str) -> bool:
    """Whether one of diffusers' attention backends computes what several devices share."""
    name = AttentionBackendName(backend)
    return bool(_AttentionBackendRegistry._is_context_parallel_available(name))


def check_shareable(source: Source, count: int) -> None:
    """See that a model's sequence can be shared by ``count`` devices; its weights are not needed.

    Raises:
        InputError: heads that do not divide evenly, or causal history.
    """
    place, name = source.transformer, source.spec.name
    config = read_config(place) if place.is_file() else read_json(place / CONFIG_FILE)
    heads = int(config["num_attention_heads"])
    if heads % count:
        divisors = [str(number) for number in range(2, heads + 1) if heads % number == 0]
        raise InputError(
            f"{heads} attention heads of {name} cannot be shared by {count} devices: use --devices "
            f"{', '.join(divisors)} or one"
        )
    if config.get("causal_history"):
        raise InputError(f"{name} has causal history, which one device computes: leave --devices out")
