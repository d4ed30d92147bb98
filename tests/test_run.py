"""A run that was stopped, anywhere and any number of times, ends as if it never had been."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dying import Killed, die_after
from framepack.codecs.streaming import CHUNK
from framepack.errors import InputError, OutputError, RunConflictError
from framepack.generation import store
from framepack.generation.clock import peak_memory
from framepack.generation.decode import decode_frames
from framepack.generation.events import (
    Decoded,
    Decoding,
    Finished,
    Grown,
    SectionFinished,
    Started,
    Step,
    event_json,
)
from framepack.generation.manifest import read_log
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.rough import RoughVideo
from framepack.generation.run import PreparedRun, run
from framepack.generation.settle import importance
from framepack.generation.stream import stream
from framepack.models.bundle import Bundle
from framepack.planning.method import Importance
from framepack.planning.timeline import Timeline
from framepack.video.io import read_video, write_video
from tiny import SIZE, look_alike, pictures_of, tiny_bundle

METHODS = [
    "vanilla",
    "f1",
    "anti-drifting",
    "inverted",
    "inverted-plain",
    "similar",
    "appended",
    "compressed",
]
FRAMES = 29  # ten sections of 3, the last one shortened


pytestmark = pytest.mark.usefixtures("one_thread")


def job(folder: Path, bundle: Bundle | None = None, **values: object) -> PreparedRun:
    settings = {"prompt": "a red ball", "frames": FRAMES, "out": folder / "v.mp4", "workdir": folder / "run"}
    return prepare(GenerateRequest(**(settings | values)), bundle or tiny_bundle())  # type: ignore[arg-type]


def latents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "run" / store.FOLDER).iterdir()}


def picture(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "start.png")
    return folder / "start.png"


def sections_of(folder: Path) -> list[dict]:
    """Records of sections, in the order they were made in."""
    return [record for record in read_log(folder)[1] if record["kind"] == "latents"]


def made(events: list) -> list[int]:
    return [e.section for e in events if isinstance(e, SectionFinished) and not e.cached]


# --- what a run says and leaves behind ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image", [False, True])
def test_a_whole_run(method: str, image: bool, tmp_path: Path) -> None:
    run = job(tmp_path, method=method, image=picture(tmp_path) if image else None)
    events = list(run.events())
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert isinstance(events[-2], Decoded)
    sections = [e for e in events if isinstance(e, SectionFinished)]
    written = sorted(frame for section in sections for frame in section.frames)
    assert written == list(range(image, FRAMES)), "every unknown latent frame once"
    steps = [(e.section, e.step) for e in events if isinstance(e, Step)]
    assert steps == [(i, s) for i in range(len(sections)) for s in range(2)]
    assert events[0].sections == len(sections) and events[0].stored == 0
    finished = events[-1]
    assert not finished.cached and finished.peak_memory > 1e6
    assert set(finished.seconds) == {"prepare", "pack", "sample", "store", "decode", "encode"}
    assert all(spent >= 0 for spent in finished.seconds.values())
    written = [(e.frame, e.frames) for e in events if isinstance(e, Decoding)]
    assert written == [(frame, FRAMES) for frame in range(0, FRAMES, 8)]
    video = read_video(tmp_path / "v.mp4")
    assert sum(1 for _ in video.frames) == FRAMES and video.fps == 8
    told = json.loads((tmp_path / "v.json").read_text())
    assert told == video.metadata and told["config"] == run.config.to_json() and told["job"] == run.config.job
    assert {p.name for p in tmp_path.iterdir()} <= {"v.mp4", "v.json", "run", "start.png"}
    json.dumps([event_json(e) for e in events])


def test_a_finished_run_says_so_and_does_nothing(tmp_path: Path) -> None:
    list(job(tmp_path).events())
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*.*") if p.is_file()}
    started, finished = job(tmp_path).events()
    assert isinstance(started, Started) and started.stored == 10
    assert isinstance(finished, Finished) and finished.cached
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*.*") if p.is_file()} == before


@pytest.mark.parametrize("harm", ["video", "json", "section"])
def test_what_is_lost_is_made_again_and_no_more(harm: str, tmp_path: Path) -> None:
    list(job(tmp_path, method="vanilla").events())
    before = latents(tmp_path)
    lost = {"video": tmp_path / "v.mp4", "json": tmp_path / "v.json"}.get(harm)
    if lost is None:
        # The video stands, so only making it anew shows that the section is gone.
        (tmp_path / "v.mp4").unlink()
        record = sections_of(tmp_path / "run")[4]
        lost = tmp_path / "run" / store.FOLDER / f"{record['key']}.safetensors"
    lost.unlink()
    events = list(job(tmp_path, method="vanilla").events())
    assert made(events) == ([4] if harm == "section" else [])
    assert lost.exists() and latents(tmp_path) == before
    assert events[-1].cached == (harm == "json")


def test_each_latent_is_decoded_once_and_few_at_a_time(tmp_path: Path) -> None:
    codec, seen = tiny_bundle().codec, []

    class Counting(torch.nn.Module):
        temporal_stride = 1

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            seen.append(latents.clone())
            return codec.decode(latents)

        preview = staticmethod(codec.preview)

    bundle = dataclasses.replace(tiny_bundle(), codec=Counting())  # type: ignore[arg-type]
    running = job(tmp_path, bundle).events()
    for event in running:
        if isinstance(event, Decoding) and event.frame:
            break
    running.close()
    # A stream is an event ahead, and the next chunk may have been begun before it was closed.
    assert sum(x.shape[2] for x in seen) <= 3 * CHUNK < FRAMES, "it stops while decoding too"
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    seen.clear()
    list(job(tmp_path, bundle).events())
    assert max(x.shape[2] for x in seen) <= 8
    shown = torch.cat(seen, dim=2)[0].unbind(1)
    assert len(shown) == FRAMES and len({x.numpy().tobytes() for x in shown}) == FRAMES


def test_memory_while_decoding_is_bounded_for_long_videos(tmp_path: Path) -> None:
    """From the latents on disk to the video file, what is alive at once does not grow with the length."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    class Watched:
        temporal_stride = 1

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            nonlocal most
            pixels = latents[:, :3].contiguous()
            alive.add(latents)
            alive.add(pixels)
            most = max(most, sum(tensor.shape[2] for tensor in alive))
            return pixels

    with store.RunStore(tmp_path / "run", {}) as opened:
        opened.place(opened.add("all", 0, range(500), torch.zeros(4, 500, 16, 16)))
        timeline = Timeline(frames=500, fps=8, stride=1)
        frames = decode_frames(Watched(), opened.fetch, timeline)
        assert write_video(tmp_path / "v.mp4", frames, 8) == 500
        assert len(opened._cache) <= store.CACHE
    assert most <= 4 * CHUNK, f"{most} frames of latents and pixels were held at once"


