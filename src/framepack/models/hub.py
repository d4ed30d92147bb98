"""Folders of the Hugging Face hub, by their id."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from framepack.errors import ModelError

PATIENCE = 5.0
"""Seconds for the hub to answer; after them what is on this machine has to do."""
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_KEPT = ("*.json", "*.safetensors", "*.model", "*.txt")


def hub_id(name: str) -> tuple[str, str | None] | None:
    """``owner/name`` or ``owner/name@revision`` taken apart; None for anything else."""
    found = _ID.fullmatch(name)
    return None if found is None else (found[1], found[2])


def fetch(name: str, folders: Iterable[str] = (), files: Iterable[str] = ()) -> Path:
    """The local copy of a hub repository, downloaded first if there is a network and it is not whole.

    Args:
        name: ``owner/name``, or ``owner/name@revision`` for a branch, tag or commit.
        folders, files: only these of it; all of it where both are left out. Of folders, and of all, weights
            are taken as safetensors alone.

    Raises:
        ModelError: no such repository, none here and the hub out of reach (``HF_HUB_OFFLINE`` included), or
            a cache that it cannot be written to.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    parts = hub_id(name)
    assert parts is not None, name
    repository, revision = parts
    folders, files = tuple(folders), tuple(files)
    wanted = [*files, *(f"{folder}/{kind}" for folder in folders for kind in _KEPT)] or list(_KEPT)
    try:
        commit = revision if revision and _COMMIT.fullmatch(revision) else None
        if commit is None:
            commit = HfApi().model_info(repository, revision=revision, timeout=PATIENCE).sha
        return Path(snapshot_download(repository, revision=commit, allow_patterns=wanted))
    except Exception as error:  # what lies between here and the hub has errors of many libraries
        if isinstance(error, OSError) and error.errno in _FULL:
            raise ModelError(
                f"model '{name}' cannot be kept in the hub's cache ({error.strerror}): free space there, or "
                "set HF_HOME to a folder on another disk"
            ) from error
        try:
            here = snapshot_download(
                repository, revision=revision, allow_patterns=wanted, local_files_only=True
            )
        except LocalEntryNotFoundError:
            raise _told(name, folders, files, error) from error
        return Path(here)


def _told(name: str, folders: tuple[str, ...], files: tuple[str, ...], error: Exception) -> ModelError:
    """Why a repository is not to be had, and what can be done."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, revision = hub_id(name) or (name, None)
    # Configurations alone are asked for to see what a repository is: who downloads it wants all of it.
    included = [f'--include "{one}"' for one in (*(f"{folder}/*" for folder in folders), *files) if folders]
    command = " ".join(
        ["hf download", repository, *([f"--revision {revision}"] if revision else []), *included]
    )
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"model '{name}' is gated: accept its terms on huggingface.co/{repository}, run `hf auth login`, "
            f"then `{command}`"
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)):
        return ModelError(
            f"model '{name}' is neither a folder or file here nor on the hub: check its name, and for a "
            "private one run `hf auth login`"
        )
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ModelError(
        f"model '{name}' is not on this machine and the hub cannot be reached ({reason[:120]}): where there "
        f"is a network, run `{command}`, or give a local folder"
    )


def revision_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds; None for a folder of another kind."""
    for part in (folder, *folder.parents):
        if part.parent.name == "snapshots":
            return part.name
    return None
