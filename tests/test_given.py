"""Pictures at any time, loops, sections made again: what is given stands, and what is beside it sees it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from framepack.cli import app
from framepack.errors import InputError, OutputError
from framepack.generation.decode import decode_frames
from framepack.generation.events import SectionFinished
from framepack.generation.given import Keyframe, check_apart, given_clip, given_picture, latent_at
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun, latents_of
from framepack.generation.saved import load_request
from framepack.generation.selection import select
from framepack.planning.planners import again, plan
from framepack.planning.timeline import Timeline
from framepack.video.io import read_video, write_video
from tiny import SIZE, look_alike, pictures_of, save_tiny, tiny_bundle, tiny_spec

FRAMES = 29
ORDERS = ("vanilla", "f1", "anti-drifting", "inverted", "inverted-plain")
BOTH_WAYS = ("anti-drifting", "inverted", "inverted-plain")

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def request(**values: object) -> GenerateRequest:
    return GenerateRequest(**({"prompt": "a red ball", "frames": FRAMES} | values))  # type: ignore[arg-type]


def job(folder: Path, **values: object) -> PreparedRun:
    return prepare(request(out=folder / "v.mp4", workdir=folder / "run", **values), tiny_bundle())


def made(run: PreparedRun) -> list[int]:
    return [e.section for e in run.events() if isinstance(e, SectionFinished) and not e.cached]


def latent(seed: int) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(picture(seed)).copy()).permute(2, 0, 1)[None, :, None].float()
    return tiny_bundle().codec.encode(pixels / 127.5 - 1)[0, :, 0]


# --- keyframes ---


@pytest.mark.parametrize("method", BOTH_WAYS)
def test_keyframes_stand_where_they_were_asked_for_and_are_seen_from_both_sides(
    method: str, tmp_path: Path
) -> None:
    keyframes = (Keyframe(at=1.5, picture=picture(1)), Keyframe(picture=picture(2)))
    run = job(tmp_path, image=picture(0), keyframes=keyframes, method=method)
    assert run.plan.timeline.known == (0, 12, FRAMES - 1)
    whole = latents_of(run, lambda event: None)[0]
    for frame, seed in ((0, 0), (12, 1), (FRAMES - 1, 2)):
        torch.testing.assert_close(whole[:, frame], latent(seed))
    for section in run.plan.sections:
        beside = {f for span in section.spans for f in (span.start - 1, span.stop)} & {0, 12, FRAMES - 1}
        assert beside <= set(section.context_frames)
    assert not run.warnings or "codec" in " ".join(run.warnings)


def test_another_keyframe_changes_what_sees_it_and_only_that(tmp_path: Path) -> None:
    def run(seed: int) -> PreparedRun:
        return job(tmp_path / "run", keyframes=(Keyframe(picture=picture(seed)),), method="anti-drifting")

    first, other = run(1), run(2)
    assert first.config.job != other.config.job
    assert first.config.sampling() == other.config.sampling()


@pytest.mark.parametrize("wanted", [None, "f1"])
def test_a_method_that_would_jump_is_replaced_or_told(wanted: str | None) -> None:
    spec = replace(tiny_spec(), default_method="f1")
    chosen = select(request(keyframes=(Keyframe(picture=picture(1)),), method=wanted), spec)
    (told,) = chosen.remarks
    if wanted is None:
        assert chosen.method == spec.methods["anti-drifting"] and "the end picture" in told
    else:
        assert chosen.method == spec.methods["f1"]
        assert "f1 sees nothing of the end picture" in told and "anti-drifting" in told
    assert select(request(image=picture(0)), spec).remarks == ()


def test_a_keyframe_of_a_strided_codec_is_one_latent_frame() -> None:
    timeline = Timeline(frames=91, fps=30, stride=4)
    places = [latent_at(Keyframe(at=at, picture=picture(0)), timeline) for at in (0.0, 0.03, 0.1, 0.17, 2.99)]
    assert places == [0, 1, 1, 2, 23]
    assert latent_at(Keyframe(picture=picture(0)), timeline) == 23
    given = [given_picture(picture(0), (SIZE, SIZE), 1, f"the keyframe at {at} s") for at in (0.03, 0.1)]
    with pytest.raises(InputError, match=r"0\.03 s and the keyframe at 0\.1 s .* 0\.13 s apart"):
        check_apart(given, timeline)


def test_a_clip_fills_whole_latent_frames() -> None:
    frames = np.zeros((9, SIZE, SIZE, 3), np.uint8)
    assert given_clip(frames, 0, 4, "a clip").frames == range(3)
    assert given_clip(frames[:8], 5, 4, "a clip").frames == range(5, 7)
    assert given_clip(frames, 0, 1, "a clip").frames == range(9)


@pytest.mark.parametrize(
    ("text", "found"),
    [("2.5=a.png", (2.5, "a.png")), ("3s=b=c.png", (3.0, "b=c.png")), (" 0 = x.png", (0.0, "x.png"))],
)
def test_keyframes_as_they_are_written(text: str, found: tuple[float, str]) -> None:
    keyframe = Keyframe.parse(text)
    assert (keyframe.at, str(keyframe.picture)) == found


@pytest.mark.parametrize("text", ["a.png", "=a.png", "-1=a.png", "nan=a.png", "2.5="])
def test_what_is_no_keyframe(text: str) -> None:
    with pytest.raises(InputError, match="SECONDS=PICTURE"):
        Keyframe.parse(text)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"keyframes": (Keyframe(at=9.0, picture=picture(1)),)}, r"keyframe at 9 s: the video has 3\.62 s"),
        (
            {"image": picture(0), "keyframes": (Keyframe(at=0.05, picture=picture(1)),)},
            "start picture and the",
        ),
        ({"keyframes": (Keyframe(at=1.0, picture=Path("none.png")),)}, r"none\.png"),
        ({"loop": True, "frames": 3}, "a loop of 1 section"),
        ({"loop": True, "keyframes": (Keyframe(picture=picture(1)),)}, "ends where it begins"),
    ],
)
def test_what_cannot_be_given(values: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        select(request(**values), tiny_spec())


# --- loops ---


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("method", BOTH_WAYS)
def test_a_loop_leads_to_its_own_start(method: str, start: bool, tmp_path: Path) -> None:
    run = job(tmp_path, method=method, loop=True, image=picture(0) if start else None)
    assert run.plan.shown.frames == FRAMES and run.plan.loop == 3 + start
    whole = latents_of(run, lambda event: None)
    assert whole.shape[2] == FRAMES
    last = next(s for s in run.plan.sections if FRAMES - 1 in s.frames)
    assert FRAMES in last.context_frames, "the section at the end sees the start"
    made_first = run.plan.sections[0]
    assert made_first.frames[0] == int(start) and not {*made_first.context_frames} - {0}
    written = sorted(frame for section in run.plan.sections for frame in section.frames)
    assert written == list(range(int(start), FRAMES))
    assert [section.index for section in run.plan.sections] == list(range(len(run.plan.sections)))


def test_a_loop_sees_its_start_as_it_was_made(tmp_path: Path) -> None:
    """With other frames where the loop closes, the last section would be another one."""
    run = job(tmp_path, method="anti-drifting", loop=True)
    closed = latents_of(run, lambda event: None)
    opened = job(tmp_path / "open", method="anti-drifting", frames=FRAMES)
    assert not torch.equal(closed[:, :, -3:], latents_of(opened, lambda event: None)[:, :, -3:])


def test_a_loop_is_made_by_a_method_that_sees_its_end() -> None:
    spec = replace(tiny_spec(), default_method="f1")
    chosen = select(request(loop=True), spec)
    assert chosen.method == spec.methods["anti-drifting"]
    assert chosen.remarks == (
        "made by method anti-drifting: f1 sees nothing of the start that its end leads to from the section "
        "beside it",
    )
    (told,) = select(request(loop=True, method="vanilla"), spec).remarks
    assert "vanilla sees nothing of the start" in told and "with anti-drifting it does not" in told
    assert select(request(loop=True, image=picture(0), method="inverted"), spec).remarks == ()


def test_a_loop_of_seconds_ends_on_a_whole_latent_frame() -> None:
    timeline = Timeline(frames=91, fps=30, stride=4)
    method = tiny_spec().methods["anti-drifting"]
    with pytest.raises(InputError, match="ask for 93"):
        plan(timeline, method, loop=True)
    assert plan(replace(timeline, frames=93), method, loop=True).shown.frames == 93


# --- sections made again ---


@pytest.mark.parametrize("method", ORDERS)
def test_a_section_made_again_alone_leaves_all_others(method: str, tmp_path: Path) -> None:
    run = job(tmp_path, method=method)
    before = latents_of(run, lambda event: None)
    run.redo(4, seed=7, alone=True)
    assert made(job(tmp_path, method=method)) == [4]
    after = latents_of(job(tmp_path, method=method), lambda event: None)
    own = list(run.plan.sections[4].frames)
    others = [frame for frame in range(FRAMES) if frame not in own]
    assert torch.equal(before[:, :, others], after[:, :, others])
    assert not torch.equal(before[:, :, own], after[:, :, own])
    run.restore(4)
    assert made(job(tmp_path, method=method)) == []
    assert torch.equal(latents_of(job(tmp_path, method=method), lambda event: None), before)


@pytest.mark.parametrize("method", BOTH_WAYS)
def test_a_section_made_again_sees_what_comes_after_it(method: str, tmp_path: Path) -> None:
    run = job(tmp_path, method=method)
    section = again(run.plan, run.plan.sections[4])
    seen = set(section.context_frames)
    for span in section.spans:
        assert span.start - 1 in seen and span.stop in seen
    assert not seen & set(section.frames)


def test_two_sections_made_again_see_each_other_in_turn(tmp_path: Path) -> None:
    list(job(tmp_path, method="anti-drifting").events())
    job(tmp_path, method="anti-drifting").redo(3, alone=True)
    list(job(tmp_path, method="anti-drifting").events())
    job(tmp_path, method="anti-drifting").redo(4, alone=True)
    assert made(job(tmp_path, method="anti-drifting")) == [4], "the first one keeps what it was made from"


def test_a_section_made_again_twice_leaves_what_saw_its_first_time(tmp_path: Path) -> None:
    """The second saw what the first was by then; nobody asked for another one."""

    def redo(section: int, *, restore: bool = False) -> list[int]:
        run = job(tmp_path, method="anti-drifting")
        if restore:
            run.restore(section)
        else:
            run.redo(section, alone=True)
        return made(job(tmp_path, method="anti-drifting"))

    def other() -> torch.Tensor:
        return latents_of(job(tmp_path, method="anti-drifting"), lambda event: None)[:, :, second]

    run = job(tmp_path, method="anti-drifting")
    list(run.events())
    second = list(run.plan.sections[4].frames)
    first = latents_of(run, lambda event: None)
    assert [redo(3), redo(4)] == [[3], [4]]
    kept = other()
    assert redo(3) == [3] and torch.equal(other(), kept)
    assert redo(3, restore=True) == [] and torch.equal(other(), kept)
    assert redo(4, restore=True) == []
    assert torch.equal(latents_of(job(tmp_path, method="anti-drifting"), lambda event: None), first)
    assert json.loads((tmp_path / "v.json").read_text())["edits"] == []


def test_an_edit_stays_with_its_section_when_the_story_changes_the_order(tmp_path: Path) -> None:
    def planned(prompt: str) -> PreparedRun:
        return job(tmp_path, method="planned", untrained=True, prompt=prompt)

    run = planned("a red ball")
    list(run.events())
    changed = planned("[0s: a red ball] [1.5s: a blue box]")
    where = {section.frames: section for section in changed.plan.sections}
    index, moved = next(
        (section.index, where[section.frames])
        for section in run.plan.sections
        if where[section.frames].index != section.index
    )
    run.redo(index, prompt="a blue star", alone=True)
    list(run.events())
    list(changed.events())
    (edit,) = json.loads((tmp_path / "v.json").read_text())["edits"]
    assert (edit["section"], edit["prompt"]) == (moved.index, "a blue star")


def test_the_same_seed_makes_the_same_section(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        run = job(tmp_path, method="vanilla")
        run.redo(9, seed=5)
        found.append(latents_of(job(tmp_path, method="vanilla"), lambda event: None))
    assert torch.equal(*found)


# --- the command line ---


def test_redo_from_the_folder_alone(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    picture(3).save(tmp_path / "a.png")
    home, run = tmp_path / "v.mp4", CliRunner().invoke
    say = ["generate", "--model", str(model), "--prompt", "a red ball", "--frames", str(FRAMES)]
    say += ["--end-image", str(tmp_path / "a.png"), "--keyframe", f"1={tmp_path / 'a.png'}"]
    say += ["--method", "anti-drifting", "--workdir", str(tmp_path / "run"), "--out", str(home), "--json"]
    assert run(app, say).exit_code == 0
    asked = load_request(tmp_path / "run")
    assert asked.keyframes == (
        Keyframe(at=1.0, picture=tmp_path / "a.png"),
        Keyframe(picture=tmp_path / "a.png"),
    )
    before = pictures_of(home)
    done = run(app, ["redo", str(tmp_path / "run"), "--at", "0.5", "--seed", "4", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["section"] == 2 and not told["cached"] and not look_alike(pictures_of(home), before)
    restored = run(app, ["redo", str(tmp_path / "run"), "--section", "2", "--restore", "--json"])
    assert restored.exit_code == 0 and look_alike(pictures_of(home), before)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--section", "99"], "this video has 1 to"),
        (["--at", "99"], "this video has 0 to"),
        (["--at", "inf"], "this video has 0 to"),
        (["--at=-1"], "this video has 0 to"),
        (["--at", "0", "--seed", "1"], "shows what was given"),
        (["--section", "1", "--at", "1"], "give one of"),
        ([], "give one of"),
        (["--section", "1", "--restore", "--seed", "1"], "leave --prompt"),
        (["--section", "1", "--seed", "-1"], "seed -1"),
    ],
)
def test_what_cannot_be_made_again(words: list[str], told: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    picture(3).save(tmp_path / "a.png")
    say = ["generate", "--model", str(model), "--prompt", "a red ball", "--frames", "7"]
    say += [
        "--image",
        str(tmp_path / "a.png"),
        "--workdir",
        str(tmp_path / "run"),
        "--out",
        str(tmp_path / "v.mp4"),
    ]
    assert CliRunner().invoke(app, say).exit_code == 0
    found = CliRunner().invoke(app, ["redo", str(tmp_path / "run"), *words])
    assert isinstance(found.exception, InputError) and told in str(found.exception)


def test_redo_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    say = [
        "generate",
        "--prompt",
        "a red ball",
        "--model",
        "model",
        "--frames",
        "9",
        "--workdir",
        "run",
        "--out",
        "v.mp4",
    ]
    assert CliRunner().invoke(app, say).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = CliRunner().invoke(app, ["redo", "../run", "--section", "1"])
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.mark.parametrize("name", ["growing.mp4", "preview.mp4", "request.mp4"])
def test_a_video_is_not_put_where_the_run_has_its_own(name: str, tmp_path: Path) -> None:
    for overwrite in (False, True):
        asked = request(out=tmp_path / "run" / name, workdir=tmp_path / "run", overwrite=overwrite)
        with pytest.raises(OutputError, match="the work folder has for itself: choose another name"):
            prepare(asked, tiny_bundle())
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no request"):
        load_request(tmp_path)
    (tmp_path / "request.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        load_request(tmp_path)


# --- clips ---


def clip(folder: Path, frames: int, fps: float = 8, seed: int = 0, size: int = SIZE) -> Path:
    """A video of slowly changing noise."""
    path = folder / f"clip-{frames}-{seed}-{size}.mp4"
    coarse = np.random.default_rng(seed).integers(0, 256, (2, size // 8, size // 8, 3))
    first, last = coarse.repeat(8, 1).repeat(8, 2)
    shares = np.linspace(0, 1, frames)[:, None, None, None]
    write_video(path, ((1 - shares) * first + shares * last).astype(np.uint8), fps, overwrite=True)
    return path


def decoded(path: Path) -> np.ndarray:
    return np.stack([*read_video(path).frames])


@pytest.mark.parametrize("method", ["vanilla", "anti-drifting", "inverted"])
def test_a_clip_goes_on(method: str, tmp_path: Path) -> None:
    source = clip(tmp_path, 10)
    run = job(tmp_path, from_clip=source, frames=12, method=method)
    assert run.plan.shown.frames == 22 and run.plan.shown.known == tuple(range(10))
    whole = latents_of(run, lambda event: None)
    own = torch.from_numpy(decoded(source)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    torch.testing.assert_close(whole[:, :, :10], tiny_bundle().codec.encode(own))
    first = next(s for s in run.plan.sections if 10 in s.frames)
    assert 9 in first.context_frames


@pytest.mark.parametrize("both", [False, True])
def test_a_video_leads_to_a_clip(both: bool, tmp_path: Path) -> None:
    before = clip(tmp_path, 5) if both else None
    run = job(tmp_path, from_clip=before, to_clip=clip(tmp_path, 8, seed=1), frames=12)
    start = 5 if both else 0
    assert run.plan.shown.frames == start + 12 + 8
    assert run.plan.shown.known == (*range(start), *range(start + 12, start + 20))
    list(run.events())
    frames = decoded(tmp_path / "v.mp4")
    assert len(frames) == start + 20


def test_copied_clips_are_shown_as_they_are(tmp_path: Path) -> None:
    place = clip(tmp_path, 6), clip(tmp_path, 8, seed=1)
    run = job(tmp_path, from_clip=place[0], to_clip=place[1], frames=9, copy_clips=True)
    latents = latents_of(run, lambda event: None)
    shown = np.stack(
        [*run.shown(decode_frames(run.bundle.codec, lambda at: latents[:, :, list(at)], run.plan.shown))]
    )
    assert np.array_equal(shown[:6], decoded(place[0])) and np.array_equal(shown[15:], decoded(place[1]))
    plain = job(tmp_path / "plain", from_clip=place[0], to_clip=place[1], frames=9)
    assert plain.config.job != run.config.job and plain.config.sampling() == run.config.sampling()


def test_a_clip_of_another_rate_and_size_is_converted_and_said(tmp_path: Path) -> None:
    run = job(tmp_path, from_clip=clip(tmp_path, 24, fps=16, size=64), frames=6)
    assert run.plan.shown.frames == 12 + 6
    told = " ".join(run.warnings)
    assert "16 frames per second" in told and "64 x 64" in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"from_clip": Path("none.mp4")}, r"none\.mp4' does not exist"),
        ({"from_clip": Path(__file__)}, "test_given"),
        ({"from_clip": Path("a.mp4"), "image": picture(0)}, "give one"),
        ({"to_clip": Path("a.mp4"), "keyframes": (Keyframe(picture=picture(0)),)}, "give one"),
    ],
)
def test_clips_that_cannot_be_used(values: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        select(request(**values), tiny_spec())


def test_a_loops_first_section_is_not_made_again_alone(tmp_path: Path) -> None:
    run = job(tmp_path, method="anti-drifting", loop=True)
    list(run.events())
    with pytest.raises(InputError, match="where its end leads"):
        run.redo(0, alone=True)
    run.redo(0)
    assert 0 in made(job(tmp_path, method="anti-drifting", loop=True))
