"""Adopt a base on disk: a folder of any base becomes a packed model folder, tensor by tensor.

No module is built but on the meta device. Tensors of the base are copied unchanged under our names, packing
kernels are made from its patch embedding, and a variant leaves blocks out or repeats them. Memory depends
neither on the size of the model nor on that of its files.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from framepack.errors import InputError, ModelError, UnknownNameError, first_line
from framepack.models.base import PACKED, STACKS, Base, read_base
from framepack.models.card import model_card
from framepack.models.draft import bring, check_place, draft_folder
from framepack.models.families import spec_for
from framepack.models.hunyuan_video import RELEASED_KERNELS
from framepack.models.shards import (
    Meter,
    Reader,
    Tensor,
    fill_shards,
    find_tensors,
    write_shards,
)
from framepack.models.source import OWN_PARTS, PARTS
from framepack.models.spec import SPEC_FILE, ModelSpec
from framepack.models.variants import VARIANTS
from framepack.packing.kernels import expand_kernel, kernel_name
from framepack.packing.schedule import Kernel

LEFT_OUT = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
"""Weights in forms that nothing here reads."""
SHARD_BYTES = 5_000_000_000
PIECE_BYTES = 64_000_000

PATCH_EMBEDDING = {"hunyuan_video": "x_embedder.proj", "wan": "patch_embedding"}
KERNELS = "packing_kernels.projections."
# The projections through which a block adds to the residual stream: with these at zero it passes its input
# on as it is.
RESIDUAL_OUTPUTS = {
    "transformer_blocks": ("attn.to_out.0", "attn.to_add_out", "ff.net.2", "ff_context.net.2"),
    "single_transformer_blocks": ("proj_out",),
}
_BLOCK = re.compile(r"(\w+)\.(\d+)\.(.+)\.\w+")


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What was written, and what it took.

    Attributes:
        kernels_made, kernels_kept: in the paper's notation, such as ``k2h4w4``.
        layers: for each stack of blocks of a variant, the base's block that each block is a copy of.
        base_layers: how many blocks the base has in each.
        parts: files of each part of the pipeline, ``linked`` and ``copied``.
        peak_bytes: most bytes of tensors in memory at once.
        largest_shard_bytes: data of the largest weights file read or written.
    """

    out: str
    base: str
    family: str
    class_name: str
    variant: str | None
    methods: dict[str, str]
    default_method: str
    kernels_made: list[str]
    kernels_kept: list[str]
    layers: dict[str, list[int]]
    base_layers: dict[str, int]
    parameters: int
    bytes: int
    shards: int
    parts: dict[str, dict[str, int]]
    peak_bytes: int
    largest_shard_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A tensor of the result: a copy of ``source``, that spread to ``kernel``, or zeros without a source."""

    tensor: Tensor
    source: Tensor | None = None
    kernel: Kernel | None = None


def adopt(
    base: Path,
    out: Path,
    *,
    schedule: str | None = None,
    variant: str | None = None,
    methods: Sequence[str] = (),
    overwrite: bool = False,
    shard_bytes: int | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Adopted:
    """Write a packed model folder from a diffusers folder.

    Args:
        base: a pipeline folder with ``transformer/``, or a transformer's own folder.
        out: a folder that does not exist, is empty, or holds a model and ``overwrite`` is set.
        schedule: packing of the history, as `PackingSchedule.from_spec` reads it; the variant's, or else
            the method's own, where left out.
        variant: a name of `VARIANTS`, for HunyuanVideo.
        methods: names or strings of the paper; the first is the default. The family's where left out.
        shard_bytes: most bytes of a weights file written; 5 GB where left out, or as the base's shards have.
        on_bytes: told of the bytes done, and of all there are.

    Raises:
        InputError: a schedule, method or variant that the base cannot have.
        ModelError: a base that cannot be read. OutputError: a place that cannot be written.
    """
    begun = time.monotonic()
    source = read_base(base)
    check_place(out, overwrite=overwrite, apart_from=source.root or source.folder)
    if variant is not None and variant not in VARIANTS:
        raise UnknownNameError("variant", variant, tuple(VARIANTS))
    if variant is not None and source.family != "hunyuan_video":
        raise InputError(
            f"variant '{variant}' is a size of HunyuanVideo, '{base}' is {source.family}: give --schedule"
        )
    spec = _spec(source, out.resolve().name, schedule, variant, methods)
    wanted = {kernel for method in spec.methods.values() for kernel in method.schedule.kernels}
    fresh = tuple(sorted(wanted - set(source.kernels), key=lambda kernel: (math.prod(kernel), kernel)))
    layers = _layers(source, variant)

    tensors = find_tensors(source.folder)
    entries = _entries(source, tensors, fresh, layers)
    model = _packed(source, fresh, layers)
    _check(source, entries, model)

    sizes: Counter[Path | None] = Counter()
    for tensor in tensors.values():
        sizes[tensor.file] += tensor.nbytes
    largest = max(sizes.values())
    limit = shard_bytes or (min(SHARD_BYTES, largest) if len(sizes) > 1 else SHARD_BYTES)
    shards = fill_shards([entry.tensor for entry in entries.values()], limit)
    written = [sum(tensor.nbytes for tensor in shard) for shard in shards]
    parts = {
        name: files
        for name in (*PARTS[source.family], *OWN_PARTS)
        if source.root and (files := _files(source.root / name))
    }
    beside = [*_licences(source), *(path for files in parts.values() for path in files)]
    total = sum(written) + sum(path.stat().st_size for path in beside)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        on_bytes(done, total)

    meter = Meter()
    reader = Reader(min(PIECE_BYTES, max(1, min(limit, largest) // 8)), meter)
    with draft_folder(out, size=sum(written)) as draft:
        model.save_config(draft / "transformer")
        try:
            write_shards(
                draft / "transformer", shards, lambda t: _pieces(entries[t.name], source, reader), told
            )
        finally:
            reader.close()
        brought = {name: _bring(files, source, draft, told) for name, files in parts.items()}
        _bring(_licences(source), source, draft, told)
        result = Adopted(
            out=str(out),
            base=source.name,
            family=source.family,
            class_name=type(model).__name__,
            variant=variant,
            methods={name: str(method) for name, method in spec.methods.items()},
            default_method=spec.default_method,
            kernels_made=[kernel_name(kernel) for kernel in fresh],
            kernels_kept=[kernel_name(kernel) for kernel in source.kernels],
            layers={stack: list(order) for stack, order in layers.items()},
            base_layers=source.layers,
            parameters=sum(math.prod(entry.tensor.shape) for entry in entries.values()),
            bytes=sum(written),
            shards=len(shards),
            parts=brought,
            peak_bytes=meter.peak,
            largest_shard_bytes=max(largest, *written),
            seconds=round(time.monotonic() - begun, 3),
        )
        spec.save(draft)
        (draft / "README.md").write_text(model_card(result, source, spec), encoding="utf-8")
    return result


# What is asked of which base ---------------------------------------------------------------------------


def _spec(
    base: Base, name: str, schedule: str | None, variant: str | None, methods: Sequence[str]
) -> ModelSpec:
    if base.root and (base.root / SPEC_FILE).is_file():
        spec = ModelSpec.load(base.root)
    else:
        spec = spec_for(
            base.family,
            name,
            latent_channels=base.config["latent_channels"],
            base_kernel=base.base_kernel,
            guidance_embeds=bool(base.config.get("guidance_embeds")),
        )
    wanted = tuple(dict.fromkeys(methods)) or (spec.default_method,)
    chosen = {text: spec.method(text, schedule, untrained=True) for text in wanted}
    if variant is not None and schedule is None:
        packed = VARIANTS[variant].schedule(spec.base_kernel)
        chosen = {text: method.with_schedule(packed) for text, method in chosen.items()}
    return replace(spec, name=name, methods=chosen, default_method=wanted[0])


def _layers(base: Base, variant: str | None) -> dict[str, tuple[int, ...]]:
    """The base's block behind each block of a variant, for each stack; empty where blocks stay."""
    if variant is None:
        return {}
    return dict(zip(STACKS, VARIANTS[variant].layers(*base.layers.values()), strict=True))


