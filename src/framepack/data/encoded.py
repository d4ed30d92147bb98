"""A cache of encoded clips and captions of real videos. It knows nothing of planners.

    plan.json                      what the cache is made of, written first
    text-00000.safetensors         N.prompt (L, D), N.mask (L), N.pooled (P) of caption N; caption 0 is empty
    latents-00000.safetensors      N.latents (n, C, h, w) of clip N, and N.image (I, E) of its first frame
    manifest.json                  written last: the clips that are there, and what was rejected

The same command goes on where a killed one stopped: a file is whole or absent. Legend: n latents of a clip, C
latent channels, h w their grid, F frames, L prompt tokens, I image tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from framepack.data.clips import Clip, Cutting, Survey
from framepack.data.fingerprint import conditioner_digest, module_digest, video_digest
from framepack.data.videos import Found, Rejected, Video
from framepack.errors import InputError, OutputError, RunConflictError

VERSION = 1
PLAN, MANIFEST = "plan.json", "manifest.json"
SHARD_CLIPS, SHARD_BYTES = 32, 128 * 2**20
TEXTS = 256
"""Captions of one file: the text encoders are loaded once for each."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What decides the bytes of a cache, beside the videos.

    Args:
        codec: see `models.bundle.Codec`. conditioner: see `conditioning.embeds.Conditioner`.
        dtype: of the latents, by name.

    Raises:
        InputError: a dtype that there is not.
    """

    cutting: Cutting
    codec: Any
    conditioner: Any
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype '{self.dtype}': latents are kept in {' or '.join(DTYPES)}")

    def settings(self) -> dict[str, Any]:
        """As JSON has them."""
        said = asdict(self.cutting) | {
            "dtype": self.dtype,
            "channels": self.codec.latent_channels,
            "codec": module_digest(self.codec),
            "conditioner": conditioner_digest(self.conditioner),
        }
        return json.loads(json.dumps(said))


@dataclass(frozen=True)
class Plan:
    """What a cache will hold: clips in the order of their shards; distinct captions, the empty one first."""

    settings: dict[str, Any]
    sources: dict[str, str]
    clips: tuple[Clip, ...]
    shards: tuple[range, ...]
    captions: tuple[str, ...]
    rejected: tuple[Rejected, ...]

    @property
    def texts(self) -> tuple[range, ...]:
        """Captions of each text file."""
        count = len(self.captions)
        return tuple(range(start, min(start + TEXTS, count)) for start in range(0, count, TEXTS))


def plan_cache(
    folder: Path, found: Found, encoding: Encoding, look: Callable[[], Survey], spatial_stride: int
) -> Plan:
    """The plan that ``folder`` holds, or a new one, which is written there.

    Args:
        look: cuts the videos that were found; asked only where there is no plan.

    Raises:
        RunConflictError: the folder holds a cache of other videos or settings. OutputError: it cannot be
            written. InputError: see ``look``.
    """
    settings = encoding.settings()
    sources = _sources(found)
    file = folder / PLAN
    if file.is_file():
        held = read_json(file)
        _check_same(folder, held, settings, sources)
        return _plan_of(held, found)
    surveyed = look()
    index = {video: number for number, video in enumerate(found.videos)}
    clips = sorted(surveyed.clips, key=lambda clip: clip.bucket)
    captions = ["", *sorted({clip.video.caption for clip in clips} - {""})]
    cells = [settings["channels"] * h * w // spatial_stride**2 for h, w in (clip.bucket for clip in clips)]
    lengths = [(clip.frames - 1) // encoding.cutting.stride + 1 for clip in clips]
    sizes = [2 * cell * length for cell, length in zip(cells, lengths, strict=True)]
    said = {
        "version": VERSION,
        "settings": settings,
        "sources": sources,
        "videos": [asdict(video) | {"path": str(video.path.resolve())} for video in found.videos],
        "clips": [_clip_json(clip, index[clip.video]) for clip in clips],
        "shards": _shards([clip.bucket for clip in clips], sizes),
        "captions": captions,
        "rejected": [[r.name, r.reason] for r in surveyed.rejected],
    }
    write_json(file, said)
    return _plan_of(said, found)


def _sources(found: Found) -> dict[str, str]:
    """Digest of each video, by a name that no other has."""
    told: dict[str, str] = {}
    for video in found.videos:
        span = "" if video.start is None and video.stop is None else f" {video.start or 0}-{video.stop or ''}"
        name, turn = video.name + span, 1
        while name in told:
            turn += 1
            name = f"{video.name}{span} ({turn})"
        told[name] = video_digest(video)
    return told


def _check_same(
    folder: Path, held: dict[str, Any], settings: dict[str, Any], sources: dict[str, str]
) -> None:
    """Raises RunConflictError: naming what differs, in one line."""
    if held.get("version") != VERSION:
        raise RunConflictError(f"'{folder}' holds a cache of another version: name another folder")
    theirs = held["settings"]
    differing = [name for name in settings if settings[name] != theirs.get(name)]
    if differing:
        told = ", ".join(
            f"another {name}"
            if isinstance(settings[name], (list, str)) and name != "dtype"
            else f"{name} {theirs.get(name)} and not {settings[name]}"
            for name in differing
        )
        raise RunConflictError(f"'{folder}' holds a cache with {told}: name another folder")
    changes = [
        f"{len(names)} {what} ({names[0]})"
        for what, names in (
            ("new", [name for name in sources if name not in held["sources"]]),
            ("gone", [name for name in held["sources"] if name not in sources]),
            ("changed", [n for n in sources if held["sources"].get(n, sources[n]) != sources[n]]),
        )
        if names
    ]
    if changes:
        raise RunConflictError(
            f"'{folder}' holds a cache of other videos, now {', '.join(changes)}: name another folder"
        )


def _clip_json(clip: Clip, video: int) -> dict[str, Any]:
    return {
        "video": video,
        "start": str(clip.start),
        "frames": clip.frames,
        "rate": str(clip.rate),
        "sources": clip.sources,
        "bucket": clip.bucket,
        "pixel": str(clip.pixel),
    }


def clip_of(row: dict[str, Any], video: Video) -> Clip:
    """The clip of ``video`` that a row of a plan's file tells of."""
    return Clip(
        video=video,
        start=Fraction(row["start"]),
        frames=row["frames"],
        rate=Fraction(row["rate"]),
        sources=row["sources"],
        bucket=(row["bucket"][0], row["bucket"][1]),
        pixel=Fraction(row["pixel"]),
    )


