"""Parts of the HunyuanVideo and Wan families with tiny random weights, in folders like those released."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from framepack.conditioning.hunyuan_video import TEMPLATE_END, TEMPLATE_START

CORPUS = [TEMPLATE_START + "{}" + TEMPLATE_END, "a red ball rolls over the green grass while the sun sets"]
SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
WIDTH = 16
# Llama 3 splits a text so before it looks for tokens; then HunyuanVideo's template has 95 words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_tokenizer(start: str | None, end: str | None, pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """A byte-level BPE with every word of `CORPUS`; it puts ``start`` before a text and ``end`` after."""
    named = [name for name in (pad, start, end) if name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=list(dict.fromkeys([*named, *SPECIAL])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    single = " ".join(part for part in (start, "$A", end) if part)
    ids = [(name, tokenizer.token_to_id(name)) for name in named]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=pad, padding_side="right"
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, named: str | None = None) -> Path:
    """Save one; ``named`` is the class that its configuration states, as the released folders have it."""
    tokenizer.save_pretrained(folder)
    if named:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": named}))
    return folder


def save_hunyuan_video(folder: Path) -> dict[str, Path]:
    """Tokenizers and encoders of HunyuanVideo, and SigLIP."""
    torch.manual_seed(0)
    llama = byte_tokenizer("<|begin_of_text|>", None, "<|end_of_text|>")
    clip = byte_tokenizer("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    size = {"hidden_size": WIDTH, "intermediate_size": 24, "num_attention_heads": 2}
    save_tokenizer(llama, folder / "tokenizer", "LlamaTokenizer")
    save_tokenizer(clip, folder / "tokenizer_2")
    LlamaModel(
        LlamaConfig(**size, vocab_size=len(llama), num_hidden_layers=4, num_key_value_heads=2)
    ).save_pretrained(folder / "text_encoder")
    CLIPTextModel(
        CLIPTextConfig(**size, vocab_size=len(clip), num_hidden_layers=1, eos_token_id=clip.eos_token_id)
    ).save_pretrained(folder / "text_encoder_2")
    SiglipVisionModel(
        SiglipVisionConfig(**size, num_hidden_layers=1, image_size=32, patch_size=8)
    ).save_pretrained(folder / "image_encoder")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "SiglipImageProcessor",
                "do_resize": True,
                "do_rescale": True,
                "do_normalize": True,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "resample": 3,
                "rescale_factor": 1 / 255,
                "size": {"height": 32, "width": 32},
            }
        )
    )
    return {path.name: path for path in folder.iterdir()}


def save_wan(folder: Path) -> dict[str, Path]:
    """Tokenizer and encoder of Wan."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(None, "</s>")
    save_tokenizer(tokenizer, folder / "tokenizer")
    UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            dropout_rate=0,
        )
    ).save_pretrained(folder / "text_encoder")
    return {path.name: path for path in folder.iterdir()}


def hunyuan_video_vae(channels: int = 16) -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(
        latent_channels=channels, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    ).eval()


def wan_vae(channels: int = 16) -> AutoencoderKLWan:
    """Wan 2.1's; its means and deviations are those released where ``channels`` is 16."""
    torch.manual_seed(0)
    known = {} if channels == 16 else {"latents_mean": [0.1] * channels, "latents_std": [2.0] * channels}
    return AutoencoderKLWan(
        base_dim=3, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **known
    ).eval()


def wan_2_2_vae() -> AutoencoderKLWan:
    """Wan 2.2's of 5B: 48 channels, residual, 16 pixels to a latent."""
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=48,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.05 * (i - 24) for i in range(48)],
        latents_std=[0.4 + 0.02 * i for i in range(48)],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ).eval()
