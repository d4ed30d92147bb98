"""A section is decoded while the next one is sampled: the same video as in turn, whatever happens."""

from __future__ import annotations

import multiprocessing
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dying import Killed, die_after
from framepack.codecs.streaming import CHUNK
from framepack.errors import OutOfMemoryError, OutputError
from framepack.generation import growth, manifest, store
from framepack.generation.events import (
    Decoding,
    Event,
    Finished,
    Grown,
    Remark,
    SectionFinished,
    Started,
    Step,
)
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun
from framepack.generation.shortage import TURNS
from framepack.video.growing import GrowingVideo
from tiny import SECTION, SIZE, tiny_bundle

METHODS = ("vanilla", "f1", "anti-drifting", "inverted")
FRAMES = 1 + 5 * 3
SQUARE = "128x128"
"""At which x264 gives the same bytes for the same frames."""
PATIENCE = 60.0

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def overlapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU too, and with no thread left behind."""
    before = threading.active_count()
    monkeypatch.setattr(growth, "overlaps", lambda job: True)
    yield
    assert threading.active_count() == before


def job(folder: Path, **values: object) -> PreparedRun:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    settings = {
        "prompt": "a red ball",
        "image": picture,
        "frames": FRAMES,
        "method": "f1",
        "steps": 2,
        "untrained": True,
    }
    settings |= {"out": folder / "v.mp4", "workdir": folder / "run"} | values
    return prepare(GenerateRequest(**settings), tiny_bundle())  # type: ignore[arg-type]


def in_turn(folder: Path, **values: object) -> Path:
    """A whole run on which nothing overlaps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "overlaps", lambda job: False)
        job(folder, **values).carry_out(lambda event: None)
    return folder


def latents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "run" / store.FOLDER).iterdir()}


def same(folder: Path, other: Path) -> bool:
    """Latents and the video, bytes and all."""
    return (
        latents(folder) == latents(other)
        and (folder / "v.mp4").read_bytes() == (other / "v.mp4").read_bytes()
    )


