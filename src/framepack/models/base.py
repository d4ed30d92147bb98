"""A base on disk, as its files describe it: where its transformer lies, of which class and size it is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framepack.codecs.loading import CONFIG_FILE, read_json
from framepack.errors import ModelError
from framepack.models.families import ADOPTED
from framepack.models.hunyuan_video import RELEASED_KERNELS, PackedHunyuanVideoTransformer3DModel
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.schedule import Kernel

PACKED: dict[str, Any] = {
    "hunyuan_video": PackedHunyuanVideoTransformer3DModel,
    "wan": PackedWanTransformer3DModel,
}
"""The class that a base of each family becomes."""
STACKS = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
"""HunyuanVideo's stacks of blocks, by the field of config.json that counts them."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base as its files describe it.

    Attributes:
        name: for people. root: its pipeline folder, where there is one. folder: of its transformer.
        family: of `ADOPTED`. config: every field of our class, its defaults filled in.
        kernels: packing kernels that it brings.
    """

    name: str
    root: Path | None
    folder: Path
    family: str
    class_name: str
    config: dict[str, Any]
    kernels: tuple[Kernel, ...]

    @property
    def base_kernel(self) -> Kernel:
        size = self.config["patch_size"]
        return (self.config["patch_size_t"], size, size) if self.family == "hunyuan_video" else tuple(size)

    @property
    def layers(self) -> dict[str, int]:
        """Blocks of each stack; only for HunyuanVideo."""
        return {stack: self.config[field] for stack, field in STACKS.items() if field in self.config}


def read_base(base: Path) -> Base:
    """Find the transformer in a folder and read what it is.

    Raises:
        ModelError: no folder, no config.json, or one of a class that cannot be adopted.
    """
    if not base.is_dir():
        why = "is a file" if base.exists() else "does not exist"
        raise ModelError(f"base '{base}' {why}: give a diffusers folder, a pipeline's or a transformer's")
    root = base if (base / "transformer").is_dir() else None
    folder = base / "transformer" if root else base
    if root and (root / "transformer_2").is_dir():
        raise ModelError(f"base '{base}' has two transformers: adopt one of them, such as '{folder}'")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"base '{base}' has no {'transformer/' if root else ''}config.json: give a diffusers folder"
        )
    raw = read_json(folder / CONFIG_FILE)
    class_name = str(raw.get("_class_name"))
    if class_name not in ADOPTED:
        raise ModelError(f"base '{base}' is of class {class_name}: only {', '.join(ADOPTED)} can be adopted")
    family = ADOPTED[class_name]
    given = {key: value for key, value in raw.items() if not key.startswith("_")}
    released = given.pop("has_clean_x_embedder", False)
    config = _checked(given, PACKED[family], folder / "config.json")
    if "context_kernels" in given:
        kernels = tuple((time, height, width) for time, height, width in given["context_kernels"])
    else:
        kernels = tuple(RELEASED_KERNELS.values()) if released else ()
        config |= _context_fields(config, base, family)
    return Base(
        name=_base_name(base),
        root=root,
        folder=folder,
        family=family,
        class_name=class_name,
        config=config,
        kernels=kernels,
    )


def _checked(given: Mapping[str, Any], packed: Any, path: Path) -> dict[str, Any]:
    """Every field of our class, as a base's configuration has it or by default."""
    fields = {
        name: field.default
        for name, field in inspect.signature(packed.__init__).parameters.items()
        if name != "self"
    }
    for name, value in given.items():
        if name not in fields and value not in (None, False):
            raise ModelError(f"'{path}' sets {name}, which is not known here: use another base")
        default = fields.get(name)
        kind = tuple | list if isinstance(default, tuple) else int if isinstance(default, int) else object
        if value is not None and not isinstance(value, kind):
            raise ModelError(f"'{path}' has {name} {value!r}: give a value like {default!r}")
    return fields | {name: value for name, value in given.items() if name in fields}


def _context_fields(config: dict[str, Any], base: Path, family: str) -> dict[str, Any]:
    """Our own fields for a base that has none of them."""
    given, channels = config["in_channels"], config["out_channels"] or config["in_channels"]
    aligned = family == "wan" and given == 3 * channels + 2
    if given != channels and not aligned:
        raise ModelError(
            f"base '{base}' takes {given} channels and gives {channels}: it has its start picture as "
            "channels, which packed context replaces; use the text-to-video base"
        )
    return {"out_channels": channels, "latent_channels": channels, "aligned": aligned}


def _base_name(base: Path) -> str:
    """A folder's name, or the repository's where the folder is of a Hugging Face cache."""
    path = base.absolute()
    for parent in (path, *path.parents):
        if parent.name.startswith("models--"):
            return parent.name.removeprefix("models--").replace("--", "/")
    return path.parent.name if path.name == "transformer" else path.name
