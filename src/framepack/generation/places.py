"""Where a run writes, and whether it may."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framepack import __version__
from framepack.errors import OutputError
from framepack.generation import saved
from framepack.generation.config import RunConfig
from framepack.generation.hashing import hash_file
from framepack.generation.manifest import GROWING, PREVIEW, RETOLD, check_folder, unwritable, write_file
from framepack.generation.store import Edit, output_digests
from framepack.video.io import check_output

OUTPUTS = Path("outputs")
KEPT = (GROWING, PREVIEW, saved.FILE)
"""Names in a work folder under which a video, or what is told of it, would be lost."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """``out`` the video, ``config`` its resolved configuration beside it, ``workdir`` the run folder."""

    out: Path
    config: Path
    workdir: Path

    @classmethod
    def of(cls, job: str, out: Path | None = None, workdir: Path | None = None) -> Places:
        """``outputs/{job}.mp4`` and the folder ``{job}`` beside the video, unless given."""
        out = OUTPUTS / f"{job}.mp4" if out is None else Path(out)
        workdir = out.parent / job if workdir is None else Path(workdir)
        return cls(out=out, config=out.with_suffix(".json"), workdir=workdir)

    def check(self, config: RunConfig, *, overwrite: bool) -> None:
        """Say whether the run may write to these places, writing nothing.

        Raises:
            OutputError: a place that cannot be written, or that the run itself needs; a file of another
                origin at ``out`` or beside it, unless ``overwrite``.
            RunConflictError: a run folder of another configuration.
        """
        check_output(self.out, overwrite=True)
        for place in (self.out, self.config):
            if place.name in KEPT and place.absolute().parent.resolve() == self.workdir.resolve():
                raise OutputError(
                    f"'{place}' is a file that the work folder has for itself: choose another name for --out"
                )
        records = check_folder(self.workdir, config.to_json())
        probe(self.workdir)
        if overwrite:
            return
        if self.out.exists() and hash_file(self.out) not in output_digests(records):
            raise OutputError(
                f"'{self.out}' exists and is not of this run: choose another --out or add --overwrite"
            )
        theirs, ours = self._told().get("config"), config.to_json()
        if self.config.exists() and theirs != ours and not (records and _same_run(theirs, ours)):
            raise OutputError(
                f"'{self.config}' exists and is not of this run: choose another --out or add --overwrite"
            )

    def _told(self) -> dict[str, Any]:
        """What the JSON beside the video tells; nothing where it is none of ours."""
        try:
            found = json.loads(self.config.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_config(self, told: dict[str, Any]) -> None:
        """Write what ``settings`` tells beside the video; nothing when the same run stands there already."""
        there = self._told()
        if any(there.get(name) != told[name] for name in ("config", "edits")):
            try:
                write_file(self.config, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
            except OSError as error:
                raise unwritable(self.config, error) from error


def _same_run(theirs: Any, ours: dict[str, Any]) -> bool:
    """Whether two configurations may have one folder, as ``check_folder`` has it."""
    fixed = {name: value for name, value in ours.items() if name not in RETOLD}
    return isinstance(theirs, dict) and {n: v for n, v in theirs.items() if n not in RETOLD} == fixed


def settings(config: RunConfig, model: str, edits: Mapping[int, Edit]) -> dict[str, Any]:
    """What is told about a video, in its JSON and in the metadata of its MP4.

    Args:
        model: name of the model, for people; its digest is in the configuration.
        edits: by section; those made anew are listed with their take and, if it was changed, prompt.
    """
    changed = [{"section": s, **asdict(e)} for s, e in sorted(edits.items()) if e != Edit()]
    return {
        "framepack": __version__,
        "job": config.job,
        "model": model,
        "config": config.to_json(),
        "edits": changed,
    }


def probe(folder: Path) -> None:
    """Say whether files could be written in ``folder``, which need not exist; leaves nothing behind.

    Raises:
        OutputError: they could not.
    """
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise OutputError(f"work folder '{folder}' cannot be made: '{nearest}' is not a folder")
    try:
        # Permission bits say little (root, read-only mounts): only trying tells.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise OutputError(f"work folder '{folder}' cannot be written ({reason}): choose another") from error
