"""A model in memory: transformer, codec and conditioner, with the spec that they fit.

A folder saved from one holds

    framepack.json     the spec
    transformer/       diffusers folder of the packed transformer
    codec/             and conditioner/, of models whose codec and conditioner are framepack's own, or
    vae/ ...           the family's parts under diffusers' names
    codebook/          codewords, where history is discretised
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.embeds import Conditioner
from framepack.conditioning.words import WordConditioner
from framepack.errors import InputError, ModelError
from framepack.models.codebook import Codebook, load_codebook
from framepack.models.lora import Lora, digest
from framepack.models.source import CODEBOOK, OWN_PARTS, Source, resolve_model
from framepack.models.spec import ModelSpec

SAMPLED, SAMPLES = 256 * 2**20, 64
"""Of a file above so many bytes, so many blocks go into the digest: hashing 26 GB takes minutes."""
BLOCK = 2**20
ALIGNMENT = 64
"""Bytes, of PyTorch's own memory on CPUs."""
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
        execution: where the transformer computes if its weights lie elsewhere until they are needed.
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
    codebook: Codebook | None = None

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self.execution or self.transformer.device

    def save(self, folder: Path) -> None:
        """Write the folder described above; what an older model left there is replaced file by file."""

        def write(draft: Path) -> None:
            self.transformer.save_pretrained(draft / "transformer")
            for part, place in self.parts.items():
                copy_folder(place, draft / part)
            for part in () if self.parts else OWN_PARTS:
                getattr(self, part).save_pretrained(draft / part)
            if self.codebook is not None:
                self.codebook.save_pretrained(draft / CODEBOOK)
            self.spec.save(draft)

        replace_files(folder, write)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder's files, linked where the file system allows: text encoders are large."""

    def copy(file: str, place: str) -> None:
        try:
            os.link(os.path.realpath(file), place)
        except OSError:
            shutil.copyfile(file, place)

    shutil.copytree(source, target, copy_function=copy)


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


def digest_of(source: Source) -> str:
    """sha256 over names and contents of all weights and configurations of a model.

    A file above ``SAMPLED`` bytes counts with its size and ``SAMPLES`` blocks of it, the header among them.
    """
    digest = hashlib.sha256()
    for part, place in sorted({"transformer": source.transformer, **source.parts}.items()):
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        for path in files:
            if path.suffix in (".json", ".safetensors", ".model", ".txt") and path.is_file():
                digest.update(f"{part}/{path.name}".encode() + b"\0")
                _digest_file(digest, path)
    digest.update(repr(source.spec).encode())
    return digest.hexdigest()


