"""The folder of one run: latents on disk, and which of them fill the timeline.

    {workdir}/manifest.jsonl            what was made, see manifest.py
    {workdir}/latents/{key}.safetensors tensor ``latents`` (C, T, h, w) of one section

A section's key is the hash of all that made it, the hashes of its context latents included. So
nothing is ever invalidated: a section made anew gives its successors other keys, and they are made
anew in turn, while what does not see it keeps its key and is taken from disk. The file is on disk
before its record; a file without a record does not count.

Legend: C latent channels, T frames of one section, N frames asked for, h w latent grid.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from framepack.generation.hashing import hash_json, hash_tensor
from framepack.generation.manifest import Manifest, Record, unwritable, write_file
from framepack.generation.tail import Tails

FOLDER = "latents"
CACHE = 160
"""Latent frames kept in memory, however long the video: a section's context and what it is chosen from."""


@dataclass(frozen=True)
class Stored:
    """Latents on disk: those of one section, or of frames known from the start (``section`` None).

    Attributes:
        key: hash of what made them, and the name of their file.
        frames: their timeline indices, in the order of the tensor's T axis.
        digest: hash of dtype, shape and bytes of the tensor.
    """

    key: str
    section: int | None
    frames: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Edit:
    """What a user changed about one section: another take of its noise or another seed, another prompt."""

    take: int = 0
    prompt: str | None = None
    seed: int | None = None


