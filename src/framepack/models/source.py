"""What a model's name stands for: where its parts lie, and its spec. Nothing is loaded, PyTorch not needed.

A name is ``bundled``, a folder, a single safetensors file, or a repository of the hub. A folder is one
saved by framepack (it has a ``framepack.json``), or one of the released FramePack or Helios checkpoints as
diffusers lays it out: the transformer at its root or in ``transformer/``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framepack.errors import InputError, ModelError, UnknownNameError
from framepack.models.families import spec_for
from framepack.models.hub import fetch, hub_id, revision_of
from framepack.models.single_file import read_config
from framepack.models.spec import BUNDLED, SPEC_FILE, ModelSpec
from framepack.planning.method import Method, named_method

PARTS: dict[str, tuple[str, ...]] = {
    "hunyuan_video": (
        *("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        *("image_encoder", "feature_extractor"),
    ),
    "wan": ("vae", "text_encoder", "tokenizer"),
}
"""Folders beside the transformer that a family needs, by diffusers' names."""
OWN_PARTS = ("codec", "conditioner")
"""The same of a model whose codec and conditioner are framepack's own."""
COMPANIONS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "hunyuan_video": (
        ("hunyuanvideo-community/HunyuanVideo", PARTS["hunyuan_video"][:5]),
        ("lllyasviel/flux_redux_bfl", PARTS["hunyuan_video"][5:]),
    ),
    "wan": (("Wan-AI/Wan2.1-T2V-14B-Diffusers", PARTS["wan"]),),
}
"""Repositories that hold the parts which a family's released transformers come without."""
PACKED = {
    "PackedHunyuanVideoTransformer3DModel": "hunyuan_video",
    "PackedWanTransformer3DModel": "wan",
    "HunyuanVideoFramepackTransformer3DModel": "hunyuan_video",
    "HeliosTransformer3DModel": "wan",
}
"""``_class_name`` of transformers with packing kernels, and their family."""
BASES = ("HunyuanVideoTransformer3DModel", "WanTransformer3DModel")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model found, not loaded.

    Attributes:
        name: as it was given.
        transformer: folder of the transformer, or a single file.
        layout: ``_class_name`` of the transformer as it lies there.
        parts: folders of the other parts found so far, by name.
        searched: where to look for the missing ones, folders and hub ids.
        remarks: what had to be assumed, one line each, for the user.
    """

    name: str
    spec: ModelSpec
    transformer: Path
    layout: str
    parts: dict[str, Path]
    searched: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def revision(self) -> str | None:
        """The hub's commit, of a model that came from there."""
        return revision_of(self.transformer)

    def complete(self) -> Source:
        """The same with every part its family needs, fetched from the hub where it must be.

        Raises:
            ModelError: a part that is nowhere to be found.
        """
        if all(part in self.parts for part in OWN_PARTS):
            return self
        parts = dict(self.parts)
        for place in self.searched:
            missing = [part for part in PARTS[self.spec.family] if part not in parts]
            if missing:
                folder = Path(place) if Path(place).is_dir() else fetch(place, missing)
                parts |= _parts_in(folder, missing)
        missing = [part for part in PARTS[self.spec.family] if part not in parts]
        for repository, held in COMPANIONS[self.spec.family]:
            wanted = [part for part in missing if part in held]
            if wanted:
                parts |= _parts_in(fetch(repository, wanted), wanted)
        missing = [part for part in PARTS[self.spec.family] if part not in parts]
        if missing:
            raise ModelError(
                f"model '{self.name}' has no {', '.join(missing)}: add --parts with a folder that holds them"
            )
        return replace(self, parts=parts)


def resolve_model(name: str, parts: Sequence[str] = (), known: Sequence[str] = ()) -> Source:
    """Find a model by name.

    Args:
        name: ``bundled``, a folder, a ``.safetensors`` file or a hub id with or without ``@revision``.
        parts: folders or hub ids that hold the parts the model comes without, first come first served.
        known: other names that the caller takes, for the message.

    Raises:
        UnknownNameError: nothing of that name. ModelError: found, but not to be used.
    """
    for place in parts:
        if not Path(place).is_dir() and hub_id(place) is None:
            raise InputError(f"--parts '{place}' is neither a folder nor a hub id: give one of these")
    if name == "bundled":
        if not (BUNDLED / SPEC_FILE).is_file():
            raise ModelError(
                "model 'bundled': its weights are not in this copy of framepack: "
                f"give a folder with {SPEC_FILE}"
            )
        return _saved(name, BUNDLED, tuple(parts))
    path = Path(name)
    if path.is_dir():
        return _in_folder(name, path, tuple(parts))
    if path.is_file():
        return _in_file(name, path, tuple(parts))
    if hub_id(name) is not None and not path.exists():
        return _in_folder(name, fetch(name), tuple(parts))
    choices = ["bundled", *known, "a model folder", "a .safetensors file", "a hub id (owner/name)"]
    raise UnknownNameError("model", name, choices)