def shown(patch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """Frames by number, as the encoder is given them from now on."""
    found: dict[int, bytes] = {}

    class Shown(GrowingVideo):
        def _append(self, frames: Iterator[np.ndarray]) -> None:
            super()._append(self._kept(frames))

        def _kept(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            for number, frame in enumerate(frames, self.frames):
                found[number] = frame.tobytes()
                yield frame

    patch.setattr(growth, "GrowingVideo", Shown)
    return found


def is_beside() -> bool:
    return threading.current_thread() is not threading.main_thread()


def full(*values: object, **named: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


# --- the same, sooner ---


@pytest.mark.parametrize("method", METHODS)
def test_latents_and_pixels_are_those_of_a_run_in_turn(
    method: str, tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[bool] = set()
    decode = tiny_bundle().codec.decode

    def told(*values: Any) -> torch.Tensor:
        threads.add(is_beside())
        return decode(*values)

    in_turn(tmp_path / "turn", method=method, size=SQUARE)
    run = job(tmp_path, method=method, size=SQUARE)
    monkeypatch.setattr(tiny_bundle().codec, "decode", told)
    run.carry_out(lambda event: None)
    assert same(tmp_path, tmp_path / "turn")
    assert threads == {True}, "all that a decoder keeps belongs to one thread"


def test_sampling_goes_on_while_a_section_is_decoded(
    tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every section's frames wait for the next section's first step, which in turn would never come."""
    stepped = [threading.Event() for _ in range(9)]
    waited: list[bool] = []
    run = job(tmp_path, image=None, method="vanilla", frames=5 * SECTION)
    real = growth.Growth._write

    def write(self: growth.Growth, emit: Any) -> None:
        section = self.known // SECTION
        if section < 5:
            waited.append(stepped[section].wait(PATIENCE))
        real(self, emit)

    def told(event: Event) -> None:
        if isinstance(event, Step):
            stepped[event.section].set()

    monkeypatch.setattr(growth.Growth, "_write", write)
    run.carry_out(told)
    assert waited == [True] * 4


@pytest.mark.parametrize("method", ["f1", "anti-drifting"])
def test_events_come_from_the_runs_own_thread_in_order(method: str, tmp_path: Path, overlapped: None) -> None:
    events: list[Event] = []

    def told(event: Event) -> None:
        assert not is_beside()
        events.append(event)

    run = job(tmp_path, method=method)
    run.carry_out(told)
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    steps = [(event.section, event.step) for event in events if isinstance(event, Step)]
    assert steps == [(section, step) for section in range(len(run.plan.sections)) for step in range(2)]
    assert [e.frame for e in events if isinstance(e, Decoding)] == [*range(0, FRAMES + 1, 8)]
    grown = [event.frame for event in events if isinstance(event, Grown) and not event.rough]
    assert grown == sorted(set(grown)) and grown[-1] == FRAMES and len(grown) >= 3
    made = 1  # no frame is told of before the sections that it is of
    for event in events:
        if isinstance(event, SectionFinished):
            made += len(event.frames)
        assert not isinstance(event, Grown) or event.rough or event.frame <= made
    assert set(events[-1].seconds) == {"prepare", "pack", "sample", "store", "decode", "encode"}
    assert events[-1].elapsed >= max(events[-1].seconds.values())


def test_no_more_is_held_than_in_turn(
    tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[np.ndarray]] = []
    most, real = 0, growth._timed

    def timed(items: Iterator[np.ndarray], clock: Any) -> Iterator[np.ndarray]:
        nonlocal most
        for frame in real(items, clock):
            held[:] = [ref for ref in held if ref() is not None] + [weakref.ref(frame)]
            most = max(most, len(held))
            yield frame

    monkeypatch.setattr(growth, "_timed", timed)
    job(tmp_path, method="vanilla", frames=40 * SECTION, steps=1, guidance=1.0).carry_out(lambda event: None)
    assert 1 <= most <= CHUNK, f"{most} frames"


def test_where_it_is_so() -> None:
    def told(transformer: str, codec: str, **changes: Any) -> bool:
        bundle = {"device": torch.device(transformer), "execution": changes.pop("execution", None)}
        config = SimpleNamespace(devices=changes.pop("devices", 1))
        model = SimpleNamespace(**bundle, codec=SimpleNamespace(device=torch.device(codec)))
        return growth.overlaps(SimpleNamespace(bundle=model, config=config))  # type: ignore[arg-type]

    assert told("cuda", "cuda") and told("cuda", "cpu") and told("mps", "cpu")
    assert not told("cpu", "cpu"), "both would have half of it"
    assert not told("mps", "mps"), "Metal takes work from one thread"
    assert not told("cuda", "cuda", execution=torch.device("cuda")), "by models or layers: in turns"
    assert not told("cuda", "cuda", devices=2), "a section of several processes cannot be tried again"


# --- stopped ---


@pytest.mark.parametrize("method", ["f1", "anti-drifting", "inverted"])
def test_resumed_equals_uninterrupted(method: str, tmp_path: Path, overlapped: None) -> None:
    in_turn(tmp_path / "whole", method=method, size=SQUARE)
    dice, threads = random.Random(method), threading.active_count()
    seen: set[int] = set()
    while True:
        stop, events = dice.randint(3, 24), []
        running = job(tmp_path, method=method, size=SQUARE).events()
        for event in running:
            events.append(event)
            if len(events) >= stop and not (isinstance(event, SectionFinished) and event.cached):
                break
        running.close()
        assert threading.active_count() == threads
        again = {e.section for e in events if isinstance(e, SectionFinished) and not e.cached}
        assert not again & seen, "a section that was told finished is never made twice"
        seen |= again
        if isinstance(events[-1], Finished):
            break
    assert same(tmp_path, tmp_path / "whole")


def test_stopped_between_writes(tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either thread; after one that failed, no other one comes through."""
    in_turn(tmp_path / "whole", frames=13, size=SQUARE)
    ended = 0
    for limit in range(3, 90, 11):
        folder = tmp_path / f"at{limit}"
        run = job(folder, frames=13, size=SQUARE)
        with monkeypatch.context() as patch:
            die_after(limit, patch)
            try:
                run.carry_out(lambda event: None)
                ended += 1
            except Killed:
                pass
        job(folder, frames=13, size=SQUARE).carry_out(lambda event: None)
        assert same(folder, tmp_path / "whole"), limit
    assert ended < 4, f"{ended} of 8 runs were not stopped"


def _child(folder: Path) -> None:
    job(folder, size=SQUARE).carry_out(lambda event: None)


def test_killed_at_random_moments(tmp_path: Path, overlapped: None) -> None:
    in_turn(tmp_path / "whole", size=SQUARE)
    context, dice = multiprocessing.get_context("fork"), random.Random(0)
    for number in range(3):
        folder = tmp_path / str(number)
        child = context.Process(target=_child, args=(folder,))
        child.start()
        log, wanted = folder / "run" / manifest.NAME, dice.randint(3, 10)
        while child.is_alive() and not (log.exists() and log.read_bytes().count(b"\n") >= wanted):
            child.join(0.002)
        child.kill()
        child.join()
        job(folder, size=SQUARE).carry_out(lambda event: None)
        assert same(folder, tmp_path / "whole")


# --- gone wrong ---


def failing(at: int, error: Exception, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, which fails once."""
    calls = iter(range(10**9))

    def call(*values: Any, **named: Any) -> Any:
        if next(calls) == at:
            raise error
        return real(*values, **named)

    return call


def test_an_error_of_the_decoder_is_the_runs_and_nothing_sampled_is_lost(
    tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn(tmp_path / "whole", size=SQUARE)
    codec = tiny_bundle().codec
    run, made = job(tmp_path, size=SQUARE), []
    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode", failing(2, ValueError("broken"), codec.decode))
        with pytest.raises(ValueError, match=r"^broken$"):
            run.carry_out(lambda event: made.append(event) if isinstance(event, SectionFinished) else None)
    assert len(made) == 2, "that of the first section, after the second one was stored"
    cached: list[bool] = []
    job(tmp_path, size=SQUARE).carry_out(
        lambda event: cached.append(event.cached) if isinstance(event, SectionFinished) else None
    )
    assert cached[:3] == [True, True, False] and same(tmp_path, tmp_path / "whole")


def test_a_full_disk_is_told_as_in_turn(
    tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OutputError("'growing.mp4' cannot be written (No space left on device)")
    with monkeypatch.context() as patch:
        patch.setattr(GrowingVideo, "_write", failing(1, full, GrowingVideo._write))
        with pytest.raises(OutputError, match="No space left"):
            job(tmp_path).carry_out(lambda event: None)
    job(tmp_path).carry_out(lambda event: None)


def remarks(run: PreparedRun) -> list[str]:
    events: list[Event] = []
    run.carry_out(events.append)
    assert isinstance(events[-1], Finished)
    return [event.text for event in events if isinstance(event, Remark)]


@pytest.mark.parametrize("section", [0, 2, 5])
def test_a_decode_that_does_not_fit_beside_sampling_takes_its_turn(
    section: int, tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = shown(monkeypatch)
    in_turn(tmp_path / "whole")
    wanted = dict(frames)
    frames.clear()
    decode, run = tiny_bundle().codec.decode, job(tmp_path)

    def short(*values: torch.Tensor) -> torch.Tensor:
        if is_beside() and (tmp_path / "run" / manifest.NAME).read_bytes().count(b'"latents"') > section:
            return full()
        return decode(*values)

    monkeypatch.setattr(tiny_bundle().codec, "decode", short)
    assert remarks(run) == [TURNS]
    assert latents(tmp_path) == latents(tmp_path / "whole") and frames == wanted


def test_a_section_that_does_not_fit_beside_a_decode_is_sampled_again(
    tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = shown(monkeypatch)
    in_turn(tmp_path / "whole")
    wanted = dict(frames)
    frames.clear()
    model, run = tiny_bundle().transformer, job(tmp_path)
    short = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(model, "forward", failing(5, short, model.forward))
    assert remarks(run) == [TURNS]
    assert latents(tmp_path) == latents(tmp_path / "whole") and frames == wanted


def test_what_does_not_fit_in_turn_either_ends_the_run(
    tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, events = iter(range(100)), []
    model, run = tiny_bundle().transformer, job(tmp_path)
    forward = model.forward
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda *v, **n: forward(*v, **n) if next(calls) < 5 else full())
        with pytest.raises(OutOfMemoryError, match="what is finished is kept"):
            run.carry_out(events.append)
    assert sum(isinstance(event, SectionFinished) for event in events) == 2
    cached: list[bool] = []
    job(tmp_path).carry_out(
        lambda event: cached.append(event.cached) if isinstance(event, SectionFinished) else None
    )
    assert cached[:3] == [True, True, False]


def pieces(run: PreparedRun) -> Iterable[Event]:
    events: list[Event] = []
    run.carry_out(events.append)
    return events


def test_where_nothing_is_decoded_beside_it_a_section_is_not_sampled_again(
    tmp_path: Path, overlapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    run, events = job(tmp_path, method="inverted"), []
    monkeypatch.setattr(tiny_bundle().transformer, "forward", lambda *v, **n: calls.append(None) or full())
    with pytest.raises(OutOfMemoryError):
        run.carry_out(events.append)
    assert len(calls) == 1 and not any(isinstance(event, Remark) for event in events)


def test_sections_made_again_by_themselves_wait_for_all_others(tmp_path: Path, overlapped: None) -> None:
    for folder, runs in ((tmp_path / "whole", in_turn), (tmp_path, lambda f, **v: pieces(job(f, **v)))):
        runs(folder, size=SQUARE)
        job(folder, size=SQUARE).redo(1, "a blue ball", alone=True)
        runs(folder, size=SQUARE)
    assert same(tmp_path, tmp_path / "whole")
