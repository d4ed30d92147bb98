"""Folders of the Hugging Face hub, by their id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from framepack.errors import ModelError

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_KEPT = ("*.json", "*.safetensors", "*.model", "*.txt")


def hub_id(name: str) -> tuple[str, str | None] | None:
    """``owner/name`` or ``owner/name@revision`` taken apart; None for anything else."""
    found = _ID.fullmatch(name)
    return None if found is None else (found[1], found[2])


def fetch(name: str, folders: Iterable[str] = ()) -> Path:
    """The local copy of a hub repository, downloaded first if there is a network and it is not whole.

    Args:
        name: ``owner/name``, or ``owner/name@revision`` for a branch, tag or commit.
        folders: only these folders of it; all of it where left out. Weights are taken as safetensors alone.

    Raises:
        ModelError: no such repository, or none here and the hub out of reach (``HF_HUB_OFFLINE`` included).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    parts = hub_id(name)
    assert parts is not None, name
    repository, revision = parts
    wanted = [f"{folder}/{kind}" for folder in folders for kind in _KEPT] or list(_KEPT)
    command = " ".join(
        ["hf download", repository]
        + ([f"--revision {revision}"] if revision else [])
        + [f'--include "{folder}/*"' for folder in folders]
    )
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ModelError(
            f"model '{name}' is gated: accept its terms on huggingface.co/{repository}, run `hf auth login`, "
            f"then `{command}`"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model '{name}' is not on this machine and the hub cannot be reached: where there is a network, "
            f"run `{command}`, or give a local folder"
        ) from error
    except (HfHubHTTPError, ValueError) as error:
        raise ModelError(
            f"model '{name}' is not on the hub ({str(error).splitlines()[0]}): check its name, "
            "or give a local folder"
        ) from error
    except OSError as error:
        raise ModelError(f"model '{name}' cannot be fetched ({error}): try `{command}`") from error


def revision_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds; None for a folder of another kind."""
    for part in (folder, *folder.parents):
        if part.parent.name == "snapshots":
            return part.name
    return None
