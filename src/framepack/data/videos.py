"""Videos with their captions, found: in a folder, in a list, or in WebDataset shards. Nothing is decoded."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from framepack.data.lists import CAPTIONS, LISTS, Row, read_rows
from framepack.errors import InputError
from framepack.video.reading import VideoSource

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv"),
    *(".ogv", ".3gp", ".gif"),
)
SHARD = ".tar"


@dataclass(frozen=True, kw_only=True)
class Video(VideoSource):
    """A video file, or a span of one, that somebody offers for training.

    Attributes:
        name: for people: the path below the folder, ``shard.tar/KEY.mp4`` inside a shard.
        caption: empty where there is none.
        start, stop: of the span, in seconds; None is the video's own.
    """

    name: str
    caption: str = ""
    start: float | None = None
    stop: float | None = None


@dataclass(frozen=True)
class Rejected:
    """Something that gives no clip, and why, in words that stand after its name."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a place holds, in the order of names."""

    videos: tuple[Video, ...]
    rejected: tuple[Rejected, ...]


def find(place: Path) -> Found:
    """The videos of a folder, with all folders below it, of a list, or of one shard.

    In a folder, a list gives captions to the files it names, before their sidecars; the files that no list
    names are taken too. A list given itself is taken alone.

    Raises:
        InputError: no such place, a list that cannot be read, or nothing there that could be a video.
    """
    if place.is_dir():
        found = _in_folder(place)
    elif not place.exists():
        raise InputError(
            f"'{place}' does not exist: give a folder of videos, a list of them, or a .tar shard"
        )
    elif place.suffix.lower() in LISTS:
        found = _in_list(place, place.parent)
    elif place.suffix.lower() == SHARD:
        found = _in_shard(place, place.name)
    else:
        raise InputError(
            f"'{place}' is no folder: give one with videos, a list ({', '.join(LISTS)}), or a {SHARD} shard"
        )
    if not found.videos and not found.rejected:
        raise InputError(
            f"'{place}' holds no videos: give a folder with files such as {', '.join(VIDEOS[:5])}, "
            f"with {SHARD} shards, or with a list"
        )
    return found


def _in_folder(folder: Path) -> Found:
    listed: dict[tuple[Path, float | None, float | None, str], Video] = {}
    videos: list[Video] = []
    rejected: list[Rejected] = []
    files = list(_files(folder))
    for file in files:
        if file.suffix.lower() in LISTS:
            try:
                found = _in_list(file, folder)
            except InputError as error:
                rejected.append(Rejected(_name(file, folder), str(error)))
                continue
            rejected += found.rejected
            for video in found.videos:
                listed.setdefault((video.path.resolve(), video.start, video.stop, video.caption), video)
    named = {path for path, *_ in listed}
    for file in files:
        suffix = file.suffix.lower()
        if suffix == SHARD:
            found = _in_shard(file, _name(file, folder))
            videos += found.videos
            rejected += found.rejected
        elif suffix in VIDEOS and file.resolve() not in named:
            videos.append(Video(name=_name(file, folder), path=file, caption=_sidecar(file)))
    videos += listed.values()
    return Found(tuple(sorted(videos, key=_order)), tuple(sorted(rejected, key=lambda r: r.name)))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, without hidden ones."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place) / name


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def _order(video: Video) -> tuple[str, float, float]:
    return video.name, video.start or 0.0, video.stop or 0.0


def _sidecar(file: Path) -> str:
    sidecar = file.with_suffix(".txt")
    return _text(sidecar.read_bytes()) if sidecar.is_file() else ""


def _text(content: bytes) -> str:
    """A caption on one line; what is no UTF-8 is marked as such."""
    return " ".join(content.decode("utf-8-sig", errors="replace").split())


def _in_list(file: Path, folder: Path) -> Found:
    """The videos that a list names, by paths from its own folder on."""
    videos: list[Video] = []
    rejected: list[Rejected] = []
    for row in read_rows(file):
        if isinstance(row, str):
            rejected.append(Rejected(_name(file, folder), row))
            continue
        path = file.parent / row.path
        if path.is_file():
            videos.append(_of_row(row, path, _name(path, folder)))
        else:
            rejected.append(Rejected(row.path, f"{file.name} names it, and there is no such file"))
    return Found(tuple(sorted(videos, key=_order)), tuple(rejected))


def _of_row(row: Row, path: Path, name: str) -> Video:
    caption = _sidecar(path) if row.caption is None else " ".join(row.caption.split())
    return Video(name=name, path=path, caption=caption, start=row.start, stop=row.stop)


def _in_shard(file: Path, name: str) -> Found:
    """The videos of a WebDataset shard: members of one name, up to its first dot, are one sample."""
    videos: dict[str, tuple[str, int, int]] = {}
    captions: dict[str, str] = {}
    rejected: list[Rejected] = []
    whole = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                key, suffix = f"{folder}/{stem}", "." + kind.lower()
                if not member.isfile() or not stem:
                    continue
                if suffix in VIDEOS:
                    if member.offset_data + member.size > whole:
                        raise tarfile.ReadError("unexpected end of data")
                    videos[key] = (f"{name}/{member.name}", member.offset_data, member.size)
                elif suffix in (".txt", ".json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    said = _said(content.read(), suffix)
                    if said:
                        captions[key] = said
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"is cut short, or no plain tar ({error}): unpack it, or make it again"
        rejected.append(Rejected(name, reason))
    made = [
        Video(name=shown, path=file, offset=offset, size=size, caption=captions.get(key, ""))
        for key, (shown, offset, size) in videos.items()
    ]
    return Found(tuple(sorted(made, key=_order)), tuple(rejected))


def _said(content: bytes, suffix: str) -> str:
    if suffix == ".txt":
        return _text(content)
    try:
        held = json.loads(content)
    except ValueError:
        return ""
    texts = [held.get(name) for name in CAPTIONS] if isinstance(held, dict) else [held]
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), "")
