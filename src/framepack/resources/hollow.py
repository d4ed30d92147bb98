"""A model's transformer without its weights, of shapes alone: what it would do can be counted.

The names are those that can be planned for: a model that can be loaded, one of the published sizes of
HunyuanVideo (`models.variants`), or one of `WAN_SIZES`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from framepack.codecs.loading import CONFIG_FILE, read_json
from framepack.models.families import HELIOS_CLASS, ROWS, spec_for
from framepack.models.source import Source, resolve_model
from framepack.models.spec import ModelSpec
from framepack.models.variants import VARIANTS
from framepack.packing.schedule import Kernel

PROMPT_TOKENS = {"wan": 512, "hunyuan_video": 256}
"""Prompt tokens of a family's own text encoders, padding included."""
IMAGE_TOKENS = 729
"""Of the picture that HunyuanVideo looks at: SigLIP, 27 x 27."""
STACKS = ("num_layers", "num_single_layers")
"""Fields that count blocks; those of one stack are alike."""
WAN_SIZES: dict[str, tuple[str, dict[str, int]]] = {
    "wan-1.3b": ("wan-2.1", {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}),
    "wan-14b": ("wan-2.1", {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}),
    "wan-5b": ("wan-2.2-5b", {"num_layers": 30, "num_attention_heads": 24, "ffn_dim": 14336}),
}
"""Published sizes of Wan 2.1 and 2.2: row of the family, and the transformer's fields."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A packed transformer to be made.

    Attributes:
        arguments: of its class, packing kernels and all. prompt_tokens: of one prompt.
        source: where its weights lie, None for sizes that are known by name alone.
    """

    spec: ModelSpec
    arguments: dict[str, Any]
    prompt_tokens: int
    source: Source | None = None

    @property
    def blocks(self) -> dict[str, int]:
        """How many blocks each of its stacks has, by the field that says so."""
        return {name: self._number(name) for name in STACKS if name in self._fields}

    @property
    def heads(self) -> int:
        """Of its attention."""
        return self._number("num_attention_heads")

    @property
    def _fields(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(_class_of(self.spec.family).__init__).parameters

    def _number(self, name: str) -> int:
        return int(self.arguments.get(name, self._fields[name].default))

    def hollow(
        self,
        kernels: Iterable[Kernel] = (),
        dtype: torch.dtype = torch.bfloat16,
        *,
        isolated: bool = False,
        blocks: Mapping[str, int] | None = None,
    ) -> Any:
        """The transformer on the meta device, for inference.

        Args:
            kernels: packing kernels beside its own.
            isolated: its history attends to history only, whatever it was trained for.
            blocks: other counts in the place of ``blocks``.
        """
        arguments = dict(self.arguments) | dict(blocks or {})
        own = tuple(tuple(kernel) for kernel in arguments.get("context_kernels", ()))
        arguments["context_kernels"] = tuple(dict.fromkeys((*own, *kernels)))
        if isolated:
            arguments["isolated_history"] = True
            if self.spec.family == "hunyuan_video":
                arguments["image_condition_type"] = "token_replace"
        with torch.device("meta"), made_in(dtype):
            transformer = _class_of(self.spec.family)(**arguments)
        kept = transformer._keep_in_fp32_modules or ()
        for path, parameter in transformer.named_parameters():
            if any(part in path.split(".") for part in kept):
                parameter.data = parameter.data.float()
        return transformer.eval().requires_grad_(False)


def find_architecture(model: str) -> Architecture:
    """Raises UnknownNameError: no such model. ModelError: a folder that cannot be read."""
    if model in VARIANTS:
        row = VARIANTS[model]
        blocks = {"num_layers": row.double_blocks, "num_single_layers": row.single_blocks}
        return _published(row.spec(), blocks | {"has_image_proj": True})
    if model in WAN_SIZES:
        name, fields = WAN_SIZES[model]
        family = ROWS[name]
        channels = family.latent_channels
        channels_of = dict.fromkeys(("in_channels", "out_channels", "latent_channels"), channels)
        return _published(spec_for("wan", model, row=family), fields | channels_of)
    return architecture_of(resolve_model(model, known=(*VARIANTS, *WAN_SIZES)))


def architecture_of(source: Source) -> Architecture:
    """Of a model that has been found; its weights need not be here yet.

    Raises:
        ModelError: a configuration that cannot be read.
    """
    length = PROMPT_TOKENS[source.spec.family]
    if "conditioner" in source.parts:
        length = int(read_json(source.parts["conditioner"] / CONFIG_FILE)["length"])
    return Architecture(spec=source.spec, arguments=_arguments(source), prompt_tokens=length, source=source)


def _published(spec: ModelSpec, arguments: dict[str, Any]) -> Architecture:
    return Architecture(spec=spec, arguments=arguments, prompt_tokens=PROMPT_TOKENS[spec.family])


def _class_of(family: str) -> Any:
    if family == "wan":
        from framepack.models.wan import PackedWanTransformer3DModel

        return PackedWanTransformer3DModel
    from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel

    return PackedHunyuanVideoTransformer3DModel


def _arguments(source: Source) -> dict[str, Any]:
    """Fields of our class from a transformer's configuration; what others have besides adds no work."""
    from framepack.models.single_file import read_config

    place = source.transformer
    config = read_config(place) if place.is_file() else read_json(place / CONFIG_FILE)
    if source.layout == HELIOS_CLASS:
        from framepack.models.helios import from_helios_config

        return from_helios_config(config)
    known = inspect.signature(_class_of(source.spec.family).__init__).parameters
    return {name: value for name, value in config.items() if name in known}


# Tensors without data ------------------------------------------------------------------------------------


def without_data(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Of the same kind, shape and precision."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def empty_weights(module: nn.Module) -> None:
    """Put tensors without data in the place of all that it holds; to be called under ``FakeTensorMode``."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = without_data(tensor, "cpu")  # type: ignore[assignment]


@contextlib.contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New parameters are of ``dtype`` at once: float32 first would take twice the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
