"""Frames of a growing video count only while they are those of the latents on the timeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from framepack.generation.decode import decode_frames
from framepack.generation.events import Event, Grown
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun, latents_of
from framepack.models.bundle import Bundle
from framepack.video import growing
from framepack.video.growing import GrowingVideo
from framepack.video.io import read_video
from tiny import SECTION, SIZE, tiny_bundle

FRAMES = 29
pytestmark = pytest.mark.usefixtures("one_thread")


class Stop(Exception):
    """As if the process were killed."""


class Grey:
    """The tiny codec, of which a latent comes out as one grey that tells it from others."""

    temporal_stride = 1

    def __init__(self) -> None:
        self.codec = tiny_bundle().codec

    def __getattr__(self, name: str) -> object:
        return getattr(self.codec, name)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        grey = torch.sin(1000 * latents[:, :1].mean(dim=(3, 4), keepdim=True))
        return grey.expand(-1, 3, -1, SIZE, SIZE)


def bundle() -> Bundle:
    return replace(tiny_bundle(), codec=Grey())  # type: ignore[arg-type]


def job(folder: Path, prompt: str = "a red ball") -> PreparedRun:
    places = {"out": folder / "v.mp4", "workdir": folder / "run"}
    request = GenerateRequest(prompt=prompt, frames=FRAMES, method="vanilla", **places)  # type: ignore[arg-type]
    return prepare(request, bundle())


def killed_at(run: PreparedRun, frames: int) -> None:
    """Carry a run out until it has shown so many frames."""

    def told(event: Event) -> None:
        if isinstance(event, Grown) and event.frame >= frames:
            raise Stop

    with pytest.raises(Stop):
        run.carry_out(told)


def killed_while_writing(run: PreparedRun, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry a run out until so many frames more are in the file, of which nothing is on record."""
    left, whole = frames // SECTION, GrowingVideo._append

    def append(self: GrowingVideo, some: Iterator[np.ndarray]) -> None:
        nonlocal left
        if not left:
            raise Stop
        left -= 1
        whole(self, some)
        if not left:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(growing, "LONGEST", SECTION)
        patch.setattr(GrowingVideo, "_append", append)
        with pytest.raises(Stop):
            run.carry_out(lambda event: None)


def check(run: PreparedRun) -> None:
    """The finished video has the frames of the latents on the timeline, but for the encoder's loss."""
    latents = latents_of(run, lambda event: None)
    wanted = np.stack([*decode_frames(Grey(), lambda at: latents[:, :, list(at)], run.plan.shown)])
    found = np.stack([*read_video(run.places.out).frames])
    error = np.abs(found.astype(float) - wanted).mean(axis=(1, 2, 3))
    assert len(found) == FRAMES and wanted.mean(axis=(1, 2, 3)).std() > 20
    assert error.max() < 3, error.round(1)


def test_a_section_made_again_and_taken_back_while_its_video_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = job(tmp_path)
    run.carry_out(lambda event: None)
    run.redo(1, alone=True)
    killed_while_writing(run, 5 * SECTION, monkeypatch)
    run.restore(1)
    run.carry_out(lambda event: None)
    check(run)


def test_another_prompt_and_the_old_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(job(tmp_path), 6 * SECTION)
    killed_while_writing(job(tmp_path, "a blue box"), SECTION, monkeypatch)
    run = job(tmp_path)
    run.carry_out(lambda event: None)
    check(run)