# --- stopped and resumed ---


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    image = picture(tmp_path)
    (tmp_path / "whole").mkdir()
    list(job(tmp_path / "whole", method=method, image=image).events())
    dice = random.Random(method)
    seen: set[int] = set()
    while True:
        stop, events = dice.randint(3, 24), []
        running = job(tmp_path, method=method, image=image).events()
        for event in running:
            events.append(event)
            if len(events) >= stop and not (isinstance(event, SectionFinished) and event.cached):
                break
        running.close()
        again = set(made(events))
        assert not again & seen, "a section that was told finished is never made twice"
        seen |= again
        if isinstance(events[-1], Finished):
            break
    assert latents(tmp_path) == latents(tmp_path / "whole")


def test_stopped_between_any_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system call that changes the folder is once the last one."""
    (tmp_path / "whole").mkdir()
    list(job(tmp_path / "whole", frames=7).events())
    limit = 0
    while True:
        folder = tmp_path / f"at{limit}"
        folder.mkdir()
        prepared = job(folder, frames=7)
        with monkeypatch.context() as patch:
            die_after(limit, patch)
            try:
                run(prepared, lambda event: None)
                ended = True
            except Killed:
                ended = False
        list(job(folder, frames=7).events())
        assert latents(folder) == latents(tmp_path / "whole"), limit
        assert sorted(p.name for p in folder.iterdir()) == ["run", "v.json", "v.mp4"]
        if ended:
            break
        limit += 1
    assert limit > 20


def _child(folder: Path) -> None:
    torch.set_num_threads(1)
    for event in job(folder, steps=8).events():
        if isinstance(event, Started):
            (folder / "started").touch()


def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the server finds what to import
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    whole = tmp_path / "whole"
    for folder in (tmp_path / "first", whole):  # what is imported late would be in the time of the first
        folder.mkdir()
        begun = time.monotonic()
        list(job(folder, steps=8).events())
        length = time.monotonic() - begun
    dice = random.Random(0)
    caught = []
    for i in range(10):
        folder = tmp_path / str(i)
        folder.mkdir()
        child = context.Process(target=_child, args=(folder,))
        child.start()
        deadline = time.monotonic() + 120
        while not (folder / "started").exists() and child.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(length * (i + dice.random()) / 10)
        child.kill()
        child.join()
        _, records, _ = read_log(folder / "run")
        caught.append(len(records))
        events = list(job(folder, steps=8).events())
        assert isinstance(events[-1], Finished)
        assert latents(folder) == latents(whole)
    assert sum(0 < count < 10 for count in caught) >= 3, f"too few of the kills hit the run: {caught}"


def test_two_processes_cannot_make_the_same_run(tmp_path: Path) -> None:
    running = job(tmp_path).events()
    next(running)
    with pytest.raises(RunConflictError, match="in use by process"):
        list(job(tmp_path).events())
    running.close()
    assert isinstance(list(job(tmp_path).events())[-1], Finished)


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    running = job(tmp_path).events()
    next(running)
    (tmp_path / "v.mp4").write_bytes(b"holiday")
    with pytest.raises(OutputError, match="appeared meanwhile"):
        list(running)
    assert (tmp_path / "v.mp4").read_bytes() == b"holiday"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "v.mp4"]
    assert isinstance(list(job(tmp_path, overwrite=True).events())[-1], Finished)


# --- redo ---


def test_redo_makes_the_section_and_what_sees_it(tmp_path: Path) -> None:
    list(job(tmp_path, method="vanilla").events())
    before, video = latents(tmp_path), (tmp_path / "v.mp4").read_bytes()
    job(tmp_path, method="vanilla").redo(7)
    events = list(job(tmp_path, method="vanilla").events())
    assert made(events) == [7, 8, 9]
    after = latents(tmp_path)
    assert len(after) == len(before) + 3 and before.items() <= after.items(), "what was made stays"
    assert (tmp_path / "v.mp4").read_bytes() != video
    _, finished = job(tmp_path, method="vanilla").events()
    assert isinstance(finished, Finished) and finished.cached


def test_redo_that_nobody_sees_changes_nothing_else(tmp_path: Path) -> None:
    list(job(tmp_path, method="inverted").events())
    job(tmp_path, method="inverted").redo(9)
    assert made(list(job(tmp_path, method="inverted").events())) == [9]


def test_redo_with_another_prompt(tmp_path: Path) -> None:
    list(job(tmp_path, method="vanilla").events())
    job(tmp_path, method="vanilla").redo(9, prompt="a blue star")
    assert made(list(job(tmp_path, method="vanilla").events())) == [9]
    last = sections_of(tmp_path / "run")[-1]
    assert (last["section"], last["take"], last["prompt"]) == (9, 1, "a blue star")
    with pytest.raises(InputError, match="0 to 9"):
        job(tmp_path, method="vanilla").redo(10)
    with pytest.raises(InputError, match="not UTF-8"):
        job(tmp_path, method="vanilla").redo(9, prompt="\udcff")


def test_what_was_made_anew_is_told_with_the_video_and_can_be_taken_back(tmp_path: Path) -> None:
    def edits() -> list[dict[str, object]]:
        list(job(tmp_path, method="vanilla").events())
        told = json.loads((tmp_path / "v.json").read_text())
        assert told == read_video(tmp_path / "v.mp4").metadata
        return told["edits"]

    assert edits() == []
    first = pictures_of(tmp_path / "v.mp4")
    run = job(tmp_path, method="vanilla")
    run.redo(9, prompt="a blue star")
    run.redo(4)
    assert edits() == [
        {"section": 4, "take": 1, "prompt": None, "seed": None},
        {"section": 9, "take": 1, "prompt": "a blue star", "seed": None},
    ]
    run.redo(9, prompt=run.config.prompt)
    assert edits()[1] == {"section": 9, "take": 2, "prompt": None, "seed": None}
    run.restore(4)
    run.restore(9)
    assert made(list(run.events())) == [], "the first version is still on disk"
    assert edits() == [] and look_alike(pictures_of(tmp_path / "v.mp4"), first)
    run.redo(9)
    assert edits() == [{"section": 9, "take": 3, "prompt": None, "seed": None}], (
        "noise that no take had before"
    )


def test_a_redo_stopped_half_way_is_taken_up(tmp_path: Path) -> None:
    list(job(tmp_path, method="vanilla").events())
    job(tmp_path, method="vanilla").redo(5)
    running = job(tmp_path, method="vanilla").events()
    for event in running:
        if isinstance(event, SectionFinished) and event.section == 6:
            break
    running.close()
    assert set(made(list(job(tmp_path, method="vanilla").events()))) in ({7, 8, 9}, {8, 9})


# --- importance ---


def test_history_is_chosen_by_what_is_there_and_recorded(tmp_path: Path) -> None:
    run = job(tmp_path, method="similar")
    list(run.events())
    records = read_log(tmp_path / "run")[1]
    rows = {r["section"]: r["row"] for r in records if r["kind"] == "latents"}
    planned = {section.index: section for section in run.plan.sections}
    chosen = {i: sorted(f for level in row["context"] for f in level["frames"]) for i, row in rows.items()}
    assert all(set(frames) <= set(planned[i].candidates) for i, frames in chosen.items())
    assert any(frames != sorted(planned[i].context_frames) for i, frames in chosen.items())


def test_importance_follows_its_formula() -> None:
    rng = np.random.default_rng(0)
    frames, estimate = rng.normal(size=(3, 5, 2, 2)), rng.normal(size=(3, 2, 2))
    seconds = np.array([-0.5, -1.0, -2.0, 0.0, 1.5])
    cosine = (frames * estimate[:, None]).sum(0) / (
        np.linalg.norm(frames, axis=0) * np.linalg.norm(estimate, axis=0)[None]
    )
    similarity, nearness = cosine.mean((1, 2)), np.exp(-(seconds**2))
    tensors = (torch.tensor(frames), torch.tensor(estimate), torch.tensor(seconds))
    for rule, expected in (
        (Importance(kind="time"), nearness),
        (Importance(kind="similarity"), similarity),
        (Importance(kind="hybrid", weight=0.3), similarity + 0.3 * nearness),
    ):
        np.testing.assert_allclose(importance(*tensors, rule).numpy(), expected, rtol=1e-6)


# --- what it costs ---


def test_memory_is_that_of_the_device_the_model_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"cuda:0": 10, "cuda:1": 20}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: held[str(device)])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 30)
    assert [peak_memory(torch.device(name)) for name in ("cuda:0", "cuda:1", "mps")] == [10, 20, 30]
    assert peak_memory(torch.device("cpu")) > 1e6


# --- the stream ---


def test_errors_of_the_work_reach_the_listener() -> None:
    def work(emit):
        emit(Decoded(frames=1, seconds=0))
        raise OutputError("full")

    events = stream(work)
    assert next(events) == Decoded(frames=1, seconds=0)
    with pytest.raises(OutputError, match="full"):
        next(events)


def test_closing_stops_the_work_and_waits_for_it() -> None:
    ended = threading.Event()

    def work(emit):
        try:
            for i in range(10**9):
                emit(Decoded(frames=i, seconds=0))
        finally:
            time.sleep(0.05)
            ended.set()

    events = stream(work)
    next(events)
    events.close()
    assert ended.is_set()
    assert not any(thread.name == "framepack-run" for thread in threading.enumerate())


# --- what can be watched on the way ---


@pytest.mark.parametrize("method", ["vanilla", "anti-drifting", "inverted"])
def test_a_rough_video_grows_where_the_finished_frames_wait(method: str, tmp_path: Path) -> None:
    run, seen = job(tmp_path, method=method), []

    def told(event: object) -> None:
        if isinstance(event, Grown):
            frames = [*read_video(event.path).frames]
            assert len(frames) == event.frame
            seen.append((event.rough, event.frame))

    run.carry_out(told)
    rough = [frame for is_rough, frame in seen if is_rough]
    assert [frame for is_rough, frame in seen if not is_rough][-1] == FRAMES
    assert bool(rough) == (method == "inverted") and rough == sorted(rough)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"latents", "lock", "manifest.jsonl"}


def test_a_rough_video_of_any_length_has_few_frames(tmp_path: Path) -> None:
    timeline = Timeline(frames=10_000, fps=8, stride=1)
    latents = torch.zeros(1, 4, 1, 2, 2)
    video = RoughVideo(tmp_path / "p.mp4", tiny_bundle().codec, lambda frames: latents, timeline)
    written = sum(video.add(range(start, start + 50)) for start in reversed(range(0, 5000, 50)))
    assert 500 < video.frames <= 1200 and written < 40
    assert read_video(tmp_path / "p.mp4").fps in (1, 2)  # the last write may precede the last halving
