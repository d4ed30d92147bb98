"""A video that grows is whole after every append, whatever happens to the process, the disk or the pipe."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.errors import InputError, OutputError
from framepack.video import growing
from framepack.video.boxes import boxes, fragments, header_of
from framepack.video.growing import GrowingVideo
from framepack.video.io import encode, read_video, write_video
from framepack.video.remux import finalize

FPS = 8
SETTINGS = {"prompt": "赤い丸", "seed": 3}
PIECES = (5, 1, 2, 9, 3)
"""Frames of each append: also fewer than the encoder reorders."""


def picture(number: int) -> np.ndarray:
    """Smooth waves that move, uint8 (48, 128, 3).

    Whole 128 px: at other widths x264's macroblock tree reads memory that it has not written, by what one
    sees of files under MALLOC_PERTURB_, and two encodings of the same frames differ a little.
    """
    y, x = np.mgrid[0:48, 0:128]
    waves = [
        128 + 90 * np.sin((x + 3 * number) / 11),
        128 + 90 * np.cos((y - 2 * number) / 9),
        128 + 60 * np.sin((x + y + number) / 19),
    ]
    return np.stack(waves, -1).astype(np.uint8)


def pieces(counts: tuple[int, ...] = PIECES) -> list[list[np.ndarray]]:
    edges = [0, *accumulate(counts)]
    return [[picture(n) for n in range(*span)] for span in pairwise(edges)]


def grown(counts: tuple[int, ...] = PIECES) -> bytes:
    file = io.BytesIO()
    with GrowingVideo(file, FPS, SETTINGS) as video:
        for piece in pieces(counts):
            video.append(piece)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole() -> bytes:
    """What an uninterrupted process writes."""
    return grown()


def decoded(path: Path) -> list[np.ndarray]:
    return list(read_video(path).frames)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


def check(path: Path, frames: int) -> None:
    """Every frame is decoded, at its own time and to what it was, and the duration covers them all."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert container.duration == round(frames / FPS * 1_000_000) and stream.start_time == 0
        stamps = [packet.dts for packet in container.demux(stream) if packet.dts is not None]
        assert all(a < b for a, b in pairwise(stamps)), "decoding times ascend"
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == [n / FPS for n in range(frames)]
    for number, frame in enumerate(decoded(path)):
        assert psnr(frame, picture(number)) > 30, number
    if shutil.which("ffprobe"):
        command = (
            "ffprobe -v warning -count_frames -show_entries format=duration:stream=nb_read_frames -of csv=p=0"
        )
        told = subprocess.run([*command.split(), str(path)], capture_output=True, text=True, check=True)
        assert not told.stderr, told.stderr
        assert [float(value) for value in told.stdout.split()] == [frames, frames / FPS]


def test_playable_after_every_append(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "new" / "v.mp4"
    done = 0
    with GrowingVideo(path, FPS, SETTINGS) as video:
        for piece in pieces():
            assert video.append(iter(piece)) == len(piece)
            done += len(piece)
            assert video.frames == done
            check(path, done)
        assert video.append([]) == 0
        assert video.encoded / video.frames == 1.0
    read = read_video(path)
    assert (read.fps, read.metadata) == (FPS, SETTINGS)
    assert path.read_bytes() == whole, "the same through a pipe as at a path"


@pytest.mark.parametrize("fps", [30000 / 1001, 12.5, 24])
def test_rates(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "v.mp4"
    with GrowingVideo(path, fps) as video:
        for piece in pieces((4, 4)):
            video.append(piece)
    with av.open(str(path)) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(
            [n / fps for n in range(8)]
        )
    with GrowingVideo.resume(path, fps) as video:
        assert video.frames == 8
    with pytest.raises(OutputError, match="not 9: choose another name"):
        GrowingVideo.resume(path, 9)


def test_a_long_append_is_divided_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "LONGEST", 20)
    alive: list[weakref.ref[np.ndarray]] = []
    path, most = tmp_path / "v.mp4", 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal most
        for number in range(90):
            frame = picture(number)
            alive.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in alive))
            yield frame

    with GrowingVideo(path, FPS) as video:
        assert video.append(frames()) == video.encoded == 90
    assert most <= 4, f"{most} frames were held at once"
    assert [fragment.frames for fragment in found(path)] == [20, 20, 20, 20, 10]
    check(path, 90)


def found(path: Path) -> list[growing.Fragment]:
    with path.open("rb") as file:
        size = path.stat().st_size
        header = header_of(file, size)
        assert header is not None
        return list(fragments(file, header.stop, size))


# --- stopped and resumed ---

