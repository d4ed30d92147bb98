"""What a conditioner makes of prompts and a picture, for any family.

Legend: B batch, L prompt tokens, D their width, P width of the pooled embedding, I image tokens,
E their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Everything beside latents that steers a transformer.

    Attributes:
        prompt: (B, L, D).
        mask: (B, L), true where ``prompt`` holds a token; None where all do, or where the family reads
            padding as it stands.
        pooled: (B, P), of families that have it.
        image: (B, I, E), of families that look at the start picture.
        guidance: scale of distilled guidance, for models that take it as an input.
    """

    prompt: torch.Tensor
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    image: torch.Tensor | None = None
    guidance: float | None = None

    def joined(self, other: Conditioning) -> Conditioning | None:
        """Both as one batch, self first; None where their shapes don't allow it."""
        merged: dict[str, Any] = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
                if mine.shape[1:] != theirs.shape[1:]:
                    return None
                merged[field.name] = torch.cat([mine, theirs])
            elif mine is not theirs and mine != theirs:
                return None
        return replace(self, **merged)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Conditioning:
        """The same on a device, floating-point tensors in ``dtype``."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                moved[field.name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
        return replace(self, **moved)


class Conditioner(Protocol):
    """Turns prompts, and the start picture where the family looks at it, into what steers the transformer."""

    @property
    def sees_picture(self) -> bool:
        """Whether ``encode`` makes anything of the picture."""
        ...

    def encode(self, prompts: Sequence[str], picture: Image | None = None) -> Conditioning:
        """One row for each prompt; the picture, RGB, is the same for all."""
        ...

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """What the prompts say in vain, one line each, for the user."""
        ...
