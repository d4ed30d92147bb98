"""Clips that a user brings: their frames at a model's rate and size, their sound in its place."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from framepack.errors import InputError
from framepack.video.audio import audio_of, audio_remarks
from framepack.video.boxes import header_of
from framepack.video.clips import SLACK, read_clip, read_frame, read_still, track_of
from framepack.video.growing import GrowingVideo
from framepack.video.io import read_video, write_video
from framepack.video.remux import finalize

SIZE = (32, 48)
TONE, RATE = 880, 44_100


def grey(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), 4 * number % 256, np.uint8)


def number_of(frame: np.ndarray) -> int:
    return round(float(frame.mean()) / 4)


def tone(seconds: float, onset: float) -> np.ndarray:
    """Silence, and a tone from ``onset`` on: float (samples,)."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * TONE * time) * (time >= onset)).astype(np.float32)


def film(
    path: Path,
    codec: str | None = "aac",
    *,
    seconds: float = 2.0,
    fps: int = 24,
    onset: float = 1.0,
    layout: str = "stereo",
    stamps: Sequence[int] | None = None,
    pixel: Fraction | None = None,
    late: int = 0,
) -> Path:
    """A clip whose frame i is grey of brightness 4 i, ``late`` frames into its file's clock.

    ``stamps`` in ms instead of a rate.
    """
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=fps if stamps is None else 1000)
        picture.height, picture.width = SIZE
        picture.pix_fmt, picture.options = "yuv420p", {"crf": "10", "preset": "ultrafast"}
        if pixel is not None:
            picture.codec_context.sample_aspect_ratio = pixel
        unit = Fraction(1, fps if stamps is None else 1000)
        picture.codec_context.time_base = unit
        sound = container.add_stream(codec, rate=48_000 if "opus" in codec else RATE) if codec else None
        if sound is not None:
            sound.layout = layout
        for index, stamp in enumerate(range(round(seconds * fps)) if stamps is None else stamps):
            frame = av.VideoFrame.from_ndarray(grey(index), format="rgb24")
            frame.pts, frame.time_base = stamp + late, unit
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if sound is not None:
            add_tone(container, sound, tone(seconds, onset), layout)
    return path


def add_tone(container: Any, sound: Any, samples: np.ndarray, layout: str = "stereo") -> None:
    channels = 1 if layout == "mono" else 2
    for start in range(0, len(samples), 1024):
        piece = np.stack([samples[start : start + 1024]] * channels)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))


# --- frames ---


