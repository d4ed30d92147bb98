"""``framepack evaluate`` as it is typed: a suite in its folder, videos of one's own, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from framepack.cli import app
from framepack.errors import FramePackError
from framepack.video.io import write_video
from tiny import save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def test_a_suite_from_the_command_line(model, tmp_path):
    out = tmp_path / "orders"
    typed = ["--suite", "orders", "--model", model, "--quick", "--no-train", "--only", "vanilla"]
    typed += [
        "--only",
        "f1",
        "--metric",
        "sharpness",
        "--workers",
        1,
        "--device",
        "cpu",
        "--out",
        out,
        "--json",
    ]
    told = json.loads(run(*typed, "--clips", 1))
    assert told == {"out": str(out), "rows": {"the world": 1, "vanilla": 1, "f1": 1}}
    page = (out / "report.html").read_text()
    assert "td_f16k4h4w4f2k2h2w2f1k1h1w1_g3" in page and "vanilla" in page
    assert (out / "table.csv").read_text().count("sharpness") > 4
    videos = sorted(path.relative_to(out / "rows") for path in out.rglob("*.mp4"))
    assert [str(video) for video in videos] == [
        f"{row}/clips/clip-000.mp4" for row in ("f1", "the-world", "vanilla")
    ]
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert json.loads(run(*typed, "--clips", 2))["rows"]["f1"] == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    with pytest.raises(FramePackError, match="other seed: name another --out"):
        run(*typed, "--clips", 2, "--seed", 1)
    # What was asked for lies beside the rows, for other tools.
    assert (out / "clips" / "clip-001.png").exists() and (out / "clips" / "clip-001.txt").read_text().strip()


def test_a_users_prompts(model, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "walk.txt").write_text("a red ball moves left over the sea")
    typed = ["--suite", "orders", "--model", model, "--quick", "--no-train", "--only", "f1", "--clips", 1]
    run(*typed, "--prompts", prompts, "--metric", "sharpness", "--device", "cpu", "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.mp4")] == ["walk.mp4"]


def test_scores_of_videos(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", noise, 8)
    write_video(tmp_path / "grey.mp4", np.full_like(noise, 128), 8)
    told = json.loads(run(tmp_path, "--metric", "sharpness", "--metric", "colourfulness", "--json"))
    assert [Path(entry["video"]).name for entry in told] == ["grey.mp4", "noise.mp4"]
    grey, loud = (entry["scores"] for entry in told)
    assert grey["sharpness"]["value"] < 1 < 1000 < loud["sharpness"]["value"]
    assert set(loud) == {"sharpness", "colourfulness"} and loud["sharpness"]["drift"] is not None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give videos, or --suite"),
        (("a.mp4", "--suite", "rivals"), "give videos, or --suite"),
        (("--suite", "rivalry"), "unknown suite 'rivalry'.*nearest is rivals"),
        (("--suite", "rivals", "--quick", "--full"), "one of --quick and --full"),
        (("--suite", "rivals", "--row", "ours"), "such as --row ours="),
        (("missing.mp4",), "missing.mp4"),
        (("--suite", "rivals", "--metric", "beauty"), "unknown metric 'beauty'"),
        (("--suite", "scale", "--model", "base"), "add --flops-per-second"),
    ],
)
def test_what_is_refused(arguments, told):
    with pytest.raises(FramePackError, match=told):
        run(*arguments)