# Tensors -----------------------------------------------------------------------------------------------


def _entries(
    base: Base,
    tensors: dict[str, Tensor],
    fresh: Iterable[Kernel],
    layers: dict[str, tuple[int, ...]],
) -> dict[str, _Entry]:
    """Every tensor of the result by name, in the order of the base's files."""
    patch = PATCH_EMBEDDING[base.family]
    for key in ("weight", "bias"):
        if f"{patch}.{key}" not in tensors:
            raise ModelError(
                f"base '{base.folder}' has no {patch}.{key}: use another base, or fetch it again"
            )
    weight, bias = tensors[f"{patch}.weight"], tensors[f"{patch}.bias"]
    if weight.shape[2:] != base.base_kernel:
        raise ModelError(
            f"'{base.folder}' has a {patch}.weight of shape {weight.shape}, its config.json a patch size of "
            f"{base.base_kernel}: fetch both again"
        )
    released = {f"clean_x_embedder.{name}.": kernel_name(kernel) for name, kernel in RELEASED_KERNELS.items()}
    found: dict[str, _Entry] = {}

    def add(name: str, source: Tensor | None, like: Tensor, kernel: Kernel | None = None) -> None:
        shape = like.shape
        if kernel is not None:
            shape = (shape[0], base.config["latent_channels"], *kernel)
        made = Tensor(name=name, dtype=like.dtype, shape=shape)
        found[name] = _Entry(tensor=made, source=source, kernel=kernel)

    for tensor in tensors.values():
        block = _BLOCK.fullmatch(tensor.name)
        if block and block[1] in layers:
            order, index = layers[block[1]], int(block[2])
            for place in (place for place, own in enumerate(order) if own == index):
                repeat = order.index(index) != place
                source = None if repeat and block[3] in RESIDUAL_OUTPUTS[block[1]] else tensor
                add(f"{block[1]}.{place}{tensor.name[block.end(2) :]}", source, tensor)
        else:
            old = next((old for old in released if tensor.name.startswith(old)), "")
            new = f"{KERNELS}{released[old]}." if old else ""
            add(new + tensor.name.removeprefix(old), tensor, tensor)
        if tensor is weight:
            for kernel in fresh:
                add(f"{KERNELS}{kernel_name(kernel)}.weight", weight, weight, kernel)
                add(f"{KERNELS}{kernel_name(kernel)}.bias", bias, bias)
    return found