def test_a_clip_at_the_models_rate_and_size(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    clip = read_clip(path, 8, (48, 48))
    assert (clip.count, clip.start, clip.stop) == (16, 0.0, 2.0)
    assert clip.remarks == (
        "clip 'a.mp4' has 24 frames per second: read at the model's 8, some are left out",
        "clip 'a.mp4' is 48 x 32: cropped at the centre and resized to 48 x 48",
    )
    for _ in range(2):  # as often as one likes
        frames = list(clip.frames())
        assert [number_of(frame) for frame in frames] == [3 * k for k in range(16)]
        assert {(frame.shape, frame.dtype.name) for frame in frames} == {((48, 48, 3), "uint8")}
    slower = read_clip(path, 30, SIZE)
    assert [number_of(f) for f in slower.frames()] == [k * 24 // 30 for k in range(60)]
    assert slower.remarks == (
        "clip 'a.mp4' has 24 frames per second: read at the model's 30, some are repeated",
    )


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
@pytest.mark.parametrize("fps", [24, 30, 120])
def test_at_its_own_rate_every_frame_comes_once(tmp_path: Path, name: str, fps: int) -> None:
    """Matroska rounds its stamps to milliseconds, and not every clock begins at 0."""
    late = 0 if name == "a.avi" else 35  # it has no clock but its frames' numbers
    path = film(tmp_path / name, None, fps=fps, late=late, seconds=60 / fps)
    assert not late or float(track_of(path).start) == pytest.approx(late / fps, abs=0.001)
    clip = read_clip(path, fps, SIZE)
    assert [number_of(frame) for frame in clip.frames()] == list(range(60)) and not clip.remarks


@pytest.mark.parametrize(
    ("cut", "kept", "span", "edge"),
    [("end", range(13), (0.0, 1.625), "last"), ("start", range(3, 16), (0.375, 2.0), "first")],
)
def test_whole_latent_frames(
    tmp_path: Path, cut: Any, kept: range, span: tuple[float, float], edge: str
) -> None:
    write_video(tmp_path / "a.mp4", [grey(n) for n in range(16)], 8)
    clip = read_clip(tmp_path / "a.mp4", 8, SIZE, stride=4, cut=cut)
    assert [number_of(frame) for frame in clip.frames()] == list(kept)
    assert (clip.count, clip.start, clip.stop) == (13, *span)
    assert clip.remarks == (
        f"clip 'a.mp4' gives 16 frames at 8 fps: its {edge} 3 are left out, for whole latent frames of 4",
    )


def test_a_span(tmp_path: Path) -> None:
    path = film(tmp_path / "a.ts", None, late=10)
    clip = read_clip(path, 8, SIZE, start=0.5, stop=1.25)
    assert [number_of(frame) for frame in clip.frames()] == [12 + 3 * k for k in range(6)]
    longer = read_clip(path, 24, SIZE, start=1, stop=9)
    assert [number_of(frame) for frame in longer.frames()] == list(range(24, 48))
    assert longer.remarks == ("clip 'a.ts' ends at 2.00 s: 9 s lies beyond it",)
    for start, stop in ((2, None), (5, 6), (1, 1), (2, 1), (-1, 1), (float("nan"), 1)):
        with pytest.raises(InputError, match=r"give (a|an) ") as caught:
            read_clip(path, 8, SIZE, start=start, stop=stop)
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(2, 60), min_size=3, max_size=30), st.sampled_from([8, 12.5, 30]))
def test_a_variable_rate_is_followed(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], fps: float
) -> None:
    """Frames at any distances, in steps of 10 ms."""
    stamps = [10 * sum(gaps[:n]) for n in range(len(gaps))]
    path = film(tmp_path_factory.mktemp("v") / "v.mp4", None, stamps=stamps)
    assert track_of(path).times == tuple(Fraction(stamp, 1000) for stamp in stamps)
    clip = read_clip(path, fps, SIZE)
    shown = [bisect_right(stamps, 1000 * k / fps + 1e-6) - 1 for k in range(clip.count)]
    assert [number_of(frame) for frame in clip.frames()] == shown
    assert (clip.count + SLACK) / fps >= stamps[-1] / 1000, "to its last frame, or just before it"
    varied = [remark for remark in clip.remarks if "variable rate" in remark]
    most, least = max(gaps[:-1]), min(gaps[:-1])  # the last one is after the last frame
    if most >= 2 * least:
        rates = f"{100 / most:.3g} to {100 / least:.3g} fps"
        assert varied == [f"clip 'v.mp4' has a variable rate, {rates}: its time stamps are followed"]
    elif most <= 1.4 * least:
        assert not varied


