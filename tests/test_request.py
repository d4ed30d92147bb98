"""Bad input is one clear line, told before anything is written; equal requests are the same run."""

from __future__ import annotations

import copy
import dataclasses
import json
import struct
import zlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framepack.errors import (
    FramePackError,
    InputError,
    NotationError,
    OutputError,
    RunConflictError,
    UnknownNameError,
    UntrainedMethodError,
)
from framepack.generation.config import RunConfig
from framepack.generation.events import Finished
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun
from framepack.generation.selection import select
from framepack.models.shift import RELEASED
from tiny import SIZE, tiny_bundle, tiny_spec


def ask(folder: Path, **values: object) -> GenerateRequest:
    return GenerateRequest(**({"prompt": "a red ball", "frames": 7, "out": folder / "v.mp4"} | values))  # type: ignore[arg-type]


def picture(path: Path, size: tuple[int, int] = (48, 48), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def png_of_size(path: Path, width: int, height: int) -> Path:
    """A PNG whose header states a size that nobody has memory for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def finish(run: PreparedRun) -> PreparedRun:
    for _ in run.events():
        pass
    return run


BAD: dict[str, tuple[dict[str, object], type[FramePackError], str]] = {
    "no seconds": ({"seconds": 0.0, "frames": None}, InputError, "0 seconds"),
    "negative seconds": ({"seconds": -3.0, "frames": None}, InputError, "-3 seconds"),
    "absurd seconds": ({"seconds": 1e9, "frames": None}, InputError, "at most 86,400"),
    "endless seconds": ({"seconds": float("inf"), "frames": None}, InputError, "at most 86,400"),
    "seconds not a number": ({"seconds": float("nan"), "frames": None}, InputError, "nan seconds"),
    "no frames": ({"frames": 0}, InputError, "0 frames"),
    "negative frames": ({"frames": -1}, InputError, "-1 frames"),
    "absurd frames": ({"frames": 5_000_000}, InputError, "at most 86,400"),
    "both lengths": ({"seconds": 1.0}, InputError, "give one"),
    "unknown method": ({"method": "sideways"}, UnknownNameError, "vanilla, f1"),
    "method that does not parse": ({"method": "td_f16k4_q9"}, NotationError, "td_f16k4_>>>q9"),
    "schedule that does not parse": ({"schedule": "td_f16k4f2zz"}, NotationError, ">>>"),
    "unknown schedule": ({"schedule": "sparse"}, UnknownNameError, "geometric"),
    "schedule rule without a number": ({"schedule": "lambda=two"}, InputError, "lambda=2"),
    "lambda of 1": ({"schedule": "lambda=1"}, InputError, "above 1"),
    "size in words": ({"size": "large"}, InputError, f"{SIZE}x{SIZE}"),
    "no size": ({"size": "0x0"}, InputError, "0x0"),
    "size not trained": ({"size": "64x64"}, InputError, "--untrained"),
    "size off the grid": ({"size": "33x33", "untrained": True}, InputError, "multiples of 8"),
    "size beyond reason": ({"size": "8000x8000", "untrained": True}, InputError, "multiples of 8, 8 to"),
    "negative seed": ({"seed": -1}, InputError, "seed -1"),
    "seed too large": ({"seed": 2**63}, InputError, "seed"),
    "no steps": ({"steps": 0}, InputError, "1 to 1000"),
    "guidance not a number": ({"guidance": float("nan")}, InputError, "guidance nan"),
    "negative guidance": ({"guidance": -1.0}, InputError, "guidance -1"),
    "endless prompt": ({"prompt": "a " * 20_000}, InputError, "40000 characters"),
    "prompt of broken bytes": ({"prompt": "a red ball \udcff"}, InputError, "not UTF-8 at character 12"),
    "negative prompt of broken bytes": ({"negative_prompt": "\ud83d"}, InputError, "negative prompt is not"),
    "unknown dtype": ({"dtype": "int3"}, InputError, "bfloat16"),
    "output of another kind": ({"out": "v.gif"}, OutputError, "mp4"),
    "output a folder": ({"out": "folder.mp4"}, OutputError, "is a folder"),
    "output inside a file": ({"out": "note.txt/v.mp4"}, OutputError, "is not a folder"),
    "output where nobody writes": ({"out": "/proc/v.mp4"}, OutputError, "cannot be written"),
    "work folder a file": ({"workdir": "note.txt"}, OutputError, "is a file"),
    "work folder inside a file": ({"workdir": "note.txt/run"}, OutputError, "is not a folder"),
    "work folder where nobody writes": ({"workdir": "/proc/run"}, OutputError, "cannot be written"),
    "work folder of others": ({"workdir": "folder.mp4"}, RunConflictError, "other files"),
    "image missing": ({"image": "none.png"}, InputError, "does not exist"),
    "image a text": ({"image": "note.txt"}, InputError, "not a picture"),
    "image a folder": ({"image": "folder.mp4"}, InputError, "is a folder"),
    "image of no pixels": ({"image": "none-0x0.png"}, InputError, "no pixels"),
    "image of 400 megapixels": ({"image": "huge.png"}, InputError, "400 megapixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, kind, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("some text")
    Path("folder.mp4").mkdir()
    Path("folder.mp4/keep").touch()
    picture(Path("start.png"))
    png_of_size(Path("none-0x0.png"), 0, 0)
    png_of_size(Path("huge.png"), 20_000, 20_000)
    before = tree(tmp_path)
    paths = {name: Path(v) for name, v in values.items() if name in ("out", "workdir", "image")}  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        prepare(ask(tmp_path, **values | paths), tiny_bundle())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["bundeled", "no/such/folder"])
def test_an_unknown_model_is_told_before_loading(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown model"):
        prepare(ask(tmp_path, model=name))
    assert not list(tmp_path.iterdir())


def test_an_untrained_method_names_the_trained_ones(tmp_path: Path) -> None:
    for values in ({"method": "planned"}, {"method": "td_f4k2f1k1_g3"}, {"schedule": "budget=2.625"}):
        with pytest.raises(UntrainedMethodError, match=r"tiny was trained for vanilla \(.*--untrained"):
            prepare(ask(tmp_path, **values), tiny_bundle())
    assert prepare(ask(tmp_path, method="planned", untrained=True), tiny_bundle()).method.order == "planned"


def test_a_file_of_another_origin_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"holiday")
    with pytest.raises(OutputError, match=r"not of this run.*--overwrite"):
        prepare(ask(tmp_path), tiny_bundle())
    assert tree(tmp_path) == {str(tmp_path / "v.mp4"): b"holiday"}
    finish(prepare(ask(tmp_path, overwrite=True), tiny_bundle()))
    # Now it is our own: no need to say so again.
    assert (tmp_path / "v.mp4").stat().st_size > 1000
    finish(prepare(ask(tmp_path), tiny_bundle()))
    with pytest.raises(OutputError, match="not of this run"):
        prepare(ask(tmp_path, seed=5), tiny_bundle())


def test_a_json_of_another_origin_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('{"config": 3}')
    with pytest.raises(OutputError, match=r"v\.json.*--overwrite"):
        prepare(ask(tmp_path), tiny_bundle())
    assert (tmp_path / "v.json").read_text() == '{"config": 3}'


def test_a_work_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    finish(prepare(ask(tmp_path, workdir=tmp_path / "run"), tiny_bundle()))
    before = tree(tmp_path)
    with pytest.raises(RunConflictError, match="seed 0, not 1"):
        prepare(ask(tmp_path, workdir=tmp_path / "run", seed=1, out=tmp_path / "w.mp4"), tiny_bundle())
    assert tree(tmp_path) == before


# --- what a request comes to ---


def config() -> RunConfig:
    return RunConfig(
        model_digest="ab",
        method=tiny_spec().methods["f1"].to_json(),
        frames=9,
        fps=8.0,
        height=32,
        width=32,
        seed=1,
        steps=2,
        guidance=1.5,
        solver="euler",
        shift=RELEASED,
        prompt="星 a star",
        negative_prompt="",
        image=None,
        device="cpu",
        dtype="float32",
    )


def test_a_configuration_survives_json() -> None:
    assert json.loads(json.dumps(config().to_json())) == config().to_json()


@pytest.mark.parametrize("name", [field.name for field in fields(RunConfig)])
def test_every_part_of_a_configuration_tells_runs_apart(name: str) -> None:
    old = getattr(config(), name)
    other = {
        "method": {"order": "x"},
        "cues": [{"at": 0.0, "prompt": "x"}],
        "image": "cd",
        "given": ((3, "gh"),),
        "shift": 2.0,
        "embedded_guidance": 10.0,
        "loras": "ef",
        "step_cache": {"kind": "first-block", "value": 0.05},
        "attention": "native",
    }
    new = other[name] if name in other else old + "x" if isinstance(old, str) else old + 1
    assert replace(config(), **{name: new}).job != config().job


def test_equal_requests_are_the_same_run(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    same = picture(tmp_path / "b.bmp")
    other = picture(tmp_path / "c.png", seed=1)
    jobs = [
        prepare(ask(tmp_path, image=path, frames=None, seconds=1.0), tiny_bundle()).config.job
        for path in (image, same, other)
    ]
    assert jobs[0] == jobs[1] != jobs[2]
    spelled = ask(tmp_path, image=image, frames=8, steps=2, guidance=1.5, method="inverted", size="32x32")
    assert prepare(spelled, tiny_bundle()).config.job == jobs[0]


def test_what_does_not_touch_the_video_does_not_make_another_run(tmp_path: Path) -> None:
    renamed = dataclasses.replace(tiny_bundle(), spec=dataclasses.replace(tiny_spec(), name="another"))
    assert prepare(ask(tmp_path), renamed).config == prepare(ask(tmp_path), tiny_bundle()).config
    plain = ask(tmp_path, guidance=1.0)
    negative = ask(tmp_path, guidance=1.0, negative_prompt="blue")
    assert prepare(negative, tiny_bundle()).config == prepare(plain, tiny_bundle()).config
    assert "no part at guidance 1" in prepare(negative, tiny_bundle()).warnings[0]
    guided = replace(negative, guidance=1.5)
    assert prepare(guided, tiny_bundle()).config.negative_prompt == "blue"
    assert prepare(guided, tiny_bundle()).warnings == ()


def test_another_version_of_sampling_is_another_run_and_makes_its_own_sections() -> None:
    old = config()
    new = replace(old, sampling_version=old.sampling_version + 1)
    assert new.job != old.job and new.sampling() != old.sampling()


def test_places_follow_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = prepare(ask(tmp_path, out=None), tiny_bundle())
    job = run.config.job
    assert run.places.out == Path(f"outputs/{job}.mp4")
    assert run.places.config == Path(f"outputs/{job}.json")
    assert run.places.workdir == Path(f"outputs/{job}")
    assert not Path("outputs").exists()


def test_auto_size_is_the_bucket_nearest_in_shape(tmp_path: Path) -> None:
    wide = select(ask(tmp_path, image=picture(tmp_path / "w.png", (90, 50))), tiny_spec())
    assert wide.size == (24, 40) and wide.grid == (3, 5) and wide.picture is not None
    assert wide.picture.size == (40, 24)
    assert select(ask(tmp_path, size="40x24"), tiny_spec()).size == (24, 40)
    assert select(ask(tmp_path), tiny_spec()).size == (SIZE, SIZE)
    assert select(ask(tmp_path, size="64x32", untrained=True), tiny_spec()).size == (32, 64)


def test_five_seconds_when_no_length_is_given(tmp_path: Path) -> None:
    assert select(ask(tmp_path, frames=None), tiny_spec()).timeline.frames == 40


def test_warnings_name_unknown_words_and_poor_pictures(tmp_path: Path) -> None:
    request = ask(tmp_path, prompt="a red ball and a zeppelin", image=picture(tmp_path / "noise.png"))
    words, psnr = prepare(request, tiny_bundle()).warnings
    assert "zeppelin" in words and "ball" in words.split("It knows")[1]
    assert " dB PSNR" in psnr
    (left_out,) = prepare(ask(tmp_path, prompt="赤いボールと青い四角"), tiny_bundle()).warnings
    assert left_out == "words left out, for another of their kind was taken: box, blue"
    assert prepare(ask(tmp_path), tiny_bundle()).warnings == ()


def test_an_untrained_schedule_brings_its_kernels_and_runs(tmp_path: Path) -> None:
    run = prepare(ask(tmp_path, schedule="geometric", untrained=True), copy.deepcopy(tiny_bundle()))
    *_, last = run.events()
    assert isinstance(last, Finished) and last.frames == 7


def test_one_frame_is_the_picture_itself(tmp_path: Path) -> None:
    *_, last = prepare(ask(tmp_path, frames=1, image=picture(tmp_path / "a.png")), tiny_bundle()).events()
    assert isinstance(last, Finished) and last.frames == 1
