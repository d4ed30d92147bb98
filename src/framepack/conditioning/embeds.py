"""What a conditioner makes of prompts and a picture, for any family.

Legend: B batch, L prompt tokens, D their width, P width of the pooled embedding, I image tokens,
E their width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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

    def digest(self) -> str:
        """sha256 over all of it, as hex digits."""
        total = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                total.update(f"{field.name} {value.dtype} {tuple(value.shape)}".encode())
                total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            else:
                total.update(f"{field.name} {value!r}".encode())
        return total.hexdigest()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """The same on a device, floating-point tensors in ``dtype``; offloading hooks give none."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                moved[field.name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
        return replace(self, **moved)


def mixed(parts: Sequence[tuple[Conditioning, float]]) -> Conditioning:
    """Between several: prompt and pooled embedding are means by weight; weights add up to 1.

    A token that one of them lacks, by its mask or by its length, counts as zeros there, and the mask is the
    union: as its weight goes to 0 a prompt fades from the tokens that only it has. Wan's family, which has no
    mask, reads zeros there anyway, so that both see the same. Image and guidance are those of the first, and
    have to be the same in all.
    """
    first = parts[0][0]
    if len(parts) == 1:
        return first
    length = max(part.prompt.shape[1] for part, _ in parts)
    masks = [_mask(part, length) for part, _ in parts]
    prompt = sum(
        weight * _padded(part.prompt, length).float().masked_fill(~mask[..., None], 0.0)
        for (part, weight), mask in zip(parts, masks, strict=True)
    )
    pooled = None
    if first.pooled is not None:
        pooled = sum(weight * part.pooled.float() for part, weight in parts).to(first.pooled)  # type: ignore
    return replace(
        first,
        prompt=prompt.to(first.prompt),  # type: ignore[union-attr]
        mask=None if all(part.mask is None for part, _ in parts) else torch.stack(masks).any(0),
        pooled=pooled,
    )


def _padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    """(B, n, ...) with zeros up to ``length``, (B, length, ...)."""
    missing = rows.new_zeros(rows.shape[0], length - rows.shape[1], *rows.shape[2:])
    return torch.cat([rows, missing], dim=1)


def _mask(part: Conditioning, length: int) -> torch.Tensor:
    """(B, length), true where there is a token."""
    mask = torch.ones_like(part.prompt[..., 0], dtype=torch.bool) if part.mask is None else part.mask.bool()
    return _padded(mask, length)


class Conditioner(Protocol):
    """Turns prompts, and the start picture where the family looks at it, into what steers the transformer."""

    @property
    def sees_picture(self) -> bool:
        """Whether ``encode`` makes anything of the picture."""
        ...

    def encode(self, prompts: Sequence[str], picture: Image | None = None) -> Conditioning:
        """One row for each prompt; the picture, RGB, is the same for all."""
        ...

    def prepare(self, prompts: Sequence[str], picture: Image | None = None) -> None:
        """Told of all prompts that are to come, so that a large encoder need be loaded only once."""
        ...

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """What the prompts say in vain, one line each, for the user."""
        ...


class GivenConditioner:
    """Embeddings that a caller brings, each under a name that stands for a prompt; others go to ``base``.

    Image tokens are those of the given ``Conditioning``: the picture is looked at for other prompts only.
    """

    def __init__(self, base: Conditioner, given: Mapping[str, Conditioning]) -> None:
        self.base, self.given = base, dict(given)

    @property
    def sees_picture(self) -> bool:
        return self.base.sees_picture

    def encode(self, prompts: Sequence[str], picture: Image | None = None) -> Conditioning:
        (prompt,) = prompts
        found = self.given.get(prompt)
        return self.base.encode(prompts, picture) if found is None else found

    def prepare(self, prompts: Sequence[str], picture: Image | None = None) -> None:
        others = [prompt for prompt in prompts if prompt not in self.given]
        if others:
            self.base.prepare(others, picture)

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        return self.base.remarks([prompt for prompt in prompts if prompt not in self.given])
