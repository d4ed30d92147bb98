"""Prompts of the bundled model: a few known words, in any order and in two languages.

Legend: B batch, L word slots of a prompt, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from framepack.conditioning.embeds import Conditioning
from framepack.conditioning.lexicon import parse

if TYPE_CHECKING:
    from PIL.Image import Image


class WordConditioner(ModelMixin, ConfigMixin):
    """Looks the known words of a prompt up in a table of embeddings; the order of words carries nothing.

    Args:
        words: the vocabulary, in the order of the table's rows. Row 0 stands for "no word".
        width: D.
        length: L, the most words a prompt can have.
    """

    @register_to_config
    def __init__(self, words: tuple[str, ...] = (), width: int = 192, length: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(len(words) + 1, width)
        nn.init.normal_(self.table.weight, std=1.0)
        self._rows = {word: row for row, word in enumerate(words, start=1)}

    def rows_of(self, words: tuple[str, ...]) -> list[int]:
        """Table rows of canonical words, padded with 0 to L."""
        rows = [self._rows[word] for word in words][: self.config.length]
        return rows + [0] * (self.config.length - len(rows))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (B, L) -> embeddings (B, L, D)."""
        return self.table(rows)

    @property
    def sees_picture(self) -> bool:
        return False

    def encode(self, prompts: Sequence[str], picture: Image | None = None) -> Conditioning:
        """Prompts as embeddings (B, L, D). Unknown words are left out; ``remarks`` names them."""
        rows = [self.rows_of(parse(prompt).words) for prompt in prompts]
        return Conditioning(prompt=self(torch.tensor(rows, device=self.table.weight.device)))

    def prepare(self, prompts: Sequence[str], picture: Image | None = None) -> None:
        """Nothing: the table is always there."""

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """Unknown words with the known ones, and words left out since another of their slot stands."""
        parsed = [parse(prompt) for prompt in prompts]
        unknown = dict.fromkeys(word for part in parsed for word in part.unknown)
        surplus = dict.fromkeys(word for part in parsed for word in part.surplus)
        told = []
        if unknown:
            words = ", ".join(self.config.words)
            told.append(f"words the model does not know: {', '.join(unknown)}. It knows: {words}")
        if surplus:
            told.append(f"words left out, for another of their kind was taken: {', '.join(surplus)}")
        return told