def _plan_of(held: dict[str, Any], found: Found) -> Plan:
    clips = tuple(clip_of(row, found.videos[row["video"]]) for row in held["clips"])
    return Plan(
        settings=held["settings"],
        sources=held["sources"],
        clips=clips,
        shards=tuple(range(*span) for span in held["shards"]),
        captions=tuple(held["captions"]),
        rejected=tuple(Rejected(*row) for row in held["rejected"]),
    )


def _shards(buckets: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Spans of clips, none of two buckets, none above `SHARD_CLIPS` or, with two clips, `SHARD_BYTES`."""
    spans: list[tuple[int, int]] = []
    start = held = 0
    for at, (bucket, size) in enumerate(zip(buckets, sizes, strict=True)):
        full = at - start >= SHARD_CLIPS or held + size > SHARD_BYTES or bucket != buckets[start]
        if at > start and full:
            spans.append((start, at))
            start, held = at, 0
        held += size
    return [*spans, (start, len(buckets))]


def latent_file(folder: Path, number: int) -> Path:
    return folder / f"latents-{number:05d}.safetensors"


def text_file(folder: Path, number: int) -> Path:
    return folder / f"text-{number:05d}.safetensors"


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Where to write what shall lie at ``file`` once it is whole. Raises OutputError."""
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(file)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"'{file}' cannot be written ({reason}): make room, or name another place"
        ) from error


def write_json(file: Path, value: Any) -> None:
    """Write a file that is whole or absent. Raises OutputError."""
    with whole(file) as part:
        part.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Raises InputError: it cannot be read."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}' cannot be read ({error}): make the cache again") from error
    return held