def _digest_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    if size <= SAMPLED:
        digest.update(path.read_bytes())
        return
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for block in range(SAMPLES):
            file.seek((size - BLOCK) * block // (SAMPLES - 1))
            digest.update(file.read(BLOCK))


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
    """One of ``OWN_PARTS`` from its folder, for inference.

    Raises:
        ModelError: absent, or not to be read.
    """
    from framepack.codecs.loading import load_module

    return load_module({"codec": FrameAutoencoder, "conditioner": WordConditioner}[part], folder, dtype)


def load_transformer(source: Source, dtype: torch.dtype) -> Any:
    """The packed transformer of a model, on the CPU and for inference; released layouts are converted.

    Raises:
        ModelError: weights that are missing, damaged, of another model or not finite.
    """
    transformer = _LAYOUTS[source.layout](source, dtype)
    for name, parameter in transformer.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(
                f"'{source.transformer}' has weights that are not finite, in {name}: fetch it again"
            )
    return transformer.eval().requires_grad_(False)


def _load_wan(source: Source, dtype: torch.dtype) -> Any:
    from framepack.codecs.loading import load_module
    from framepack.models.wan import PackedWanTransformer3DModel

    return load_module(PackedWanTransformer3DModel, source.transformer, dtype)


def _load_helios(source: Source, dtype: torch.dtype) -> Any:
    from framepack.models.helios import load_helios

    return load_helios(source.transformer, dtype)


def _load_hunyuan_video(source: Source, dtype: torch.dtype) -> Any:
    from framepack.codecs.loading import load_module
    from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel

    return load_module(PackedHunyuanVideoTransformer3DModel, source.transformer, dtype)


def _load_framepack(source: Source, dtype: torch.dtype) -> Any:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    from framepack.codecs.loading import load_module
    from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
    from framepack.models.single_file import load_framepack

    if source.transformer.is_file():
        base = load_framepack(source.transformer, dtype)
    else:
        kind = HunyuanVideoFramepackTransformer3DModel
        base = load_module(kind, source.transformer, dtype, also=(source.layout,))
    return PackedHunyuanVideoTransformer3DModel.adopt(base, ())


_LAYOUTS: dict[str, Callable[[Source, torch.dtype], Any]] = {
    "PackedWanTransformer3DModel": _load_wan,
    "HeliosTransformer3DModel": _load_helios,
    "PackedHunyuanVideoTransformer3DModel": _load_hunyuan_video,
    "HunyuanVideoFramepackTransformer3DModel": _load_framepack,
    "HunyuanVideoTransformer3DModelPacked": _load_framepack,
}

_VAES = {"wan": "AutoencoderKLWan", "hunyuan_video": "AutoencoderKLHunyuanVideo"}


def _conditioner(source: Source, device: torch.device) -> Any:
    """The family's conditioner. Its encoders are loaded when a run has begun, so they are looked at here.

    Raises:
        ModelError: weights of an encoder that are missing, pickled or cut short.
    """
    from framepack.codecs.loading import check_weights

    for part, folder in source.parts.items():
        if "encoder" in part:
            check_weights(folder)
    if source.spec.family == "wan":
        from framepack.conditioning.wan import WanConditioner

        # umT5 is stored in float32, 22 GB of it; upstream runs it in bfloat16.
        return WanConditioner(source.parts, device, None if device.type == "cpu" else torch.bfloat16)
    from framepack.conditioning.hunyuan_video import HunyuanVideoConditioner

    return HunyuanVideoConditioner(source.parts, device)


def _align(module: torch.nn.Module) -> None:
    """Move weights that a mapped file has at odd addresses to where PyTorch itself would have put them.

    Sums on a CPU round by the address of what is summed: without this, a model saved again, under a header
    of another length, would differ in its last digits.
    """
    for parameter in module.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def check_parts(spec: ModelSpec, transformer: Any, codec: Codec, conditioner: Any) -> None:
    """See that a model's parts are what its spec says and fit each other.

    Raises:
        ModelError: they do not.
    """
    config = transformer.config
    patch = config.patch_size
    kernel = (config.patch_size_t, patch, patch) if isinstance(patch, int) else tuple(patch)
    text = config.text_dim if spec.family == "wan" else config.text_embed_dim
    width = conditioner.config.width if isinstance(conditioner, WordConditioner) else conditioner.width
    facts = [
        ("base_kernel", spec.base_kernel, "the transformer's patch_size", kernel),
        ("latent_channels", spec.latent_channels, "the transformer's", config.latent_channels),
        ("latent_channels", spec.latent_channels, "the codec's", codec.latent_channels),
        ("spatial_stride", spec.spatial_stride, "the codec's", codec.spatial_stride),
        ("temporal_stride", spec.temporal_stride, "the codec's", codec.temporal_stride),
        ("the transformer's text width", text, "the conditioner's", width),
    ]
    if spec.family == "hunyuan_video":
        pooled, image = config.pooled_projection_dim, config.image_proj_dim if config.has_image_proj else None
        facts += [
            ("the transformer's pooled width", pooled, "the conditioner's", conditioner.pooled_width),
            ("the transformer's image width", image, "the conditioner's", conditioner.image_width),
        ]
    for name, stated, whose, found in facts:
        if stated != found:
            raise ModelError(
                f"{spec.name}: {name} is {stated}, {whose} is {found}: give the parts that belong together"
            )


def load_companions(
    source: Source, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """The codec and the conditioner of a model that is complete, without its transformer.

    Args:
        dtype: as in ``load_bundle``; of a conditioner of framepack's own.

    Raises:
        ModelError: a part that cannot be read, or a codec of another family.
    """
    if OWN_PARTS[0] in source.parts:
        codec = load_part("codec", source.parts["codec"])
        return codec.to(device), load_part("conditioner", source.parts["conditioner"], dtype).to(device)
    from framepack.codecs.loading import class_of
    from framepack.codecs.video_vae import load_codec

    vae, wanted = source.parts["vae"], _VAES[source.spec.family]
    if class_of(vae) != wanted:
        raise ModelError(f"'{vae}' holds a {class_of(vae)}, not a {wanted}: give the family's own VAE")
    return load_codec(vae, device), _conditioner(source, device)


def _lent(source: Source) -> dict[str, Path]:
    """What a model's codec and conditioner were made from, where they are not framepack's own."""
    own = OWN_PARTS[0] in source.parts
    return {} if own else {part: place for part, place in source.parts.items() if part != CODEBOOK}


def load_bundle(
    model: str | Source,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    parts: Sequence[str] = (),
) -> Bundle:
    """Load a model.

    Args:
        model: a name, see ``resolve_model``, or what it found.
        dtype: of the transformer. A video codec runs in what it was released in, the bundled one in float32:
            its convolutions are cheap, and rounding them would show.
        parts: as in ``resolve_model``.

    Raises:
        UnknownNameError: no such model. ModelError: a part that cannot be read, or parts that do not fit.
    """
    source = (resolve_model(model, parts) if isinstance(model, str) else model).complete()
    device = torch.device(device)
    codec, conditioner = load_companions(source, device, dtype)
    transformer = load_transformer(source, dtype).to(device)
    if device.type == "cpu":
        _align(transformer)
    check_parts(source.spec, transformer, codec, conditioner)
    codebook = load_codebook(source.parts[CODEBOOK]) if CODEBOOK in source.parts else None
    if codebook is not None and codebook.config.channels != source.spec.latent_channels:
        raise ModelError(
            f"{source.spec.name}: its codebook is of {codebook.config.channels} channels, its latents have "
            f"{source.spec.latent_channels}: give the parts that belong together"
        )
    return Bundle(
        spec=source.spec,
        transformer=transformer,
        codec=codec,
        conditioner=conditioner,
        digest=digest_of(source),
        parts=_lent(source),
        codebook=codebook,
    )
