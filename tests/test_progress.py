"""Bars follow a run by its events alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from framepack.cli.progress import Progress
from framepack.generation.events import Decoded, Decoding, SectionFinished, Started, Step


def started() -> Started:
    return Started(
        job="0123456789ab",
        frames=40,
        latent_frames=40,
        fps=8.0,
        sections=2,
        steps=5,
        context_tokens=96,
        stored=0,
        out=Path("v.mp4"),
        workdir=Path("run"),
    )


def finished(section: int) -> SectionFinished:
    return SectionFinished(
        section=section,
        sections=2,
        frames=(0,),
        latents=Path("x"),
        cached=False,
        seconds=1.0,
        preview=np.zeros((1, 1, 3), np.uint8),
    )


def test_bars_tell_sections_steps_and_then_frames_of_the_video() -> None:
    with Progress(Console(file=io.StringIO(), force_terminal=True)) as progress:

        def bars() -> dict[str, tuple[float, float | None]]:
            return {task.description: (task.completed, task.total) for task in progress.bars.tasks}

        progress.show(started())
        progress.show(Step(section=0, sections=2, step=2, steps=5))
        assert bars() == {"section": (0, 2), "step": (3, 10)}
        progress.show(finished(0))
        assert bars() == {"section": (1, 2), "step": (5, 10)}
        progress.show(finished(1))
        for frame in (0, 8, 16):
            progress.show(Decoding(frame=frame, frames=40))
        assert bars() == {"section": (2, 2), "step": (10, 10), "frame": (16, 40)}
        last = progress.bars.tasks[-1]
        assert last.started and not last.finished


def test_without_a_terminal_there_is_a_line_for_what_is_finished_and_none_for_what_goes_on() -> None:
    said = io.StringIO()
    with Progress(Console(file=said)) as progress:
        progress.show(started())
        progress.show(finished(0))
        for frame in range(0, 40, 8):
            progress.show(Decoding(frame=frame, frames=40))
        progress.show(Decoded(frames=40, seconds=2.0))
    lines = said.getvalue().splitlines()
    assert len(lines) == 3 and "at most 96 tokens of history each" in lines[0]
    assert lines[1:] == ["section 1 of 2 in 1.0 s", "decoded 40 frames in 2.0 s"]
