"""The modules that are trained, and the model folder they become."""

from __future__ import annotations

import copy

import torch
from diffusers import WanTransformer3DModel

from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.lexicon import VOCABULARY
from framepack.conditioning.words import WordConditioner
from framepack.data.fingerprint import module_digest
from framepack.errors import InputError
from framepack.models.bundle import Bundle
from framepack.models.codebook import Codebook, check_codebook
from framepack.models.loading import load_bundle
from framepack.models.spec import ModelSpec
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.training.config import NetworkConfig, TrainConfig
from framepack.training.corruption import check_noise
from framepack.training.masters import Masters
from framepack.training.methods import trained_methods


def build_modules(config: TrainConfig, channels: int) -> tuple[PackedWanTransformer3DModel, WordConditioner]:
    """A base with random weights, adopted, and a conditioner; or both from ``config.init``."""
    if config.init is not None:
        start, _, words = _start(config.init)
        start.transformer.add_kernels(config.network.kernels)
        if config.network.isolated:
            start.transformer.isolate(causal=config.network.causal_history)
        return start.transformer.requires_grad_(True), words.requires_grad_(True)
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
    model = PackedWanTransformer3DModel.adopt(base, net.kernels, prediction="sample")
    if net.isolated:
        model.isolate(causal=net.causal_history)
    return model, conditioner


def _start(init: str) -> tuple[Bundle, FrameAutoencoder, WordConditioner]:
    """A model to start from, with its codec and conditioner.

    Raises:
        InputError: one of a family with another codec and conditioner.
    """
    start = load_bundle(init)
    if not (isinstance(start.codec, FrameAutoencoder) and isinstance(start.conditioner, WordConditioner)):
        raise InputError(f"init '{init}' is no model of the procedural world: give one trained by a recipe")
    return start, start.codec, start.conditioner


def network_of(start: Bundle) -> NetworkConfig:
    """The size of a model of the procedural world."""
    model, words = start.transformer.config, start.conditioner.config  # type: ignore[attr-defined]
    return NetworkConfig(
        heads=model.num_attention_heads,
        head_dim=model.attention_head_dim,
        layers=model.num_layers,
        ffn=model.ffn_dim,
        base_kernel=tuple(model.patch_size),
        kernels=tuple(tuple(kernel) for kernel in model.context_kernels),
        prompt_width=words.width,
        prompt_length=words.length,
        isolated_history=model.isolated_history,
        causal_history=model.causal_history,
    )


def lower_precision(model: PackedWanTransformer3DModel) -> None:
    """bfloat16 for all but what Wan keeps in float32."""
    kept = model._keep_in_fp32_modules or []
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.bfloat16()


def check_start(config: TrainConfig, codec: FrameAutoencoder) -> str | None:
    """Whether training can begin as configured; returns the digest of the weights it begins from, if any.

    Raises:
        InputError: clips of a size that the codec cannot encode, methods that the network cannot be taught,
            or a model to start from of another size, vocabulary or codec.
    """
    stride = codec.config.stride
    for height, width in config.cache.sizes:
        if height % stride or width % stride:
            raise InputError(f"size {height} x {width}: the codec needs multiples of {stride}; change sizes")
    _check_methods(config)
    if config.init is None:
        return None
    start, its_codec, its_words = _start(config.init)
    words, net, held = its_words.config, config.network, network_of(start)
    # It may get further kernels, and learn to have its history isolated.
    fixed = ("heads", "head_dim", "layers", "ffn", "base_kernel", "prompt_width", "prompt_length")
    sizes = {name: getattr(held, name) for name in fixed}
    differing = [f"{name} {size}" for name, size in sizes.items() if size != getattr(net, name)]
    if not set(held.kernels) <= set(net.kernels):
        differing.append(f"kernels {held.kernels}")
    if held.isolated_history and not net.isolated:
        differing.append("isolated_history")
    if held.causal_history and not net.causal_history:
        differing.append("causal_history")
    if differing:
        raise InputError(f"init '{config.init}' has {', '.join(differing)}: set the same in network")
    if tuple(words.words) != VOCABULARY or module_digest(its_codec) != config.cache.codec:
        raise InputError(f"init '{config.init}' has other words or another codec: give its --codec")
    return start.digest


def _check_methods(config: TrainConfig) -> None:
    """Raises InputError: a method that does not go with the network, the codebook or the corruption."""
    net, corruption = config.network, config.objective.corruption
    for name, method in trained_methods(config).items():
        if lacking := set(method.schedule.kernels) - set(net.kernels):
            raise InputError(f"method {name} needs kernels {sorted(lacking)}: add them to network.kernels")
        check_codebook(method, config.name, present=config.codewords is not None)
        check_noise(method, corruption)
        if net.isolated and (method.history_timestep, method.history_noise) != ("zero", 0):
            raise InputError(
                f"method {name}: isolated and causal history have a timestep of 0, so give it "
                "history timestep 'zero' and history noise 0"
            )
    if net.isolated and corruption.told:
        raise InputError(
            "isolated and causal history have a timestep of 0: set objective.corruption.told=false"
        )


def spec_of(config: TrainConfig, codec: FrameAutoencoder) -> ModelSpec:
    """The spec that a trained model is saved with."""
    methods = trained_methods(config)
    return ModelSpec(
        name=config.name,
        family="wan",
        base_kernel=config.network.base_kernel,
        latent_channels=codec.config.channels,
        spatial_stride=codec.config.stride,
        temporal_stride=1,
        fps=config.fps,
        buckets=config.cache.sizes,
        methods=methods,
        default_method="f1" if "f1" in methods else next(iter(methods)),
        steps=8,
        guidance=2.0,
        solver="euler",
        shift=config.objective.shift,
    )


def averaged(
    config: TrainConfig,
    codec: FrameAutoencoder,
    model: PackedWanTransformer3DModel,
    conditioner: WordConditioner,
    masters: Masters,
    codebook: Codebook | None = None,
) -> Bundle:
    """The averaged weights as a model for ``framepack generate``, where training is; bfloat16."""
    transformer, words = copy.deepcopy(model), copy.deepcopy(conditioner)
    modules: dict[str, torch.nn.Module] = {"model": transformer, "conditioner": words}
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            parameter.data = masters.average[f"{prefix}.{name}"].bfloat16()
        module.eval().requires_grad_(False)
    spec = spec_of(config, codec)
    return Bundle(
        spec=spec, transformer=transformer, codec=codec, conditioner=words, digest="", codebook=codebook
    )
