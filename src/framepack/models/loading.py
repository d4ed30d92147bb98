"""From a model that was found to one in memory: parts loaded, converted and held against the spec."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from framepack.codecs.frame import FrameAutoencoder
from framepack.codecs.loading import check_weights, class_of, load_module
from framepack.conditioning.embeds import Conditioning
from framepack.conditioning.words import WordConditioner
from framepack.errors import InputError, ModelError
from framepack.models.bundle import Bundle, Codec
from framepack.models.codebook import load_codebook
from framepack.models.shards import SUFFIX
from framepack.models.source import CODEBOOK, OWN_PARTS, Source, resolve_model
from framepack.models.spec import ModelSpec
from framepack.models.step_cache import read_ratios

SAMPLED, SAMPLES = 256 * 2**20, 64
"""Of a file above so many bytes, so many blocks go into the digest: hashing 26 GB takes minutes."""
BLOCK = 2**20
ALIGNMENT = 64
"""Bytes, of PyTorch's own memory on CPUs."""


def load_part(part: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """One of ``OWN_PARTS`` from its folder, for inference.

    Raises:
        ModelError: absent, or not to be read.
    """
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
    from framepack.models.wan import PackedWanTransformer3DModel

    return load_module(PackedWanTransformer3DModel, source.transformer, dtype)


def _load_helios(source: Source, dtype: torch.dtype) -> Any:
    from framepack.models.helios import load_helios

    return load_helios(source.transformer, dtype)


def _load_hunyuan_video(source: Source, dtype: torch.dtype) -> Any:
    from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel

    return load_module(PackedHunyuanVideoTransformer3DModel, source.transformer, dtype)


def _load_framepack(source: Source, dtype: torch.dtype) -> Any:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
    from framepack.models.single_file import load_framepack

    if source.transformer.is_file():
        base = load_framepack(source.transformer, dtype)
    else:
        kind = HunyuanVideoFramepackTransformer3DModel
        base = load_module(kind, source.transformer, dtype, also=(source.layout,))
    return PackedHunyuanVideoTransformer3DModel.adopt(base, ())


def load_on(source: Source, device: torch.device, dtype: torch.dtype, *, computes: bool = True) -> Any:
    """The packed transformer of a model on a device; errors as of ``load_transformer``.

    Args:
        computes: as in ``load_bundle``.
    """
    transformer = load_transformer(source, dtype).to(device)
    if computes and device.type == "cpu":
        align(transformer)
    return transformer


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
    for part, folder in source.parts.items():
        if "encoder" in part:
            check_weights(folder)
    if source.spec.family == "wan":
        from framepack.conditioning.wan import WanConditioner

        return WanConditioner(source.parts, device)
    from framepack.conditioning.hunyuan_video import HunyuanVideoConditioner

    return HunyuanVideoConditioner(source.parts, device)


def align(module: torch.nn.Module) -> None:
    """Move weights that a mapped file has at odd addresses to where PyTorch itself would have put them.

    Sums on a CPU round by the address of what is summed: without this, a model saved again, under a header
    of another length, would differ in its last digits. What is read of the file is given back one by one, or
    all would be held twice until the last of them has moved.
    """
    mapped = _mapped_files()
    for parameter in module.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            read = parameter.data
            parameter.data = read.clone()
            _give_back(read, mapped)


def _mapped_files() -> list[tuple[int, int]]:
    """Addresses of this process at which weights files are mapped, first and beyond; none where unknown."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    ranges = (line.split("-", 1) for line in lines if line.endswith(SUFFIX))
    return [(int(first, 16), int(rest.split(" ", 1)[0], 16)) for first, rest in ranges]


def _give_back(tensor: torch.Tensor, mapped: Sequence[tuple[int, int]]) -> None:
    """Have the system drop the pages of a mapped file that a tensor fills; looking there reads them again."""
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop and any(first <= start and stop <= beyond for first, beyond in mapped):
        drop = ctypes.CDLL(None).madvise
        drop(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def check_parts(spec: ModelSpec, transformer: Any, codec: Codec, conditioner: Any) -> None:
    """See that a model's parts are what its spec says and fit each other.

    Raises:
        ModelError: they do not.
    """
    config = transformer.config
    patch = config.patch_size
    kernel = (config.patch_size_t, patch, patch) if isinstance(patch, int) else tuple(patch)
    widths = _widths(spec, transformer)
    width = conditioner.config.width if isinstance(conditioner, WordConditioner) else conditioner.width
    facts = [
        ("base_kernel", spec.base_kernel, "the transformer's patch_size", kernel),
        ("latent_channels", spec.latent_channels, "the transformer's", config.latent_channels),
        ("latent_channels", spec.latent_channels, "the codec's", codec.latent_channels),
        ("spatial_stride", spec.spatial_stride, "the codec's", codec.spatial_stride),
        ("temporal_stride", spec.temporal_stride, "the codec's", codec.temporal_stride),
        ("the transformer's text width", widths["prompt"], "the conditioner's", width),
    ]
    if spec.family == "hunyuan_video":
        facts += [
            (f"the transformer's {name} width", widths[name], "the conditioner's", found)
            for name, found in (("pooled", conditioner.pooled_width), ("image", conditioner.image_width))
        ]
    for name, stated, whose, found in facts:
        if stated != found:
            raise ModelError(
                f"{spec.name}: {name} is {stated}, {whose} is {found}: give the parts that belong together"
            )


def _widths(spec: ModelSpec, transformer: Any) -> dict[str, int | None]:
    """Widths of what steers a transformer, by field of ``Conditioning``; None for what it does not take."""
    config = transformer.config
    if spec.family == "wan":
        return {"prompt": config.text_dim, "pooled": None, "image": None}
    image = config.image_proj_dim if config.has_image_proj else None
    return {"prompt": config.text_embed_dim, "pooled": config.pooled_projection_dim, "image": image}


def check_given(bundle: Bundle, given: Conditioning, what: str) -> None:
    """See that embeddings which a user brings are those of one prompt, for this model.

    Args:
        what: their name, for the message.

    Raises:
        InputError: they are not.
    """
    widths = _widths(bundle.spec, bundle.transformer)
    wanted = {name: f"(1, {'' if name == 'pooled' else 'tokens, '}{width})" for name, width in widths.items()}
    for name, width in widths.items():
        part = getattr(given, name)
        if part is None and (width is None or name == "image"):
            continue
        shape = None if part is None else tuple(part.shape)
        dims = 2 if name == "pooled" else 3
        if shape is None or len(shape) != dims or shape[0] != 1 or shape[-1] != width:
            raise InputError(
                f"{what}: {name} is {shape or 'absent'}, {bundle.spec.name} takes "
                f"{'none' if width is None else wanted[name]}: encode one prompt with this model's encoders"
            )
    if given.mask is not None and given.mask.shape != given.prompt.shape[:2]:
        raise InputError(
            f"{what}: mask is {tuple(given.mask.shape)}, its prompt {tuple(given.prompt.shape)}: give one "
            "value for each token"
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
    from framepack.codecs.video_vae import load_codec

    vae, wanted = source.parts["vae"], _VAES[source.spec.family]
    if class_of(vae) != wanted:
        raise ModelError(f"'{vae}' holds a {class_of(vae)}, not a {wanted}: give the family's own VAE")
    return load_codec(vae, device), _conditioner(source, device)


def move_companions(bundle: Bundle, device: torch.device, beside: torch.device | None = None) -> None:
    """Have codec and conditioner compute on a device, in the precision that ``load_companions`` picks.

    Args:
        beside: another one for the codec.
    """
    conditioner: Any = bundle.conditioner
    conditioner.to(device)
    codec: Any = bundle.codec
    place = beside or device
    if isinstance(codec, FrameAutoencoder):
        codec.to(place)
    else:
        from framepack.codecs.video_vae import released_dtype

        codec.to(place, released_dtype(type(codec.vae), place))


def _lent(source: Source) -> dict[str, Path]:
    """What a model's codec and conditioner were made from, where they are not framepack's own."""
    own = OWN_PARTS[0] in source.parts
    return {} if own else {part: place for part, place in source.parts.items() if part != CODEBOOK}


def load_bundle(
    model: str | Source,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    parts: Sequence[str] = (),
    *,
    computes: bool = True,
) -> Bundle:
    """Load a model.

    Args:
        model: a name, see ``resolve_model``, or what it found.
        dtype: of the transformer. A video codec runs in what it was released in, the bundled one in float32:
            its convolutions are cheap, and rounding them would show.
        parts: as in ``resolve_model``.
        computes: on ``device``; else weights are only read there, and stay mapped from their files.

    Raises:
        UnknownNameError: no such model. ModelError: a part that cannot be read, or parts that do not fit.
    """
    source = (resolve_model(model, parts) if isinstance(model, str) else model).complete()
    device = torch.device(device)
    codec, conditioner = load_companions(source, device, dtype)
    transformer = load_on(source, device, dtype, computes=computes)
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
        mag_ratios=read_ratios(source.transformer.parent),
    )


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