class RunStore:
    """One run folder, open and locked.

    Raises:
        RunConflictError: the folder belongs to another configuration or process.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = Manifest(folder, config)
        self._stored: dict[str, Stored] = {}
        self._timeline: dict[int, tuple[Stored, int]] = {}
        self._cache: OrderedDict[tuple[str, int], torch.Tensor] = OrderedDict()
        self._caching = threading.Lock()
        self.tails = Tails(self.reference, self._latent)
        # By the first latent frame of a section: its index changes with the order that a story is told in.
        self.edits: dict[int, Edit] = {}
        self.retakes: list[tuple[int, Edit | None]] = []
        """Those made again by themselves, one after the other; None: as it was made with all the others."""
        try:
            (folder / FOLDER).mkdir(exist_ok=True)
            for part in (folder / FOLDER).glob("*.part"):  # of a process that was killed here
                part.unlink()
            for record in self.manifest.records:
                self._replay(record)
        except BaseException as error:
            self.manifest.close()
            if isinstance(error, OSError):
                raise unwritable(folder, error) from error
            raise

    def _replay(self, record: Record) -> None:
        if record["kind"] == "latents":
            stored = Stored(record["key"], record["section"], tuple(record["frames"]), record["digest"])
            self._stored[stored.key] = stored
        elif record["kind"] == "edit":
            edit = Edit(record["take"], record["prompt"], record.get("seed"))
            self._apply(record["at"], edit, alone=record["alone"])

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.manifest.close()

    # --- sections ---

    @property
    def sections(self) -> int:
        """Different sections with at least one record."""
        return len({stored.section for stored in self._stored.values()} - {None})

    def path(self, key: str) -> Path:
        return self.folder / FOLDER / f"{key}.safetensors"

    def find(self, key: str) -> Stored | None:
        """The latents made under this key, if their file is there, whole and unaltered."""
        stored = self._stored.get(key)
        if stored is None:
            return None
        try:
            whole = hash_tensor(load_file(self.path(key))["latents"]) == stored.digest
        except (OSError, SafetensorError, KeyError):
            whole = False
        return stored if whole else None

    def add(
        self,
        key: str,
        section: int | None,
        frames: Sequence[int],
        latents: torch.Tensor,
        made: Record | None = None,
    ) -> Stored:
        """Put latents (C, T, h, w) on disk, then on record.

        Args:
            made: what else the record should tell (take, prompt, chosen context, seconds).

        Raises:
            OutputError: the disk is full or gone; the folder is as it was before.
        """
        latents = latents.detach().cpu().contiguous()
        assert latents.shape[1] == len(frames), (tuple(latents.shape), len(frames))
        stored = Stored(key, section, tuple(frames), hash_tensor(latents))
        try:
            write_file(self.path(key), save({"latents": latents}))
        except OSError as error:
            raise unwritable(self.path(key), error) from error
        record = {"kind": "latents", "key": key, "section": section, "frames": list(frames)}
        self.manifest.append({**(made or {}), **record, "digest": stored.digest})
        self._stored[key] = stored
        return stored

    def redo(
        self,
        at: int,
        prompt: str | None = None,
        *,
        seed: int | None = None,
        alone: bool = False,
        told: bool = False,
    ) -> Edit:
        """Have the section that begins at a latent frame made anew by the next run, with new noise.

        Args:
            prompt: its own from now on. Without one it keeps what it has, or, ``told``, takes the run's.
            seed: of its noise, in place of the run's. alone: sections that see it stay as they are, and it
                sees what is after it as well; else they are made anew too.
        """
        # Past the highest take there ever was: after a restore too, other noise means new noise.
        edits = [record for record in self.manifest.records if record["kind"] == "edit"]
        take = 1 + max((record["take"] for record in edits if record["at"] == at), default=0)
        if prompt is None and not told:
            prompt = self.changes.get(at, Edit()).prompt
        return self._edit(at, Edit(take, prompt, seed), alone=alone)

    def restore(self, at: int) -> Edit:
        """Have the next run take a section as it was first made, with the run's own prompt."""
        return self._edit(at, Edit(), alone=False)

    @property
    def prompts(self) -> list[str]:
        """Those that were changed."""
        edits = (*self.edits.values(), *(edit for _, edit in self.retakes))
        return [edit.prompt for edit in edits if edit is not None and edit.prompt is not None]

    @property
    def changes(self) -> dict[int, Edit]:
        """What was changed about each section, by its first latent frame, as it stands."""
        found = dict(self.edits)
        for at, edit in self.retakes:
            found[at] = edit or self.edits.get(at, Edit())
        return found

    def _edit(self, at: int, edit: Edit, *, alone: bool) -> Edit:
        self.manifest.append({"kind": "edit", "at": at, **asdict(edit), "alone": alone})
        self._apply(at, edit, alone=alone)
        return edit

    def _apply(self, at: int, edit: Edit, *, alone: bool) -> None:
        if not alone and not edit == self.edits.get(at, Edit()) == Edit():
            self.edits[at] = edit
            self.retakes = [retake for retake in self.retakes if retake[0] != at]
            return
        # Those before it stay in their order: what was made beside them saw them as they were.
        if self.retakes and self.retakes[-1][0] == at:
            self.retakes.pop()
        if alone:
            self.retakes.append((at, edit))
        elif any(before == at for before, _ in self.retakes):
            self.retakes.append((at, None))

    # --- the timeline ---

    def place(self, stored: Stored) -> None:
        """Let these latents fill their frames of the timeline, over whatever filled them before."""
        if any(frame in self._timeline for frame in stored.frames):
            self.tails = Tails(self.reference, self._latent)  # what was folded may have been of these
        for offset, frame in enumerate(stored.frames):
            self._timeline[frame] = (stored, offset)

    def holds(self, frame: int) -> bool:
        """Whether a timeline index is filled."""
        return frame in self._timeline

    def reference(self, frame: int) -> str:
        """Identity of the latent at a timeline index: equal when its bytes are."""
        stored, offset = self._timeline[frame]
        return f"{stored.digest}:{offset}"

    def fetch(self, frames: Sequence[int]) -> torch.Tensor:
        """Latents at timeline indices, (1, C, N, h, w), on the CPU, in the dtype they were stored in.

        Only these frames are read; ``CACHE`` of them stay in memory. To be called from any thread.
        """
        return torch.stack([self._latent(frame) for frame in frames], dim=1)[None]

    def _latent(self, frame: int) -> torch.Tensor:
        stored, offset = self._timeline[frame]
        key = (stored.key, offset)
        with self._caching:
            if key not in self._cache:
                with safe_open(str(self.path(stored.key)), framework="pt") as file:
                    part = file.get_slice("latents")[:, offset : offset + 1]
                self._cache[key] = part[:, 0].clone()
            self._cache.move_to_end(key)
            while len(self._cache) > CACHE:
                self._cache.popitem(last=False)
            return self._cache[key]

    # --- the video ---

    def chain(self, sections: Sequence[Stored]) -> str:
        """Identity of a whole video's latents."""
        return hash_json([stored.digest for stored in sections])

    def record_output(self, chain: str, digest: str) -> None:
        """Note the hash of a video file before it takes its name, so that it is known as ours after."""
        self.manifest.append({"kind": "output", "chain": chain, "digest": digest})


def output_digests(records: Sequence[Record]) -> list[str]:
    """Hashes of the video files that a run folder has made, oldest first."""
    return [record["digest"] for record in records if record["kind"] == "output"]


def finished_digest(records: Sequence[Record]) -> str | None:
    """Hash of the finished video, when nothing was recorded after it."""
    return records[-1]["digest"] if records and records[-1]["kind"] == "output" else None
