"""A part of a model from its folder, as diffusers and transformers save them, with errors a user can read.

The libraries forgive what a user should hear of: weights that no file has are drawn at random, a
configuration of another architecture is filled up with defaults, pickles are opened. Here each is an error,
and damaged files are found by their headers before anything large is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from framepack.errors import ModelError, first_line, ran_out

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        ModelError: absent, not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"'{path}' is missing: download the model again, or check the path") from None
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read ({error.strerror}): download it again") from error
    except ValueError as error:
        raise ModelError(f"'{path}' is not JSON ({first_line(error)}): download it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{path}' must hold a JSON object: download it again")
    return found


def class_of(folder: Path) -> str:
    """What a folder says it holds: diffusers' ``_class_name`` or transformers' ``model_type``."""
    config = read_json(folder / CONFIG_FILE)
    return str(config.get("_class_name") or config.get("model_type"))


def check_weights(folder: Path) -> None:
    """See that all weight files of a folder are there and are whole safetensors; reads their headers only.

    Raises:
        ModelError: no weights, pickles alone, a missing shard, a file that is cut or something else.
    """
    files = set(folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ModelError(f"'{index}' has no weight_map: download it again")
        for shard in sorted(set(shards.values())):
            if folder / shard not in files:
                raise ModelError(f"'{folder / shard}' is missing, '{index.name}' lists it: download it again")
    if not files:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
        found = f" ({', '.join(pickles)}: pickles are never opened)" if pickles else ""
        raise ModelError(f"'{folder}' has no weights{found}: give a folder with *.safetensors")
    for file in sorted(files):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"'{file}' is cut short or no safetensors file ({first_line(error)}): download it again"
            ) from error


def load_module(kind: Any, folder: Path, dtype: torch.dtype | str, also: Sequence[str] = ()) -> Any:
    """A model of class ``kind``, of diffusers or transformers, on the CPU and for inference.

    Args:
        dtype: of its weights; for transformers ``"auto"`` is that of the folder.
        also: other names of that class, which a folder may state.

    Raises:
        ModelError: the folder is of another class, or its weights are damaged or do not fill the model.
    """
    transformers_config = getattr(kind, "config_class", None)
    wanted = transformers_config.model_type if transformers_config else kind.__name__
    found = class_of(folder)
    if found not in (wanted, *also):
        raise ModelError(f"'{folder}' holds a {found}, not a {wanted}: give a folder of that class")
    check_weights(folder)
    from transformers.utils import logging

    logging.disable_progress_bar()  # whoever loads a model shows progress of its own
    try:
        module, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **{"dtype" if transformers_config else "torch_dtype": dtype},
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        if ran_out(error):
            raise  # nothing is wrong with the folder
        raise ModelError(f"'{folder}' cannot be loaded ({first_line(error)}): download it again") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"'{folder}' lacks {len(missing)} of its {kind.__name__}'s weights, {missing[0]} among them: "
            "download it again"
        )
    return module.eval().requires_grad_(False)
