"""Bad input of every kind: one clear line, exit code 2, nothing written; and what good input prints."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from framepack.cli import main
from framepack.cli.outputs import save_png
from framepack.video.io import read_video
from tiny import save_tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, so that anything written by mistake is seen."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``framepack generate`` in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        words = list(map(str, arguments))
        defaults = {"--model": str(model), "--prompt": "a red circle moves right", "--device": "cpu"}
        for name, value in defaults.items():
            if name not in words:
                words += [name, value]
        monkeypatch.setattr(sys, "argv", ["framepack", "generate", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def png_of(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def write_inputs(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "text.png").write_text("words, not pixels\n")
    (folder / "none.png").write_bytes(png_of(0, 0))
    (folder / "huge.png").write_bytes(png_of(20_000, 20_000))
    (folder / "taken.mp4").write_text("somebody else's")
    (folder / "photo.png").write_bytes(png_of(3, 3))
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "framepack.json").write_text("{}")


BAD = [
    (["--image", "{inputs}/missing.png"], "does not exist"),
    (["--image", "{inputs}"], "is a folder"),
    (["--image", "{inputs}/text.png"], "is not a picture"),
    (["--image", "{inputs}/none.png"], "has no pixels"),
    (["--image", "{inputs}/huge.png"], "400 megapixels"),
    (["--seconds", "-1"], "-1 seconds"),
    (["--seconds", "0"], "0 seconds"),
    (["--seconds", "1e9"], "1e+09 seconds"),
    (["--seconds", "inf"], "inf seconds"),
    (["--seconds", "nan"], "nan seconds"),
    (["--frames", "-5"], "-5 frames"),
    (["--frames", "99999999"], "99999999 frames"),
    (["--seconds", "1", "--frames", "8"], "give one"),
    (["--method", "sideways"], "choose one of vanilla, f1, anti-drifting, inverted"),
    (["--method", "td_f16q4_g9"], "does not parse at character"),
    (["--method", "planned"], "--untrained"),
    (["--schedule", "td_f16k4f2k2f1k"], "does not parse at character"),
    (["--schedule", "cubic"], "geometric"),
    (["--schedule", "lambda=0.5"], "lambda"),
    (["--schedule", "budget=many"], "budget=many"),
    (["--size", "640x"], "WIDTHxHEIGHT"),
    (["--size", "640x480"], "32x32"),
    (["--steps", "0"], "0 steps"),
    (["--guidance", "nan"], "guidance nan"),
    (["--seed", "-1"], "seed -1"),
    (["--dtype", "int8"], "dtype 'int8'"),
    (["--device", "abacus"], "device 'abacus'"),
    (["--step-cache", "teacache"], "choose one of first-block, mag, taylorseer"),
    (["--step-cache", "taylorseer=1"], "a whole number from 2 to 100"),
    (["--step-cache", "mag"], "mag_ratios.json"),
    (["--attention", "flash"], "choose one of native"),
    (["--model", "nobody"], "unknown model 'nobody'"),
    (["--model", "{inputs}/model"], "framepack.json"),
    (["--out", "/proc/none/v.mp4"], "cannot be written"),
    (["--out", "{inputs}/text.png/v.mp4"], "cannot be written"),
    (["--out", "{inputs}"], ".mp4"),
    (["--out", "{inputs}/taken.mp4"], "--overwrite"),
    (["--sheet", "{inputs}/photo.png"], "--overwrite"),
    (["--sheet", "/proc/none/s.png"], "cannot be written"),
    (["--workdir", "{inputs}/full"], "--workdir"),
    (["--workdir", "/proc/none"], "work folder"),
    (["--seconds", "soon"], "--seconds"),
    (["--speed", "9"], "--speed"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input(run: Run, home: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    inputs = tmp_path / "inputs"
    write_inputs(inputs)
    before = {p: p.read_bytes() for p in inputs.rglob("*") if p.is_file()}
    code, out, err = run(*(a.format(inputs=inputs) for a in arguments))
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert words in err
    assert list(home.iterdir()) == []
    assert {p: p.read_bytes() for p in inputs.rglob("*") if p.is_file()} == before


def test_generate_then_again_then_differently(run: Run, home: Path) -> None:
    Image.new("RGB", (64, 64), "orange").save(home / "start.png")
    order = ["--image", "start.png", "--frames", 13, "--out", "o/v.mp4", "--sheet", "o/s.png", "--json"]
    code, out, err = run(*order)
    assert code == 0, err
    told = json.loads(out)
    assert {"out", "frames", "fps", "sections", "context_tokens", "seconds", "peak_memory"} <= set(told)
    assert (told["out"], told["frames"], told["fps"], told["sections"]) == ("o/v.mp4", 13, 8.0, 4)
    assert told["peak_memory"] > 10_000_000 and sum(told["seconds"].values()) > 0
    video = read_video(home / "o" / "v.mp4")
    assert len(list(video.frames)) == 13 and video.metadata["config"]["seed"] == 0
    config = json.loads((home / "o" / "v.json").read_text())
    assert config == video.metadata
    with Image.open(home / "o" / "s.png") as sheet:
        assert sheet.width > 100

    made = (home / "o" / "v.mp4").read_bytes()
    code, out, err = run(*order)
    assert code == 0 and json.loads(out)["cached"] and "already done" in err
    assert (home / "o" / "v.mp4").read_bytes() == made

    code, _, err = run(*order, "--seed", 1)
    assert code == 2 and "--overwrite" in err
    workdir = next(p for p in (home / "o").iterdir() if p.is_dir())
    code, _, err = run(*order[:-5], "--out", "other.mp4", "--seed", 1, "--workdir", workdir)
    assert code == 2 and "another configuration" in err and "seed" in err
    assert (home / "o" / "v.mp4").read_bytes() == made and not (home / "other.mp4").exists()

    code, _, _ = run(*order, "--seed", 1, "--overwrite")
    assert code == 0 and (home / "o" / "v.mp4").read_bytes() != made


def test_a_sheet_replaces_its_own_run_s_and_no_other_picture(run: Run, home: Path) -> None:
    """The demo's picture carries our name too, and is not to be written over by a sheet."""
    save_png(Image.new("RGB", (64, 64), "orange"), home / "demo.png", "example")
    before = (home / "demo.png").read_bytes()
    order = ["--frames", 3, "--out", "v.mp4"]
    for extra in ([], ["--image", "demo.png"], ["--image", "../home/demo.png", "--overwrite"]):
        code, _, err = run(*order, "--sheet", "demo.png", *extra)
        assert code == 2 and "demo.png" in err and ("--image names" in err) == bool(extra), err
        assert list(home.iterdir()) == [home / "demo.png"]
        assert (home / "demo.png").read_bytes() == before
    for _ in range(2):
        assert run(*order, "--sheet", "s.png")[0] == 0
    code, _, err = run(*order[:-1], "w.mp4", "--seed", 1, "--sheet", "s.png")
    assert code == 2 and "s.png" in err and "--overwrite" in err


def test_text_to_video_goes_to_outputs(run: Run, home: Path) -> None:
    code, out, err = run("--seconds", 1, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["out"].startswith("outputs/") and told["frames"] == 8
    assert (home / told["out"]).is_file()


def test_unknown_words_are_named(run: Run) -> None:
    code, _, err = run("--frames", 2, "--prompt", "a zebra moves right")
    assert code == 0 and "zebra" in err and "warning" in err


def test_ctrl_c_ends_with_130_and_the_same_command_resumes(home: Path, model: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from framepack.cli import main; main()",
        "generate",
        "--model",
        str(model),
    ]
    command += ["--prompt", "a red circle", "--seconds", "15", "--out", "v.mp4", "--device", "cpu"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=home, env=os.environ | {"COLUMNS": "200"}
    )
    deadline = time.monotonic() + 120
    while len(list(home.glob("*/latents/*.safetensors"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in err
    assert not (home / "v.mp4").exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=home, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 120
    assert "was on disk" in done.stderr
