"""What a model's name stands for: where its parts lie, and its spec. Nothing is loaded, PyTorch not needed.

A name is ``bundled``, a folder, a single safetensors file, or a repository of the hub. A folder is one
saved by framepack (it has a ``framepack.json``), or one of the released FramePack or Helios checkpoints as
diffusers lays it out: the transformer at its root or in ``transformer/``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framepack.codecs.loading import CONFIG_FILE, read_json
from framepack.errors import InputError, ModelError, UnknownNameError
from framepack.models.families import BASES, HELIOS_CLASS, PACKED, SECTION_SIZE, helios_spec, spec_for
from framepack.models.hub import fetch, hub_id, revision_of
from framepack.models.pyramid import pyramid_of
from framepack.models.single_file import read_config
from framepack.models.spec import BUNDLED, SPEC_FILE, ModelSpec
from framepack.models.step_cache import RATIOS_FILE
from framepack.packing.schedule import HUNYUAN_BASE
from framepack.planning.method import Method, named_method

PARTS: dict[str, tuple[str, ...]] = {
    "hunyuan_video": (
        *("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        *("image_encoder", "feature_extractor"),
    ),
    "wan": ("vae", "text_encoder", "tokenizer"),
}
"""Folders beside the transformer that a family needs, by diffusers' names."""
IMAGE_PARTS = ("image_encoder", "feature_extractor")
OWN_PARTS = ("codec", "conditioner")
"""The same of a model whose codec and conditioner are framepack's own."""
CODEBOOK = "codebook"
"""Beside them in the folder of a model that discretises its history."""
COMPANIONS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "hunyuan_video": (
        ("hunyuanvideo-community/HunyuanVideo", PARTS["hunyuan_video"][:5]),
        ("lllyasviel/flux_redux_bfl", PARTS["hunyuan_video"][5:]),
    ),
    "wan": (("Wan-AI/Wan2.1-T2V-14B-Diffusers", PARTS["wan"]),),
    "wan 48": (("Wan-AI/Wan2.2-TI2V-5B-Diffusers", PARTS["wan"]),),
}
"""Repositories that hold the parts which a family's released transformers come without; by family, and by
latent channels where these want another codec."""
CONFIGS = (
    *(SPEC_FILE, "config.json", "transformer/config.json"),
    *("model_index.json", "scheduler/scheduler_config.json", RATIOS_FILE),
)
"""Files of a repository that say what it is, and those of a few bytes beside them; nothing else is fetched
before it is known to be of use."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model found, not loaded.

    Attributes:
        name: as it was given.
        transformer: folder of the transformer, or a single file.
        layout: ``_class_name`` of the transformer as it lies there.
        parts: folders of the other parts found so far, by name.
        needed: names of all that its family needs.
        searched: where to look for the missing ones, folders and hub ids.
        repository: hub id with its commit, of which only `CONFIGS` are here so far.
        remarks: what had to be assumed, one line each, for the user.
    """

    name: str
    spec: ModelSpec
    transformer: Path
    layout: str
    parts: dict[str, Path]
    needed: tuple[str, ...]
    searched: tuple[str, ...] = ()
    repository: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def revision(self) -> str | None:
        """The hub's commit, of a model that came from there."""
        return revision_of(self.transformer)

    def complete(self) -> Source:
        """The same with its weights and every part it needs here, fetched from the hub where they must be.

        Raises:
            ModelError: a part that is nowhere to be found.
        """
        parts = dict(self.parts)
        if self.repository is not None:
            wanted = (*OWN_PARTS, CODEBOOK, *self.needed)
            # Beside a transformer of its own folder, repositories hold weights that nothing here reads.
            apart = self.transformer.name == "transformer"
            folder = (
                fetch(self.repository, ("transformer", *wanted), CONFIGS) if apart else fetch(self.repository)
            )
            parts = _parts_in(folder, wanted)
        if not all(part in parts for part in OWN_PARTS):
            parts = self._gathered(parts)
        return replace(self, parts=parts, repository=None)

    def _gathered(self, parts: dict[str, Path]) -> dict[str, Path]:
        """``parts`` and those it lacks: from ``searched`` first, then from the family's companions."""
        for place in self.searched:
            missing = [part for part in self.needed if part not in parts]
            if missing:
                folder = Path(place) if Path(place).is_dir() else fetch(place, missing)
                parts = parts | _parts_in(folder, missing)
        lacking = [part for part in self.needed if part not in parts]
        told = (
            f"model '{self.name}' has no {', '.join(lacking)}: add --parts with a folder or hub id that "
            "holds them"
        )
        family = self.spec.family
        companions = COMPANIONS.get(f"{family} {self.spec.latent_channels}", COMPANIONS[family])
        for repository, held in companions:
            wanted = [part for part in lacking if part in held]
            if wanted:
                try:
                    parts = parts | _parts_in(fetch(repository, wanted), wanted)
                except ModelError as error:
                    raise ModelError(f"{told} ({error})") from error
        if any(part not in parts for part in lacking):
            raise ModelError(told)
        return parts


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
    if path.suffix == ".safetensors":
        raise ModelError(f"'{name}' does not exist: check the path")
    if hub_id(name) is not None and not path.exists():
        return _on_hub(name, tuple(parts))
    choices = ["bundled", *known, "a model folder", "a .safetensors file", "a hub id (owner/name)"]
    raise UnknownNameError("model", name, choices)


