"""What a run says while it works: typed, frozen events.

The command line, the web page, the HTTP API and evaluation see a run only through these. Indices of
sections and steps count from 0, in the order of generation; latent frames in the order of time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run folder is open and locked.

    Attributes:
        job: short hash of the resolved configuration.
        frames, latent_frames, fps, sections, steps: what will be made; ``steps`` per section.
        context_tokens: the most tokens of history, tail included, that a section sees.
        stored: sections with a record in the folder, which are reused where what made them is unchanged.
    """

    job: str
    frames: int
    latent_frames: int
    fps: float
    sections: int
    steps: int
    context_tokens: int
    stored: int
    out: Path
    workdir: Path


@dataclass(frozen=True, kw_only=True)
class Step:
    """One denoising step of one section is done."""

    section: int
    sections: int
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class SectionFinished:
    """A section is on disk.

    Attributes:
        frames: latent frames it wrote.
        latents: its safetensors file, tensor ``latents`` (C, T, h, w).
        cached: it was there from an earlier run.
        seconds: time spent on it now; 0 when cached.
        preview: uint8 (H, W, 3), a rough picture of its middle frame; decoding proper comes at the end.
    """

    section: int
    sections: int
    frames: tuple[int, ...]
    latents: Path
    cached: bool
    seconds: float
    preview: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """``frame`` of ``frames`` frames are decoded and in the video file; told every few frames, from 0."""

    frame: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class Grown:
    """The first ``frame`` of ``frames`` frames can be watched at ``path``, a file that grows on.

    Attributes:
        rough: ``path`` is a preview of what is there, wherever it is, and has ``frame`` frames of its own.
    """

    frame: int
    frames: int
    path: Path
    rough: bool = False


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Something was done in another way than it was begun: one line for the user."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """All latents are pixels, each decoded once, and the video file is written."""

    frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The video is at ``out``.

    Attributes:
        config: JSON of the resolved configuration, beside the video.
        cached: everything was there already and nothing was done.
        seconds: time by stage of this run: ``prepare``, ``pack``, ``sample``, ``store``, ``decode`` (latents
            to pixels), ``encode`` (pixels to the video file). Stages may overlap.
        elapsed: seconds of all of it.
        context_tokens: as in ``Started``.
        peak_memory: bytes; resident on a CPU, allocated on the device elsewhere.
        other_peaks: the same of each process beside this one, or of each device beside the first, where
            several made sections.
    """

    out: Path
    config: Path
    frames: int
    fps: float
    sections: int
    context_tokens: int
    cached: bool
    seconds: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    peak_memory: int = 0
    other_peaks: tuple[int, ...] = ()


Event = Started | Step | SectionFinished | Decoding | Grown | Remark | Decoded | Finished


def event_json(event: Event) -> dict[str, Any]:
    """The event as JSON, its name under ``event``; paths become strings, pictures are left out."""
    values = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(event).items()
        if not isinstance(value, np.ndarray)
    }
    return {"event": type(event).__name__, **values}