def _packed(base: Base, fresh: Iterable[Kernel], layers: dict[str, tuple[int, ...]]) -> Any:
    """The result as a module on the meta device."""
    config = base.config | {"context_kernels": (*base.kernels, *fresh)}
    config |= {STACKS[stack]: len(order) for stack, order in layers.items()}
    try:
        with init_empty_weights(include_buffers=False):
            return PACKED[base.family](**config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, AttributeError) as error:
        reason = first_line(error)
        raise ModelError(
            f"'{base.folder / 'config.json'}' describes no model ({reason}): fetch it again"
        ) from error


def _check(base: Base, entries: dict[str, _Entry], model: Any) -> None:
    """Hold the result's names and shapes to what its class has, before anything is written.

    Raises:
        ModelError: they differ.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | entries.keys()):
        shape = entries[name].tensor.shape if name in entries else None
        if shape != wanted.get(name):
            raise ModelError(
                f"'{base.folder}' does not fit its config.json of {base.class_name}: {name} is "
                f"{shape or 'absent'}, not {wanted.get(name) or 'absent'}; fetch both again"
            )


def _pieces(entry: _Entry, base: Base, reader: Reader) -> Iterator[torch.Tensor]:
    if entry.source is None:
        return  # zeros
    if entry.kernel is None:
        yield from reader.pieces(entry.source)
        return
    channels, watch = base.config["latent_channels"], reader.meter.watch
    growth = -(-entry.tensor.nbytes // entry.source.nbytes)
    # A quarter: the new rows exist in single precision, twice, and in the file's.
    for rows in reader.pieces(entry.source, max(1, reader.piece // (4 * growth))):
        wide = watch(expand_kernel(watch(rows[:, :channels].float()), entry.kernel))
        yield watch(wide.to(rows.dtype))


# Files beside the transformer --------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """What of a part comes along: nothing hidden, no weights in other forms."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in LEFT_OUT
        and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    )


def _licences(base: Base) -> list[Path]:
    folder = base.root or base.folder
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.stem.lower() in ("license", "licence", "notice")
    )


def _bring(files: Iterable[Path], base: Base, draft: Path, told: Callable[[int], None]) -> dict[str, int]:
    counts = {"linked": 0, "copied": 0}
    for path in files:
        linked = bring(path, draft / path.relative_to(base.root or base.folder))
        counts["linked" if linked else "copied"] += 1
        told(path.stat().st_size)
    return counts
