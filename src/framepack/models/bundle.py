"""A model in memory: transformer, codec and conditioner, with the spec that they fit.

A folder saved from one holds

    framepack.json     the spec
    transformer/       diffusers folder of the packed transformer
    codec/             and conditioner/, of models whose codec and conditioner are framepack's own, or
    vae/ ...           the family's parts under diffusers' names
    codebook/          codewords, where history is discretised
    mag_ratios.json    where there are any, for a step cache
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from framepack.conditioning.embeds import Conditioner
from framepack.models.codebook import Codebook
from framepack.models.draft import bring, replace_files
from framepack.models.lora import Lora, digest
from framepack.models.source import CODEBOOK, OWN_PARTS
from framepack.models.spec import ModelSpec
from framepack.models.step_cache import write_ratios

NO_LORAS = digest(())


class Codec(Protocol):
    """What a run asks of a codec. C latent channels; F frames, N latents."""

    @property
    def latent_channels(self) -> int: ...
    @property
    def spatial_stride(self) -> int: ...
    @property
    def temporal_stride(self) -> int: ...

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, C, N, h, w), as the transformer takes them."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, N, h, w) -> (B, 3, F, H, W) in [-1, 1]."""
        ...

    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, N, h, w) -> (B, 3, N, h', w'), rough and cheap."""
        ...

    def save_pretrained(self, folder: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything a run needs of a model.

    Attributes:
        transformer: a packed transformer of the spec's family.
        digest: tells its weights and configurations from all others.
        parts: folders that the codec and the conditioner were made from, copied when the model is saved;
            empty where both are modules of framepack's own.
        codebook: codewords of discretised history, of models that have them.
        loras: those that the transformer acts with. lora_digest: of their files and weights.
        execution: where the transformer computes if its weights lie elsewhere until they are needed; of one
            that is split, where it begins and ends. devices: that its blocks are divided among, in order;
            empty where it is not split.
        mag_ratios: of the ``mag`` step cache, for models that have them.
        compiled: its blocks are compiled. attention: diffusers' backend; None is framepack's own choice.
    """

    spec: ModelSpec
    transformer: Any
    codec: Codec
    conditioner: Conditioner
    digest: str
    parts: Mapping[str, Path] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()
    lora_digest: str = NO_LORAS
    execution: torch.device | None = None
    devices: tuple[torch.device, ...] = ()
    codebook: Codebook | None = None
    mag_ratios: tuple[float, ...] = ()
    compiled: bool = False
    attention: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self.execution or self.transformer.device

    def save(self, folder: Path) -> None:
        """Write the folder described above; what an older model left there is replaced file by file."""

        def write(draft: Path) -> None:
            self.transformer.save_pretrained(draft / "transformer")
            for part, place in self.parts.items():
                for file in sorted(path for path in place.rglob("*") if path.is_file()):
                    bring(file, draft / part / file.relative_to(place))
            for part in () if self.parts else OWN_PARTS:
                getattr(self, part).save_pretrained(draft / part)
            if self.codebook is not None:
                self.codebook.save_pretrained(draft / CODEBOOK)
            if self.mag_ratios:
                write_ratios(self.mag_ratios, draft)
            self.spec.save(draft)

        replace_files(folder, write)


def compiled(bundle: Bundle) -> Bundle:
    """The same model with its blocks compiled when first called (diffusers' regional compilation)."""
    if not bundle.compiled:
        bundle.transformer.compile_repeated_blocks()
    return replace(bundle, compiled=True)