def _parts_in(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    return {name: folder / name for name in names if (folder / name).is_dir()}


def _saved(name: str, folder: Path, searched: tuple[str, ...]) -> Source:
    """A folder written by framepack."""
    spec = ModelSpec.load(folder)
    config = _config(folder / "transformer")
    layout = str(config.get("_class_name"))
    if PACKED.get(layout) != spec.family:
        raise ModelError(
            f"'{name}' is of family {spec.family} by its {SPEC_FILE}, and its transformer is a {layout}: "
            "save the model again"
        )
    parts = _parts_in(folder, (*OWN_PARTS, *PARTS[spec.family]))
    return Source(
        name=name,
        spec=spec,
        transformer=folder / "transformer",
        layout=layout,
        parts=parts,
        searched=searched,
    )


def _in_folder(name: str, folder: Path, searched: tuple[str, ...]) -> Source:
    if (folder / SPEC_FILE).is_file():
        return _saved(name, folder, searched)
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (transformer / "config.json").is_file():
        raise ModelError(
            f"'{name}' has neither {SPEC_FILE} nor a transformer with config.json: give a model folder"
        )
    return _released(name, _config(transformer), transformer, folder, searched)


def _in_file(name: str, path: Path, searched: tuple[str, ...]) -> Source:
    return _released(name, read_config(path), path, path.parent, searched)


def _released(
    name: str, config: dict[str, Any], transformer: Path, folder: Path, searched: tuple[str, ...]
) -> Source:
    """A released checkpoint, whose spec follows from its class and name."""
    layout = str(config.get("_class_name"))
    if layout in BASES:
        raise ModelError(
            f"'{name}' is a base without packing kernels ({layout}): run `framepack adopt --base {name} "
            "--schedule geometric --out DIR` first, and fine-tune the result"
        )
    if layout not in PACKED:
        raise ModelError(f"'{name}' holds a {layout}: use one of {', '.join((*PACKED, *BASES))}")
    family = PACKED[layout]
    place = transformer if transformer.is_file() else folder
    method, remarks = _trained_for(layout, config, place)
    spec = spec_for(
        family,
        Path(name).name,
        {"f1" if method.order == "f1" else "inverted": method},
        latent_channels=config.get("in_channels", 16),
        guidance_embeds=bool(config.get("guidance_embeds", family == "hunyuan_video")),
    )
    return Source(
        name=name,
        spec=spec,
        transformer=transformer,
        layout=layout,
        parts=_parts_in(folder, PARTS[family]),
        searched=searched,
        remarks=remarks,
    )


def _trained_for(layout: str, config: dict[str, Any], place: Path) -> tuple[Method, tuple[str, ...]]:
    """The method of a released checkpoint, and what had to be assumed."""
    if layout == "HeliosTransformer3DModel":
        timestep = "zero" if config.get("zero_history_timestep", True) else "noisy"
        return replace(named_method("f1"), history_timestep=timestep), ()
    # FramePackI2V_HY and F1 are the same structure: only their names tell them apart.
    words = re.split(r"[^a-z0-9]+", " ".join(place.absolute().parts[-4:]).lower())
    if "f1" in words:
        return named_method("f1"), ()
    if "framepacki2v" in words:
        return named_method("inverted"), ()
    return named_method("inverted"), (
        f"'{place.name}' is taken for FramePackI2V_HY, which was trained for method inverted; "
        "for F1 weights add --method f1 --untrained, or put F1 into the name",
    )


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a part.

    Raises:
        ModelError: absent, or not JSON.
    """
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"'{folder}' has no config.json ({error.strerror}): give a model folder") from error
    except ValueError as error:
        raise ModelError(f"'{folder / 'config.json'}' is not JSON ({error}): fetch it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{folder / 'config.json'}' is not a configuration: fetch it again")
    return found
