"""What the encoders of a model take, counted on tensors without data.

Each is the class that really runs, made from the configuration in its folder, or from the published one of
its family where there is none here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from framepack.codecs.loading import CONFIG_FILE, read_json
from framepack.conditioning.words import WordConditioner
from framepack.errors import ModelError, first_line
from framepack.resources.hollow import Architecture, empty_weights, made_in
from framepack.resources.operations import operation_counter
from framepack.resources.tally import Tally, bytes_of, tensors_in
from framepack.resources.weights import Weights, weigh

ENCODERS: dict[str, tuple[str, ...]] = {
    "hunyuan_video": ("text_encoder", "text_encoder_2", "image_encoder"),
    "wan": ("text_encoder",),
}
"""By family, in the order that they work in."""
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("hunyuan_video", "text_encoder"): {  # Llama 3 8B, of hunyuanvideo-community/HunyuanVideo
        "vocab_size": 128320,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "dtype": "float16",
    },
    ("hunyuan_video", "text_encoder_2"): {  # CLIP-L, of the same
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "dtype": "float16",
    },
    ("hunyuan_video", "image_encoder"): {  # SigLIP so400m, of lllyasviel/flux_redux_bfl
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "dtype": "bfloat16",
    },
    ("wan", "text_encoder"): {  # umT5-XXL, of Wan-AI/Wan2.1-T2V-14B-Diffusers
        "vocab_size": 256384,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "dtype": "float32",
    },
}
"""Configurations of released encoders, with what they are stored in."""


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A part beside the transformer, doing its work.

    Attributes:
        name: of its folder. what: its class.
        weights: as it runs. held: bytes of them in system memory before that.
        activations: most bytes at once, beside the weights. operations: of all its work.
        moved: bytes that go between system memory and the device meanwhile, there and back.
        published: its configuration is not here, but the family's published one.
    """

    name: str
    what: str
    weights: Weights
    held: int
    activations: int
    operations: float
    moved: int = 0
    published: bool = False


def config_of(architecture: Architecture, part: str) -> tuple[dict[str, Any] | None, bool]:
    """Of a part's folder, or None; and whether there is none."""
    source = architecture.source
    if source is None or part not in source.parts:
        return None, True
    return read_json(source.parts[part] / CONFIG_FILE), False


# Encoders ------------------------------------------------------------------------------------------------


def encoders(architecture: Architecture, device: torch.device, prompts: int = 1) -> tuple[Companion, ...]:
    """The encoders of a model, each reading so many prompts one by one, or looking at one picture.

    Raises:
        ModelError: a configuration that makes no encoder.
    """
    family = architecture.spec.family
    source = architecture.source
    if source is not None and "conditioner" in source.parts:
        return (_words(source.parts["conditioner"], architecture.prompt_tokens),)
    names = ENCODERS[family]
    if not (architecture.arguments.get("has_image_proj") or family != "hunyuan_video"):
        names = names[:-1]
    return tuple(_encoder(architecture, name, device, prompts) for name in names)


def _words(folder: Path, length: int) -> Companion:
    config = read_json(folder / CONFIG_FILE)
    found = _counted(
        lambda: WordConditioner(**fields_of(config)),
        lambda table: table(torch.zeros(1, length, dtype=torch.int64)),
        torch.float32,
    )
    return Companion(name="conditioner", what="WordConditioner", held=found[0].total, **_named(found))


def _encoder(architecture: Architecture, name: str, device: torch.device, prompts: int) -> Companion:
    from transformers import CLIPTextModel, LlamaModel, SiglipVisionModel, UMT5EncoderModel

    from framepack.conditioning.hunyuan_video import CLIP_TOKENS, PROMPT_TOKENS, TEMPLATE_TOKENS
    from framepack.conditioning.wan import PROMPT_TOKENS as WAN_TOKENS

    family = architecture.spec.family

    def ids(tokens: int) -> torch.Tensor:
        return torch.zeros(1, tokens, dtype=torch.int64)

    def look(model: Any) -> Any:
        side = model.config.image_size
        return model(torch.zeros(1, 3, side, side, dtype=model.dtype))

    length = TEMPLATE_TOKENS + PROMPT_TOKENS
    kinds: dict[tuple[str, str], tuple[Any, Callable[[Any], Any]]] = {
        ("hunyuan_video", "text_encoder"): (
            LlamaModel,
            lambda model: model(ids(length), output_hidden_states=True),
        ),
        ("hunyuan_video", "text_encoder_2"): (CLIPTextModel, lambda model: model(ids(CLIP_TOKENS))),
        ("hunyuan_video", "image_encoder"): (SiglipVisionModel, look),
        ("wan", "text_encoder"): (UMT5EncoderModel, lambda model: model(ids(WAN_TOKENS))),
    }
    kind, work = kinds[family, name]
    config, published = config_of(architecture, name)
    config = config or PUBLISHED[family, name]
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    # As the conditioners have it: umT5 is released in float32, and runs so on CPUs alone.
    runs = torch.bfloat16 if family == "wan" and device.type != "cpu" else stored
    try:
        made = kind.config_class.from_dict(dict(config))
        found = _counted(lambda: kind(made), work, runs)
    except Exception as error:  # transformers and what lies under it have errors of many kinds for it
        raise ModelError(
            f"{architecture.spec.name}'s {name} has a configuration that makes no {kind.__name__} "
            f"({first_line(error)}): download it again"
        ) from error
    times = prompts if name != "image_encoder" else 1
    held = found[0].total  # loaded in what it runs in
    return Companion(
        name=name,
        what=kind.__name__,
        held=held,
        weights=found[0],
        activations=found[1],
        operations=found[2] * times,
        published=published,
    )


# Counted -------------------------------------------------------------------------------------------------


def _counted(
    make: Callable[[], Any], work: Callable[[Any], Any], dtype: torch.dtype
) -> tuple[Weights, int, float]:
    """Weights, the most bytes beside them, and the operations of a module at work."""
    with torch.device("meta"), made_in(dtype):
        module = make().eval().requires_grad_(False)
    weights, mode = weigh(module), FakeTensorMode()
    with torch.no_grad(), mode:
        empty_weights(module)
        held = tensors_in(module)
        with Tally(held) as tally, operation_counter() as counter:
            work(module)
    return weights, tally.peak - bytes_of(held), float(counter.get_total_flops())


def _named(found: tuple[Weights, int, float]) -> dict[str, Any]:
    return dict(zip(("weights", "activations", "operations"), found, strict=True))


def fields_of(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
