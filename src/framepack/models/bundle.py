"""A model with its codec and conditioner, loaded from a folder of safetensors.

folder/framepack.json   the spec
folder/transformer/     diffusers folder of the packed transformer
folder/codec/           diffusers folder of the codec
folder/conditioner/     diffusers folder of the conditioner
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.words import WordConditioner
from framepack.errors import InputError, ModelError
from framepack.models.spec import ModelSpec, model_folder
from framepack.models.wan import PackedWanTransformer3DModel

FAMILY = "wan"
PARTS = {
    "transformer": PackedWanTransformer3DModel,
    "codec": FrameAutoencoder,
    "conditioner": WordConditioner,
}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything a run needs of a model. ``digest`` is the sha256 of its weights and configurations."""

    spec: ModelSpec
    transformer: PackedWanTransformer3DModel
    codec: FrameAutoencoder
    conditioner: WordConditioner
    digest: str

    def save(self, folder: Path) -> None:
        """Write the folder described above; what an older model left there is replaced file by file."""

        def write(draft: Path) -> None:
            for part in PARTS:
                getattr(self, part).save_pretrained(draft / part)
            self.spec.save(draft)

        replace_files(folder, write)


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a draft of ``folder`` beside it, then move its files in.

    A process that dies while it writes leaves the folder as it was, and a reader never finds half a file.
    """
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write(draft)
    for file in sorted(path for path in draft.rglob("*") if path.is_file()):
        place = folder / file.relative_to(draft)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    shutil.rmtree(draft)


def digest_of(folder: Path) -> str:
    """sha256 over names and bytes of all weights and configurations of a model folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pick_device(wanted: str | None) -> torch.device:
    """``auto`` or None: CUDA, else MPS, else CPU.

    Raises:
        InputError: a device that this machine does not have.
    """
    if wanted in (None, "auto"):
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        if not re.fullmatch(
            r"cpu|cuda(:\d{1,3})?|mps", wanted
        ):  # PyTorch names devices that make no pictures
            raise RuntimeError
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"device '{wanted}' is not on this machine: use auto, cpu, cuda or mps") from None
    return device


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 on CUDA and on CPUs that compute in it, float32 elsewhere."""
    if wanted == "auto":
        native = device.type == "cpu" and _computes_bfloat16()
        wanted = "bfloat16" if native or device.type == "cuda" else "float32"
    return getattr(torch, wanted)


def _computes_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for it; without them it is slower than float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # absent from older PyTorch
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def load_part(part: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """One of ``PARTS`` from its folder, for inference.

    Raises:
        ModelError: absent, or not to be read.
    """
    try:
        module = PARTS[part].from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"'{folder}' cannot be loaded as a {part}: {reason}") from error
    return module.eval().requires_grad_(False)


def check_parts(spec: ModelSpec, parts: Mapping[str, Any]) -> None:
    """See that a model's parts are what its spec says and fit each other.

    Raises:
        ModelError: they do not.
    """
    transformer, codec, conditioner = (parts[part].config for part in PARTS)
    facts = [
        ("base_kernel", spec.base_kernel, "the transformer's patch_size", tuple(transformer.patch_size)),
        ("latent_channels", spec.latent_channels, "the transformer's", transformer.latent_channels),
        ("latent_channels", spec.latent_channels, "the codec's", codec.channels),
        ("spatial_stride", spec.spatial_stride, "the codec's", codec.stride),
        ("temporal_stride", spec.temporal_stride, "the codec's", parts["codec"].temporal_stride),
        ("the transformer's text_dim", transformer.text_dim, "the conditioner's width", conditioner.width),
    ]
    for name, stated, whose, found in facts:
        if stated != found:
            raise ModelError(f"{spec.name}: {name} is {stated}, {whose} is {found}: save the model again")


def load_bundle(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Bundle:
    """Load a model folder.

    Raises:
        UnknownNameError: no such model. ModelError: a part that cannot be read, or parts that do not fit.
    """
    folder = model_folder(name)
    spec = ModelSpec.load(folder)
    if spec.family != FAMILY:
        raise ModelError(f"'{folder}' is of family {spec.family}: only {FAMILY} can be loaded")
    # The codec's convolutions are cheap, and rounding them would show.
    parts = {
        part: load_part(part, folder / part, torch.float32 if part == "codec" else dtype) for part in PARTS
    }
    check_parts(spec, parts)
    for module in parts.values():
        module.to(device)
    return Bundle(spec=spec, digest=digest_of(folder), **parts)
