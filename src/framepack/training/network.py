"""The modules that are trained, and the model folder they become."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.lexicon import VOCABULARY
from framepack.conditioning.words import WordConditioner
from framepack.models.bundle import Bundle, load_bundle
from framepack.models.spec import ModelSpec
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.planning.method import Method
from framepack.training.config import TrainConfig
from framepack.training.masters import Masters


def build_modules(config: TrainConfig, channels: int) -> tuple[PackedWanTransformer3DModel, WordConditioner]:
    """A base with random weights, adopted, and a conditioner; or both from ``config.init``."""
    if config.init is not None:
        start = load_bundle(config.init)
        return start.transformer.requires_grad_(True), start.conditioner.requires_grad_(True)
    torch.manual_seed(config.seed)
    net = config.network
    base = WanTransformer3DModel(
        patch_size=net.base_kernel,
        num_attention_heads=net.heads,
        attention_head_dim=net.head_dim,
        in_channels=3 * channels + 2,
        out_channels=channels,
        text_dim=net.prompt_width,
        freq_dim=128,
        ffn_dim=net.ffn,
        num_layers=net.layers,
        rope_max_seq_len=64,
    )
    conditioner = WordConditioner(words=VOCABULARY, width=net.prompt_width, length=net.prompt_length)
    return PackedWanTransformer3DModel.adopt(base, net.kernels, prediction="sample"), conditioner


def lower_precision(model: PackedWanTransformer3DModel) -> None:
    """bfloat16 for all but what Wan keeps in float32."""
    kept = model._keep_in_fp32_modules or []
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.bfloat16()


def spec_of(config: TrainConfig, codec: FrameAutoencoder, methods: dict[str, Method]) -> ModelSpec:
    """The spec that a trained model is saved with."""
    return ModelSpec(
        name=config.name,
        family="wan",
        base_kernel=config.network.base_kernel,
        latent_channels=codec.config.channels,
        spatial_stride=codec.config.stride,
        temporal_stride=1,
        fps=config.fps,
        buckets=((config.cache.height, config.cache.width),),
        methods=methods,
        default_method="inverted",
        steps=8,
        guidance=1.5,
        solver="euler",
        shift=config.objective.shift,
    )


def save_average(
    folder: Path, config: TrainConfig, codec: FrameAutoencoder, masters: Masters, methods: dict[str, Method]
) -> Bundle:
    """Save the averaged weights as a folder for ``framepack generate --model``; the codec stays float32."""
    model, conditioner = build_modules(config, codec.config.channels)
    with torch.no_grad():
        for prefix, module in (("model", model), ("conditioner", conditioner)):
            for name, parameter in module.named_parameters():
                parameter.data = masters.average[f"{prefix}.{name}"].cpu().bfloat16()
    spec = spec_of(config, codec, methods)
    bundle = Bundle(spec=spec, transformer=model, codec=codec, conditioner=conditioner, digest="")
    bundle.save(folder)
    return bundle