APPENDING = """
import sys
import numpy as np
from framepack.video.growing import GrowingVideo
folder, fps, *counts = sys.argv[1:]
frames = np.load(f"{folder}/frames.npy")
with GrowingVideo.resume(f"{folder}/v.mp4", int(fps)) as video:
    print("ready", flush=True)
    start = 0
    for count in map(int, counts):
        if start >= video.frames:
            video.append(frames[start : start + count])
        start += count
"""


def test_a_killed_process_leaves_whole_fragments_and_the_next_goes_on(tmp_path: Path) -> None:
    """SIGKILL at random moments of real processes, each of which takes up what the one before left."""
    path, counts = tmp_path / "v.mp4", PIECES * 12
    frames = np.stack([picture(number) for number in range(sum(counts))])
    np.save(tmp_path / "frames.npy", frames)
    command = [sys.executable, "-c", APPENDING, str(tmp_path), str(FPS), *map(str, counts)]
    rng, reached, edges = random.Random(5), [0], [0, *accumulate(counts)]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        before = path.stat().st_size
        while path.stat().st_size == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        process.stdout.close()
        if path.stat().st_size:
            reached.append(sum(fragment.frames for fragment in found(path)))
            check(path, reached[-1])
    assert reached[-1] > 0 and reached == sorted(reached)
    assert set(reached) <= set(edges), "whole appends"
    with GrowingVideo.resume(path, FPS) as video:
        assert video.frames == reached[-1]
        last = min(len(counts), edges.index(video.frames) + 3)
        for start, stop in list(pairwise(edges))[edges.index(video.frames) : last]:
            video.append(frames[start:stop])
        assert video.encoded == edges[last] - reached[-1], "nothing is encoded twice"
    alone = io.BytesIO()
    with GrowingVideo(alone, FPS) as video:
        for start, stop in list(pairwise(edges))[:last]:
            video.append(frames[start:stop])
    assert path.read_bytes() == alone.getvalue(), "as if it had never been stopped"


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_what_is_torn_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """Cut anywhere, as a copy or a pipe leaves it; also where libav cannot open what is left."""
    path = tmp_path_factory.mktemp("torn") / "v.mp4"
    path.write_bytes(whole)
    spans = found(path)
    stops = [span.stop for span in spans]
    few = st.builds(
        lambda stop, more: min(stop + more, len(whole)), st.sampled_from(stops), st.integers(0, 40)
    )
    cut = data.draw(st.integers(stops[0], len(whole)) | few)
    path.write_bytes(whole[:cut])
    kept = [span for span in spans if span.stop <= cut]
    with GrowingVideo.resume(path, FPS, SETTINGS) as video:
        assert video.frames == sum(span.frames for span in kept)
        assert path.stat().st_size == kept[-1].stop
        for piece in pieces()[len(kept) :]:
            video.append(piece)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("at", range(4))