def turn(path: Path) -> None:
    """Enter a quarter turn clockwise into the matrix of an MP4's track, as telephones do."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    content[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(content)


def test_turned_and_stretched_clips_are_set_right(tmp_path: Path) -> None:
    marked = grey(10)
    marked[:, :8] = 255  # white on the left
    write_video(tmp_path / "turned.mp4", [marked] * 4, 8)
    turn(tmp_path / "turned.mp4")
    clip = read_clip(tmp_path / "turned.mp4", 8, (48, 32))
    upright = next(clip.frames())
    assert upright[:6].min() > 230 and upright[10:].max() < 60, "left is up"
    assert clip.remarks == ("clip 'turned.mp4' is stored turned: it is set upright",)
    assert read_frame(tmp_path / "turned.mp4", 0.2).size == (32, 48)
    stretched = film(tmp_path / "wide.mp4", None, pixel=Fraction(2, 1))
    assert track_of(stretched).size == (32, 96)
    assert "has pixels that are not square: they are made so" in read_clip(stretched, 24, (32, 96)).remarks[0]


def test_a_single_frame_as_a_picture(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", None, late=10)
    for seconds, number in ((0, 0), (0.5, 12), (0.99, 23), (1, 24), (1.99, 47)):
        frame = read_frame(path, seconds)
        assert frame.size == (48, 32) and frame.mode == "RGB"
        assert number_of(np.asarray(frame)) == number
    assert number_of(np.asarray(read_still(f"{path}@1.5s"))) == 36
    for seconds in (2.0, 3.5, -1.0):
        with pytest.raises(InputError, match=r"the video is 2\.00 s long; give a time within it"):
            read_frame(path, seconds)
    Image.new("RGB", (5, 4), "red").save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "at@2s")
    assert read_still(tmp_path / "at@2s").size == (5, 4), "a file of that very name is a picture"
    with pytest.raises(InputError, match=r"'.*gone.mp4' does not exist"):
        read_still("gone.mp4@2s")


def test_what_is_no_clip_is_one_line(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as container:
        add_tone(container, container.add_stream("aac", rate=RATE, layout="stereo"), tone(0.2, 0))
    made = io.BytesIO()
    GrowingVideo(made, 8).append([grey(0)])
    header = header_of(made, len(made.getvalue()))
    assert header is not None
    (tmp_path / "none.mp4").write_bytes(made.getvalue()[: header.stop])  # a track without frames
    (tmp_path / "text.mp4").write_text("words " * 100)
    (tmp_path / "empty.mp4").touch()
    whole = film(tmp_path / "whole.mp4", None).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    expected = {
        "song.m4a": "holds no pictures: give another video",
        "none.mp4": "holds no pictures: give another video",
        "text.mp4": r"cannot be read \(.*\): give another video",
        "empty.mp4": r"cannot be read \(.*\): give another video",
        "cut.mp4": r"cannot be read \(.*\): give another video",
        "gone.mp4": "does not exist: check the path",
        ".": "is a folder: give a video file",
    }
    for name, words in expected.items():
        for read in (lambda path: read_clip(path, 8, SIZE), lambda path: read_frame(path, 0.5)):
            with pytest.raises(InputError, match=f"^video '.*' {words}$") as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value), name


def test_the_picture_of_a_song_is_no_video(tmp_path: Path) -> None:
    from av.stream import Disposition

    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = *SIZE, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        sound = container.add_stream("aac", rate=RATE, layout="stereo")
        container.mux(cover.encode(av.VideoFrame.from_ndarray(grey(9), format="rgb24")))
        container.mux(cover.encode(None))
        add_tone(container, sound, tone(0.2, 0))
    with pytest.raises(InputError, match="holds no pictures"):
        read_clip(tmp_path / "song.mp4", 8, SIZE)


def test_damage_inside_is_told_when_it_is_reached(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(24)]
    write_video(tmp_path / "a.mp4", noise, 8)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    (tmp_path / "a.mp4").write_bytes(content)
    clip = read_clip(tmp_path / "a.mp4", 8, (64, 64))
    with pytest.raises(InputError, match=r"^video '.*a\.mp4' .*give another video$"):
        list(clip.frames())


# --- sound ---


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of five seconds, as it is generated."""
    path = tmp_path_factory.mktemp("silent") / "growing.mp4"
    with GrowingVideo(path, 8) as video:
        for start in (0, 20):
            video.append([grey(n) for n in range(start, start + 20)])
    return path


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Clips of two seconds by name and codec, each made once."""
    folder = tmp_path_factory.mktemp("filmed")
    return cache(lambda name, codec: film(folder / f"{codec}-{name}", codec, fps=8))


def heard(path: Path) -> tuple[list[tuple[float, float]], str]:
    """When the tone sounds, in seconds, with breaks of more than 0.1 s; and the codec."""
    spans: list[tuple[float, float]] = []
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=sound.rate)
        for frame in container.decode(sound):
            for piece in resampler.resample(frame):
                loud = np.flatnonzero(np.abs(piece.to_ndarray()[0]) > 0.2)
                if len(loud):
                    begin, end = ((piece.time or 0.0) + loud[[0, -1]] / sound.rate).tolist()
                    if spans and begin - spans[-1][1] < 0.1:
                        begin = spans.pop()[0]
                    spans.append((begin, end))
        return spans, sound.codec_context.codec.canonical_name


KINDS = [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mkv", "libmp3lame"), ("a.mkv", "flac"), ("a.ts", "aac")]


@pytest.mark.parametrize(("name", "codec"), [*KINDS, ("a.mov", "pcm_s16le"), ("a.mkv", "ac3")])
@pytest.mark.parametrize(
    ("at", "start", "stop", "span"),
    [
        (0, 0, None, (1.0, 2.0)),  # extended forward
        (3.0, 0, None, (4.0, 5.0)),  # backward
        (2, 0.5, 1.5, (2.5, 3.0)),  # a part of a clip
        (3.5, 0, None, (4.5, 5.0)),  # cut where the video ends
    ],
)
def test_the_sound_is_in_its_place(
    tmp_path: Path,
    silent: Path,
    filmed: Callable[[str, str], Path],
    name: str,
    codec: str,
    at: float,
    start: float,
    stop: float | None,
    span: tuple[float, float],
) -> None:
    clip = filmed(name, codec)
    audio = audio_of(clip, start=start, stop=stop, at=at)
    assert audio is not None
    out = tmp_path / "out.mp4"
    assert finalize(silent, out, {"a": 1}, audio=[audio]) == 40
    ((begin, end),), kept = heard(out)
    held = codec != "pcm_s16le"
    assert kept == (audio.codec if held else "aac")
    half = 0.055 if codec == "flac" else 0.015  # packets are copied whole
    assert begin == pytest.approx(span[0], abs=0.005)
    assert end == pytest.approx(span[1], abs=2 * half if span[1] == 5 else half)
    assert audio_remarks([audio]) == (
        [] if held else [f"the sound of '{clip.name}' is pcm_s16le, not for MP4: it is encoded as AAC"]
    )
    with av.open(str(out)) as container:
        assert container.duration / 1e6 == pytest.approx(5.0, abs=0.01), "no longer than its pictures"
        assert container.streams.video[0].start_time == 0
    read = read_video(out)
    assert read.metadata == {"a": 1}
    assert [number_of(frame) for frame in read.frames] == list(range(40))


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_packets_are_copied(
    tmp_path: Path, silent: Path, filmed: Callable[[str, str], Path], name: str, codec: str
) -> None:
    clip = filmed(name, codec)
    audio = audio_of(clip, at=1.0)
    assert audio is not None
    finalize(silent, tmp_path / "out.mp4", audio=[audio])

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    held = packets(tmp_path / "out.mp4")
    theirs = packets(clip)
    if name.endswith(".ts"):
        theirs = [packet[7:] for packet in theirs]  # each with a header of its own, which MP4 does without
    assert held == theirs


def test_sounds_of_two_clips(tmp_path: Path, silent: Path) -> None:
    """A video between two clips: alike they are copied, unlike they are encoded together."""
    one = film(tmp_path / "one.mp4", seconds=1.5, onset=0.5)
    two = film(tmp_path / "two.mp4", seconds=1.5, onset=1.0)
    three = film(tmp_path / "three.mp4", seconds=1.5, onset=1.0, layout="mono")
    first = audio_of(one)
    for other, remarks in (
        (two, []),
        (three, ["the clips' sounds differ in codec, rate or channels: they are encoded as one in AAC"]),
    ):
        second = audio_of(other, at=3.5)
        assert first is not None and second is not None
        out = tmp_path / f"out-{other.stem}.mp4"
        finalize(silent, out, audio=[second, first])
        spans, codec = heard(out)
        assert np.allclose(spans, [(0.5, 1.5), (4.5, 5.0)], atol=0.03), spans
        assert codec == "aac" and audio_remarks([first, second]) == remarks


def test_no_sound_gives_nothing(tmp_path: Path, silent: Path) -> None:
    assert audio_of(film(tmp_path / "a.mp4", None)) is None
    finalize(silent, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio
    with pytest.raises(InputError, match="does not exist"):
        audio_of(tmp_path / "gone.mp4")


def test_two_tracks(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        tracks = [container.add_stream("aac", rate=RATE, layout="stereo") for _ in range(2)]
        for track in tracks:
            add_tone(container, track, tone(0.2, 0))
    audio = audio_of(tmp_path / "a.mkv")
    assert audio is not None and audio_remarks([audio]) == ["'a.mkv' has 2 sound tracks: one is kept"]