def _needed(family: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Parts of a family, without the image encoder for a transformer that takes no image tokens."""
    if family == "hunyuan_video" and not config.get("has_image_proj"):
        return tuple(part for part in PARTS[family] if part not in IMAGE_PARTS)
    return PARTS[family]


def _parts_in(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    return {name: folder / name for name in names if (folder / name).is_dir()}


def _saved(name: str, folder: Path, searched: tuple[str, ...]) -> Source:
    """A folder written by framepack."""
    spec = ModelSpec.load(folder)
    config = read_json(folder / "transformer" / CONFIG_FILE)
    layout = str(config.get("_class_name"))
    if PACKED.get(layout) != spec.family:
        raise ModelError(
            f"'{name}' is of family {spec.family} by its {SPEC_FILE}, and its transformer is a {layout}: "
            "save the model again"
        )
    needed = _needed(spec.family, config)
    parts = _parts_in(folder, (*OWN_PARTS, CODEBOOK, *needed))
    return Source(
        name=name,
        spec=spec,
        transformer=folder / "transformer",
        layout=layout,
        parts=parts,
        needed=needed,
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
    return _released(name, read_json(transformer / CONFIG_FILE), transformer, folder, searched)


def _on_hub(name: str, searched: tuple[str, ...]) -> Source:
    """A repository of the hub, held to the commit that its configurations were fetched from."""
    folder = fetch(name, files=CONFIGS)
    if not any((folder / file).is_file() for file in CONFIGS[:3]):
        raise ModelError(
            f"'{name}' on the hub has neither {SPEC_FILE} nor a transformer with config.json: "
            "download the file that you mean, and give it in place of the repository"
        )
    found, commit = hub_id(name), revision_of(folder)
    assert found is not None, name
    source = _in_folder(name, folder, searched)
    return replace(source, repository=name if commit is None else f"{found[0]}@{commit}")


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
    if layout == HELIOS_CLASS:
        spec, remarks = _helios(Path(name).name, config, folder)
    else:
        method, remarks = _trained_for(place)
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
        parts=_parts_in(folder, _needed(family, config)),
        needed=_needed(family, config),
        searched=searched,
        remarks=remarks,
    )


def _helios(name: str, config: dict[str, Any], folder: Path) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec of one of the three Helios releases, and what had to be assumed."""
    try:
        time, height, width = config.get("patch_size", HUNYUAN_BASE)
        base = (time, height, width)
    except (TypeError, ValueError):
        raise ModelError(
            f"'{name}' has a patch size of {config['patch_size']!r}, three numbers are needed: fetch it again"
        ) from None
    timestep = "zero" if config.get("zero_history_timestep", True) else "noisy"
    method = replace(named_method("f1", base, SECTION_SIZE), absent="zeros", history_timestep=timestep)
    scheduler, pipeline = folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"
    if not scheduler.is_file():
        remark = f"'{name}' has no scheduler, which tells the three apart: it is taken for Helios-Base"
        return helios_spec(name, method, base, None), (remark,)
    found = pyramid_of(read_json(scheduler), read_json(pipeline) if pipeline.is_file() else None)
    return helios_spec(name, method, base, found), ()


def _trained_for(place: Path) -> tuple[Method, tuple[str, ...]]:
    """The method of a released FramePack checkpoint, and what had to be assumed."""
    # FramePackI2V_HY and F1 are the same structure: only their names tell them apart.
    # Four, since a file of the hub's cache lies in models--OWNER--NAME/snapshots/COMMIT/.
    for part in reversed(place.absolute().parts[-4:]):
        words = re.split(r"[^a-z0-9]+", part.lower())
        if "f1" in words:
            return named_method("f1"), ()
        if "framepacki2v" in words:
            return named_method("inverted"), ()
    return named_method("inverted"), (
        f"'{place.name}' is taken for FramePackI2V_HY, which was trained for method inverted; "
        "for F1 weights add --method f1 --untrained, or put F1 into the name",
    )