def test_stopped_between_two_writes(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A fragment's bytes are free space until the last write makes them a fragment."""
    path = tmp_path / "v.mp4"
    syncs = iter(range(100))

    def fsync(descriptor: int) -> None:
        if next(syncs) == at:
            raise KeyboardInterrupt

    video = GrowingVideo(path, FPS, SETTINGS)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        for piece in pieces():
            video.append(piece)
    video.close()
    committed = (at + 1) // 2
    content = path.read_bytes()
    with path.open("rb") as file:
        kinds = [box.kind for box in boxes(file, 0, len(content))]
    assert kinds == [b"ftyp", b"moov", *[b"moof", b"mdat"] * committed][: None if committed else 0] + (
        [b"free"] if at % 2 == 0 else []
    )
    if committed:
        check(path, sum(PIECES[:committed]))
    with GrowingVideo.resume(path, FPS, SETTINGS) as video:
        assert video.frames == sum(PIECES[:committed])
        for piece in pieces()[committed:]:
            video.append(piece)
    assert path.read_bytes() == whole


def test_an_append_may_be_tried_again(tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try leaves more than the second one writes over."""
    path, real = tmp_path / "v.mp4", os.fsync
    first, *rest = pieces()
    with GrowingVideo(path, FPS, SETTINGS) as video:
        video.append(first)
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            video.append([picture(n) for n in range(40)])
        monkeypatch.setattr(os, "fsync", real)
        for piece in rest:
            video.append(piece)
        assert video.encoded == video.frames + 40, "frames that were encoded for nothing are counted"
    assert path.read_bytes() == whole


def test_frames_can_be_taken_back(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(whole)
    with GrowingVideo.resume(path, FPS, at_most=8) as video:
        assert video.frames == 8
        check(path, 8)
        for piece in pieces()[3:]:
            video.append(piece)
    assert path.read_bytes() == whole
    with GrowingVideo.resume(path, FPS, {"other": 1}, at_most=4) as video:
        assert video.frames == 0
        video.append(pieces()[0])
    assert read_video(path).metadata == {"other": 1}


def test_files_of_others_are_left_alone(tmp_path: Path, whole: bytes) -> None:
    write_video(tmp_path / "plain.mp4", pieces()[0], FPS)
    (tmp_path / "text.mp4").write_text("words " * 20)
    (tmp_path / "free.mp4").write_bytes((16).to_bytes(4, "big") + b"free" + bytes(8) + b"mine")
    (tmp_path / "mine.mp4").write_bytes(whole)
    for name, flags in (("ended.mp4", "frag_keyframe+empty_moov"), ("dash.mp4", "dash+frag_keyframe")):
        with av.open(str(tmp_path / name), "w", options={"movflags": flags}) as container:
            for packet in encode(container, pieces()[0], FPS):
                container.mux(packet)
    for name in ("plain.mp4", "text.mp4", "free.mp4", "ended.mp4", "dash.mp4"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(OutputError, match="is no video that grows: choose another name"):
            GrowingVideo.resume(tmp_path / name, FPS)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(OutputError, match="exists: choose another name or pass --overwrite"):
        GrowingVideo(tmp_path / "mine.mp4", FPS)
    with (
        GrowingVideo.resume(tmp_path / "mine.mp4", FPS) as video,
        pytest.raises(OutputError, match="was made with another size or encoder"),
    ):
        video.append([np.zeros((32, 32, 3), np.uint8)])
    assert (tmp_path / "mine.mp4").read_bytes() == whole
    with GrowingVideo(tmp_path / "mine.mp4", FPS, overwrite=True) as video:
        video.append(pieces((3,))[0])
    check(tmp_path / "mine.mp4", 3)


# --- disks and pipes ---


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may be larger: the kernel writes what fits, and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_video_stays(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "v.mp4"
    made = pieces()
    with GrowingVideo(path, FPS, SETTINGS) as video:
        for piece in made[:3]:
            video.append(piece)
        size = path.stat().st_size
        with room_for(size + 100), pytest.raises(OutputError, match="cannot be written") as caught:
            video.append(made[3])
        assert "\n" not in str(caught.value)
        assert path.stat().st_size == size and video.frames == 8
        check(path, 8)
        for piece in made[3:]:  # once there is room again
            video.append(piece)
    assert path.read_bytes() == whole
    with pytest.raises(OutputError, match="cannot be written"):
        GrowingVideo(tmp_path / "v.mp4" / "v.mp4", FPS)
    with pytest.raises(OutputError, match="cannot be written"):
        GrowingVideo(tmp_path, FPS)


def test_through_a_pipe(tmp_path: Path, whole: bytes) -> None:
    named = tmp_path / "pipe"
    os.mkfifo(named)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(named.read_bytes()))
    reader.start()
    with GrowingVideo(named, FPS, SETTINGS) as video:
        for piece in pieces():
            video.append(piece)
    reader.join()
    assert got == [whole]
    with av.open(io.BytesIO(got[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == sum(PIECES)


def test_a_reader_that_goes_is_one_line() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as target:
        video = GrowingVideo(target, FPS)
        video.append(pieces()[0])
        os.close(read)
        with pytest.raises(OutputError, match=r"'pipe' cannot be written \(Broken pipe\)") as caught:
            video.append(pieces()[1])
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        assert video.frames == PIECES[0]


# --- finished ---


def test_finished_by_copying_packets(tmp_path: Path, whole: bytes) -> None:
    path, out = tmp_path / "v.mp4", tmp_path / "new" / "out.mp4"
    path.write_bytes(whole)
    assert finalize(path, out, {"all": "new"}) == sum(PIECES)
    check(out, sum(PIECES))
    read = read_video(out)
    assert (read.fps, read.metadata) == (FPS, {"all": "new"})
    for one, other in zip(read.frames, decoded(path), strict=True):
        assert np.array_equal(one, other)
    content = out.read_bytes()
    with out.open("rb") as file:
        kinds = [box.kind for box in boxes(file, 0, len(content))]
    assert kinds.index(b"moov") < kinds.index(b"mdat") and b"moof" not in kinds
    with av.open(str(path)) as one, av.open(str(out)) as other:
        packets = [[bytes(p) for p in c.demux(video=0) if p.size] for c in (one, other)]
    assert packets[0] == packets[1], "nothing is encoded again"
    with pytest.raises(OutputError, match="--overwrite"):
        finalize(path, out)
    with pytest.raises(InputError, match="does not exist"):
        finalize(tmp_path / "gone.mp4", tmp_path / "other.mp4")
    with room_for(500), pytest.raises(OutputError, match="cannot be written"):
        finalize(path, tmp_path / "other.mp4")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "out.mp4", "v.mp4"]
