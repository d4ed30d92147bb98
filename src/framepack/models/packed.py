"""What the packed transformers of both families have in common: their kernels, and how context comes in.

Legend: B batch, C latent channels, T target frames, h w latent grid, D model width, n tokens of one level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from torch import nn

from framepack.models.history_attention import check_isolated
from framepack.packing.context import Memory, PackedContext
from framepack.packing.kernels import PatchKernels, pad_to_kernel
from framepack.packing.schedule import Kernel

if TYPE_CHECKING:
    from framepack.models.parallel import Share


class PackedTransformer:
    """Stands before diffusers' class among the bases of a packed transformer.

    share: of its sequence, where several processes compute it together.
    """

    config: Any
    packing_kernels: PatchKernels
    is_cache_enabled: bool
    register_to_config: Callable[..., None]
    share: Share | None = None

    @property
    def base_projection(self) -> nn.Conv3d:
        """The projection of the noisy target, of which new kernels are made."""
        raise NotImplementedError

    @property
    def stack(self) -> tuple[Any, ...]:
        """Its blocks, in the order that tokens go through them."""
        raise NotImplementedError

    def add_kernels(self, kernels: Iterable[Kernel]) -> None:
        """Make the model take kernels it was not trained with, initialised as in ``adopt``."""
        fresh = [kernel for kernel in dict.fromkeys(kernels) if not self.packing_kernels.has(kernel)]
        if fresh:
            self.packing_kernels.add(fresh, self.base_projection)
            self.register_to_config(context_kernels=(*self.config.context_kernels, *fresh))
            _maybe_remove_and_reapply_group_offloading(self)  # its hooks know the modules there were

    def _target(self, latents: torch.Tensor, context: PackedContext, base: Kernel) -> torch.Tensor:
        """Noisy latents (B, C, T, h, w) with the aligned channels behind them, padded to the base kernel."""
        if self.config.aligned:
            assert context.aligned is not None, "this model needs the aligned channels"
            latents = torch.cat([latents, context.aligned], dim=1)
        return pad_to_kernel(latents, base)

    def _history(self, context: PackedContext) -> list[torch.Tensor]:
        """Tokens (B, n, D) of each level."""
        return [self.packing_kernels(level.latents, level.kernel) for level in context.levels]

    def _memory(self, context: PackedContext) -> Memory | None:
        """Where keys and values of isolated history are kept; None where history goes along in each call.

        It does so under a step cache too, which would take the pass over the history for a step.

        Raises:
            InputError: isolated history with the timestep of the noisy frames.
        """
        if not (self.config.isolated_history and context.levels):
            return None
        check_isolated(context)
        return None if self.is_cache_enabled else context.memory

    def _own(self, tokens: torch.Tensor, noisy: int, dim: int = 1) -> torch.Tensor:
        """This process's part of a sequence [history | ``noisy`` tokens] along ``dim``."""
        return tokens if self.share is None else self.share.own(tokens, noisy, dim)

    def _own_noisy(self, noisy: int) -> int:
        """How many of so many noisy tokens are in it."""
        return noisy if self.share is None else self.share.sizes(noisy)[self.share.rank]

    def _shown(self, latents: int, text_mask: torch.Tensor) -> torch.Tensor:
        """Mask (B, n) of the keys in attention: this many latents, all shown, and the text."""
        if self.share is not None:
            return self.share.mask(latents, text_mask)
        return torch.cat([text_mask.new_ones(len(text_mask), latents), text_mask], dim=1)

    def _whole(self, own: torch.Tensor, noisy: int) -> torch.Tensor:
        """All noisy tokens (B, noisy, D) from this process's and the others'."""
        return own if self.share is None or not noisy else self.share.whole(own, noisy)
