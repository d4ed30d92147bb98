"""Conditioning of the HunyuanVideo family: Llama for the prompt, CLIP for its sum, SigLIP for the picture.

Legend: B batch, L prompt tokens, D their width, P width of the pooled embedding, I image tokens, E their
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoImageProcessor, CLIPTextModel, LlamaModel, SiglipVisionModel

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
from framepack.errors import ModelError, first_line
from framepack.video.images import picture_digest

if TYPE_CHECKING:
    from PIL.Image import Image

# The words around a prompt that Llama was read with in training (HunyuanVideo's "dit-llm-encode-video").
TEMPLATE_START = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
TEMPLATE_END = "<|eot_id|>"
TEMPLATE_TOKENS = 95
PROMPT_TOKENS = 256
CLIP_TOKENS = 77
HIDDEN_STATE = -3

TEXT_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
IMAGE_PARTS = ("feature_extractor", "image_encoder")


class HunyuanVideoConditioner:
    """Prompts and the start picture as HunyuanVideoFramepackPipeline encodes them.

    The prompt is the third-last hidden state of Llama with the template cut off, 256 tokens of which the mask
    tells those that hold something; pooled is CLIP's, of the first 77 tokens; the image tokens are the last
    hidden state of SigLIP.

    Each encoder is loaded, used and freed before the next one. What came out is remembered, prompt by prompt
    and picture by picture, on the CPU: encoding all prompts of a run in one call loads each encoder once.

    Args:
        parts: folders of `TEXT_PARTS`, and of `IMAGE_PARTS` where the model looks at the start picture.
        device: where the encoders run.
        dtype: of their weights and of the result; None is that of each folder.
        template_tokens: tokens of the template before the prompt, as the tokenizer must count them.
        prompt_tokens: L.

    Attributes:
        streamed: the encoders' layers are brought to the device one by one.

    Raises:
        ModelError: a folder is missing.
    """

    def __init__(
        self,
        parts: Mapping[str, Path],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        template_tokens: int = TEMPLATE_TOKENS,
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> None:
        check_folders(parts, TEXT_PARTS + (IMAGE_PARTS if "image_encoder" in parts else ()))
        self.parts = dict(parts)
        self.device, self.dtype = torch.device(device), dtype
        self.template_tokens, self.prompt_tokens = template_tokens, prompt_tokens
        self.streamed = False
        self._texts: dict[str, tuple[torch.Tensor, ...]] = {}
        self._images: dict[str, torch.Tensor] = {}

    @property
    def sees_picture(self) -> bool:
        return "image_encoder" in self.parts

    @property
    def width(self) -> int:
        """D."""
        return width_of(self.parts["text_encoder"], "hidden_size")

    @property
    def pooled_width(self) -> int:
        """P."""
        return width_of(self.parts["text_encoder_2"], "hidden_size")

    @property
    def image_width(self) -> int | None:
        """E."""
        return width_of(self.parts["image_encoder"], "hidden_size") if self.sees_picture else None

    def to(self, device: torch.device | str) -> None:
        """Have the encoders run on a device; what another one made is forgotten, it is rounded otherwise."""
        if torch.device(device) != self.device:
            self.device = torch.device(device)
            self._texts.clear()
            self._images.clear()

    def encode(self, prompts: Sequence[str], picture: Image | None = None) -> Conditioning:
        """Prompts, and a picture of the size of the frames, on the CPU; B is the number of prompts.

        Raises:
            ModelError: an encoder that cannot be loaded, or a tokenizer that is not HunyuanVideo's.
        """
        texts = dict(self._texts)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in texts]
        if new:
            # The tokenizers first: what is wrong with them is known before anything large is read.
            long, short = self.tokenizer, load_tokenizer(self.parts["tokenizer_2"])
            states = self._run(LlamaModel, "text_encoder", lambda m: [self._read(m, long, p) for p in new])
            pooled = self._run(
                CLIPTextModel, "text_encoder_2", lambda m: [self._pool(m, short, p) for p in new]
            )
            for prompt, (state, mask), vector in zip(new, states, pooled, strict=True):
                texts[prompt] = (state, mask, vector)
                remember(self._texts, prompt, texts[prompt])
        rows = zip(*(texts[prompt] for prompt in prompts), strict=True)
        prompt_rows, mask_rows, pooled_rows = (torch.cat(row) for row in rows)
        image = None
        if picture is not None and self.sees_picture:
            image = self._image(picture).expand(len(prompts), -1, -1)
        return Conditioning(prompt=prompt_rows, mask=mask_rows, pooled=pooled_rows, image=image)

    def prepare(self, prompts: Sequence[str], picture: Image | None = None) -> None:
        """Encode these now, with each encoder loaded once; ``encode`` then finds them."""
        self.encode(prompts, picture)

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """Prompts that are longer than what Llama reads, one line each; loads the tokenizer alone."""
        told = []
        for prompt in dict.fromkeys(prompts):
            ids = self.tokenizer(TEMPLATE_START + prompt, verbose=False).input_ids[self.template_tokens :]
            told += cut_remark(self.tokenizer, prompt, ids, self.prompt_tokens)
        return told

    @cached_property
    def tokenizer(self) -> Any:
        """Llama's tokenizer.

        Raises:
            ModelError: it cannot be read, or splits the template in another way than HunyuanVideo's.
        """
        folder = self.parts["tokenizer"]
        tokenizer = load_tokenizer(folder)
        found = len(tokenizer(TEMPLATE_START).input_ids)
        if found != self.template_tokens:
            raise ModelError(
                f"'{folder}' makes {found} tokens of HunyuanVideo's template, where its own makes "
                f"{self.template_tokens}: take tokenizer/ of HunyuanVideo"
            )
        return tokenizer

    def _run(self, kind: Any, part: str, compute: Any) -> Any:
        folder = self.parts[part]
        return run_encoder(kind, folder, self.device, self.dtype, compute, streamed=self.streamed)

    def _read(self, llama: Any, tokenizer: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (1, L, D) and mask (1, L) of a prompt."""
        tokens = tokenizer(
            [TEMPLATE_START + prompt + TEMPLATE_END],
            max_length=self.template_tokens + self.prompt_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
            return_attention_mask=True,
        )
        mask = tokens.attention_mask.to(self.device)
        out = llama(tokens.input_ids.to(self.device), attention_mask=mask, output_hidden_states=True)
        states = out.hidden_states[HIDDEN_STATE][:, self.template_tokens :]
        kept = mask[:, self.template_tokens :].bool()
        finite(states[kept], self.parts["text_encoder"])
        return states.cpu(), kept.cpu()

    def _pool(self, clip: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
        """The pooled embedding (1, P) of a prompt."""
        tokens = tokenizer(
            [prompt], max_length=CLIP_TOKENS, padding="max_length", truncation=True, return_tensors="pt"
        )
        pooled = clip(tokens.input_ids.to(self.device)).pooler_output
        return finite(pooled, self.parts["text_encoder_2"])

    def _image(self, picture: Image) -> torch.Tensor:
        """Image tokens (1, I, E) of a picture."""
        key = picture_digest(picture)
        if key not in self._images:
            remember(self._images, key, self.look([picture]))
        return self._images[key]

    def look(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Image tokens (B, I, E) of several pictures, for which the encoder is loaded once.

        Raises:
            ModelError: an encoder or an image processor that cannot be loaded.
        """
        folder = self.parts["feature_extractor"]
        try:
            # Pillow's resampling, so that machines with and without torchvision agree.
            extractor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
            raise ModelError(
                f"'{folder}' has no image processor that can be read ({reason}): download it again"
            ) from error
        pixels = [extractor(images=p.convert("RGB"), return_tensors="pt").pixel_values for p in pictures]

        def see(siglip: Any) -> torch.Tensor:
            # One by one, so that a picture has the same tokens in any company.
            states = [siglip(each.to(self.device, siglip.dtype)).last_hidden_state for each in pixels]
            return finite(torch.cat(states), self.parts["image_encoder"])

        return self._run(SiglipVisionModel, "image_encoder", see)
