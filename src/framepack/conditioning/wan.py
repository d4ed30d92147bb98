"""Conditioning of the Wan family: umT5 for the prompt.

Legend: B batch, L prompt tokens, D their width.
"""

from __future__ import annotations

import html
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import UMT5EncoderModel

from framepack.conditioning.embeds import Conditioning
from framepack.conditioning.encoders import (
    check_folders,
    cut_remark,
    finite,
    load_tokenizer,
    remember,
    run_encoder,
    width_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT_TOKENS = 512
PARTS = ("tokenizer", "text_encoder")


class WanConditioner:
    """Prompts as WanPipeline.encode_prompt and HeliosPipeline.encode_prompt have them.

    The last hidden state of umT5, zero where there is no token; the transformer reads these zeros as they
    stand, so that there is no mask. The start picture has no part: it is a latent, and nothing more.

    The encoder is loaded, used and freed. What came out is remembered, prompt by prompt, on the CPU: encoding
    all prompts of a run in one call loads it once.

    Args:
        parts: folders of `PARTS`.
        device: where the encoder runs.
        dtype: of its weights and of the result; None is that of the folder on the CPU, else bfloat16.
        prompt_tokens: L.

    Attributes:
        streamed: the encoder's layers are brought to the device one by one.

    Raises:
        ModelError: a folder is missing.
    """

    def __init__(
        self,
        parts: Mapping[str, Path],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> None:
        check_folders(parts, PARTS)
        self.parts = dict(parts)
        self.device, self.dtype = torch.device(device), dtype
        self.prompt_tokens, self.streamed = prompt_tokens, False
        self._texts: dict[str, torch.Tensor] = {}

    @property
    def sees_picture(self) -> bool:
        return False

    @property
    def width(self) -> int:
        """D."""
        return width_of(self.parts["text_encoder"], "d_model")

    def to(self, device: torch.device | str) -> None:
        """Have the encoder run on a device; what another one made is forgotten, it is rounded otherwise."""
        if torch.device(device) != self.device:
            self.device = torch.device(device)
            self._texts.clear()

    @cached_property
    def tokenizer(self) -> Any:
        """umT5's tokenizer. Raises ModelError: it cannot be read."""
        return load_tokenizer(self.parts["tokenizer"])

    def encode(self, prompts: Sequence[str], picture: Image | None = None) -> Conditioning:
        """Prompts as embeddings (B, L, D) on the CPU.

        Raises:
            ModelError: the encoder or its tokenizer cannot be loaded.
        """
        texts = dict(self._texts)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in texts]
        if new:
            # First, so that what is wrong with it is known before anything large is read.
            tokenizer = self.tokenizer
            states = run_encoder(
                UMT5EncoderModel,
                self.parts["text_encoder"],
                self.device,
                # It is stored in float32, 22 GB of it; upstream runs it in bfloat16.
                self.dtype or (None if self.device.type == "cpu" else torch.bfloat16),
                lambda umt5: [self._read(umt5, tokenizer, prompt) for prompt in new],
                streamed=self.streamed,
            )
            for prompt, state in zip(new, states, strict=True):
                texts[prompt] = state
                remember(self._texts, prompt, state)
        return Conditioning(prompt=torch.cat([texts[prompt] for prompt in prompts]))

    def prepare(self, prompts: Sequence[str], picture: Image | None = None) -> None:
        """Encode these now, with each encoder loaded once; ``encode`` then finds them."""
        self.encode(prompts, picture)

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """Prompts longer than what umT5 reads, and those that ftfy might mend, were it installed."""
        told = []
        for prompt in dict.fromkeys(prompts):
            # The token that ends a text is not the user's.
            ids = self.tokenizer(clean(prompt), verbose=False).input_ids[:-1]
            told += cut_remark(self.tokenizer, prompt, ids, self.prompt_tokens - 1)
        if not all(prompt.isascii() for prompt in prompts) and not _has_ftfy():
            told.append(
                "Wan's prompts are mended with ftfy, which is not here; for letters beyond ASCII it can make "
                "a difference: pip install ftfy"
            )
        return told

    def _read(self, umt5: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
        """Embeddings (1, L, D) of a prompt."""
        tokens = tokenizer(
            [clean(prompt)],
            max_length=self.prompt_tokens,
            padding="max_length",
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(self.device)
        states = umt5(tokens.input_ids.to(self.device), attention_mask=mask).last_hidden_state
        return finite(states.masked_fill(~mask.bool()[..., None], 0), self.parts["text_encoder"])


def clean(prompt: str) -> str:
    """A prompt as Wan was trained on: mended where ftfy is installed, entities resolved, single spaces."""
    if _has_ftfy():
        import ftfy

        prompt = ftfy.fix_text(prompt)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def _has_ftfy() -> bool:
    return importlib.util.find_spec("ftfy") is not None
