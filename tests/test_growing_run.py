"""A run's video while it is made: it plays at any moment, and nothing of it is decoded or encoded twice."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from framepack.cli import app
from framepack.codecs.streaming import CHUNK
from framepack.generation import growth, manifest, store
from framepack.generation.decode import FrameDecoder
from framepack.generation.events import Event, Finished, Grown, SectionFinished, Started
from framepack.generation.manifest import read_log
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun
from framepack.video.growing import GrowingVideo
from framepack.video.io import read_video
from tiny import SECTION, SIZE, save_tiny, tiny_bundle

ORDERS = ("vanilla", "f1", "anti-drifting", "inverted", "inverted-plain", "similar", "appended", "compressed")
FPS = 8

pytestmark = pytest.mark.usefixtures("one_thread")


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def job(folder: Path, **values: object) -> PreparedRun:
    settings = {"prompt": "a red ball", "out": folder / "v.mp4", "workdir": folder / "run"} | values
    return prepare(GenerateRequest(**settings), tiny_bundle())  # type: ignore[arg-type]


def shown(path: Path) -> int:
    """Frames that are decoded from a file, whose duration covers them all."""
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(video=0))
        assert container.duration == frames / FPS * 1_000_000
    return frames


ELSEWHERE = "import av, sys; print(av.open(sys.argv[1]).duration / 1e6)"


def seconds_elsewhere(path: Path) -> float:
    """Its duration, as another process finds it."""
    probe = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"]
    command = probe if shutil.which("ffprobe") else [sys.executable, "-c", ELSEWHERE]
    told = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    assert not told.stderr, told.stderr
    return float(told.stdout)


# --- playable while it grows ---


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("method", ["vanilla", "f1"])
def test_after_every_section_all_frames_so_far_can_be_watched(
    method: str, image: bool, tmp_path: Path
) -> None:
    run = job(tmp_path, method=method, frames=22 + image, image=picture() if image else None)
    path, seen = tmp_path / "run" / manifest.GROWING, [0]

    def told(event: Event) -> None:
        if isinstance(event, Grown):
            assert event.path == path and not event.rough
            seen.append(event.frame)
        if isinstance(event, Grown | SectionFinished) and seen[-1]:
            assert shown(path) == seen[-1]
            assert seconds_elsewhere(path) == seen[-1] / FPS
        if isinstance(event, SectionFinished):  # what it shows is told right after it
            assert seen[-1] == event.frames[0], "all that was made before"

    run.carry_out(told)
    assert seen[1 + image :] == [*range(image + SECTION, 22 + image, SECTION), 22 + image]
    assert shown(tmp_path / "v.mp4") == 22 + image and not path.exists()


@pytest.mark.parametrize("method", ["anti-drifting", "inverted"])
def test_in_other_orders_it_shows_what_has_nothing_missing_before_it(method: str, tmp_path: Path) -> None:
    """Of the front, and of it alone: each frame is in the file as soon as all before it are made."""
    run, known, seen = job(tmp_path, method=method, frames=22, image=picture()), {0}, 0

    def told(event: Event) -> None:
        nonlocal seen
        if isinstance(event, SectionFinished):
            known.update(event.frames)
        elif isinstance(event, Grown) and not event.rough:
            seen = event.frame
            assert seen == next(frame for frame in range(99) if frame not in known)
            assert shown(event.path) == seen

    run.carry_out(told)
    assert seen == 22


# --- killed ---


def test_a_killed_process_leaves_what_plays_and_nothing_of_it_is_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by ``GrowingVideo.encoded`` of all that the second run opens, and by the manifest's records."""
    frames, folder = 240, tmp_path / "killed"
    model = save_tiny(tmp_path / "model")

    def words(folder: Path) -> list[str]:
        how = ["--model", str(model), "--device", "cpu", "--method", "vanilla", "--frames", str(frames)]
        where = ["--out", str(folder / "v.mp4"), "--workdir", str(folder / "run")]
        return ["generate", "--prompt", "a red ball", *how, *where]

    path = folder / "run" / manifest.GROWING
    with subprocess.Popen(
        [sys.executable, "-m", "framepack", *words(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 240
        while grown(folder) < 7 * SECTION:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "v.mp4").exists()
    left, recorded = shown(path), grown(folder)
    assert 7 * SECTION <= left < frames and left % SECTION == 0
    assert left - recorded in (0, SECTION), "at most the last one was not on record yet"
    assert seconds_elsewhere(path) == left / FPS

    opened: list[GrowingVideo] = []

    class Counted(GrowingVideo):
        def _open(self, *values: Any) -> None:
            opened.append(self)
            super()._open(*values)

    monkeypatch.setattr(growth, "GrowingVideo", Counted)
    done = CliRunner().invoke(app, words(folder))
    assert done.exit_code == 0, done.output
    assert recorded + sum(video.encoded for video in opened) == frames, "encoded frames / frames = 1.00"
    counts = [record["frames"] for record in read_log(folder / "run")[1] if record["kind"] == "grown"]
    assert counts == sorted(set(counts)) and counts[-1] == frames, "each section's frames once"
    assert CliRunner().invoke(app, words(tmp_path / "whole")).exit_code == 0
    same, other = (np.stack([*read_video(f / "v.mp4").frames]) for f in (folder, tmp_path / "whole"))
    assert same.shape == other.shape and np.abs(same.astype(float) - other).mean() < 2
    one, two = (
        {p.name: p.read_bytes() for p in (f / "run" / store.FOLDER).iterdir()}
        for f in (folder, tmp_path / "whole")
    )
    assert one == two


def grown(folder: Path) -> int:
    """Frames on record."""
    if not (folder / "run").is_dir():
        return 0
    return max((r["frames"] for r in read_log(folder / "run")[1] if r["kind"] == "grown"), default=0)


@pytest.mark.parametrize("at", [1, 4, 7])
def test_stopped_and_gone_on_with_it_is_encoded_and_decoded_once(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, encoded = counters(monkeypatch)

    class Stop(Exception):
        pass

    def until(event: Event) -> None:
        if isinstance(event, Grown) and event.frame >= at * SECTION:
            raise Stop

    with pytest.raises(Stop):
        job(tmp_path, method="vanilla", frames=29).carry_out(until)
    assert decoded() == encoded() == at * SECTION
    job(tmp_path, method="vanilla", frames=29).carry_out(lambda event: None)
    assert decoded() == encoded() == 29


# --- once ---


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("method", ORDERS)
def test_at_twenty_sections_each_latent_is_decoded_and_each_frame_encoded_once(
    method: str, image: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Previews not counted."""
    decoded, encoded = counters(monkeypatch)
    frames = 20 * SECTION + image
    events: list[Event] = []
    job(tmp_path, method=method, frames=frames, image=picture() if image else None).carry_out(events.append)
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert len({event.section for event in events if isinstance(event, SectionFinished)}) >= 19
    assert decoded() / frames == encoded() / frames == 1.0


def counters(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Of latents decoded and frames encoded for the video from now on."""
    decoders: list[FrameDecoder] = []
    videos: list[GrowingVideo] = []

    class Decoder(FrameDecoder):
        def __init__(self, *values: Any, **more: Any) -> None:
            super().__init__(*values, **more)
            decoders.append(self)

    class Video(GrowingVideo):
        def _open(self, *values: Any) -> None:
            videos.append(self)
            super()._open(*values)

    monkeypatch.setattr(growth, "FrameDecoder", Decoder)
    monkeypatch.setattr(growth, "GrowingVideo", Video)
    return lambda: sum(d.decoded for d in decoders), lambda: sum(v.encoded for v in videos)


# --- memory ---


def held_in_tensors() -> int:
    """Numbers in all tensors that are alive."""
    gc.collect()
    return sum(each.numel() for each in gc.get_objects() if isinstance(each, torch.Tensor))


def test_what_is_held_does_not_grow_over_400_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[store.RunStore] = []
    held: list[weakref.ref[np.ndarray]] = []
    frames, latents, numbers = 0, 0, []
    real_init, real_timed = store.RunStore.__init__, growth._timed

    def init(self: store.RunStore, *values: Any) -> None:
        real_init(self, *values)
        stores.append(self)

    def timed(items: Iterator[np.ndarray], clock: Any) -> Iterator[np.ndarray]:
        nonlocal frames
        for frame in real_timed(items, clock):
            held[:] = [ref for ref in held if ref() is not None] + [weakref.ref(frame)]
            frames = max(frames, len(held))
            yield frame

    def told(event: Event) -> None:
        nonlocal latents
        if isinstance(event, SectionFinished):
            latents = max(latents, len(stores[-1]._cache))
            if event.section in (100, 398):
                numbers.append(held_in_tensors())

    monkeypatch.setattr(store.RunStore, "__init__", init)
    monkeypatch.setattr(growth, "_timed", timed)
    run = job(tmp_path, method="vanilla", frames=400 * SECTION, steps=1, guidance=1.0)
    assert len(run.plan.sections) == 400
    run.carry_out(told)
    assert latents <= store.CACHE, f"{latents} latents"
    assert 1 <= frames <= CHUNK, f"{frames} frames"
    assert numbers[1] == numbers[0], "tensors that were let go of are gone"
