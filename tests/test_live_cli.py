"""``framepack live`` as people use it: to a file, through a pipe, told of other prompts, and interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from framepack.cli import app, main
from framepack.generation.live import Live
from framepack.generation.request import GenerateRequest
from framepack.models.device import pick_dtype
from framepack.models.loading import load_bundle
from framepack.models.source import resolve_model
from framepack.video.growing import GrowingVideo
from framepack.video.io import read_video, write_video
from tiny import SECTION, SIZE, save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FIRST, SECOND = "a red ball", "a blue star over the sea"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def words(model: Path, *more: object) -> list[str]:
    return ["live", "--model", str(model), "--device", "cpu", "--method", "vanilla", *map(str, more)]


def frames_of(content: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(content)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def apart(one: bytes, other: bytes, first: int = 0) -> float:
    """Mean difference of two videos' frames from a section on.

    Of such small pictures x264 does not always make the same bytes: a section may be up to 2 apart from
    itself, and is 3 or more from one of another prompt.
    """
    shown = [np.stack(frames_of(content)).astype(float)[first * SECTION :] for content in (one, other)]
    assert shown[0].shape == shown[1].shape
    return float(np.abs(shown[0] - shown[1]).mean())


def made(model: Path, prompts: list[str]) -> bytes:
    """The file that a run leaves whose sections have these prompts."""
    import torch

    device = torch.device("cpu")
    bundle = load_bundle(resolve_model(str(model)), device, pick_dtype("auto", device))
    video = Live(GenerateRequest(prompt=prompts[0], method="vanilla", device="cpu"), bundle)
    file = io.BytesIO()
    sections = video.sections()
    with GrowingVideo(file, video.fps, {"prompt": prompts[0]}) as growing:
        for prompt in prompts:
            video.prompt = prompt
            growing.append(next(sections).frames)
    return file.getvalue()


# --- in this process ---


def test_a_file_of_the_length_asked_for(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.mp4"
    arguments = words(model, "--prompt", FIRST, "--seconds", 3, "--fast", "--out", out, "--json")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    video = read_video(out)
    assert sum(1 for _ in video.frames) == 24 and video.fps == 8 and video.metadata == {"prompt": FIRST}
    told = json.loads(done.stdout)
    assert (told["out"], told["frames"], told["fps"]) == (str(out), 24, 8)
    assert told["made_per_second"] > 0 and told["memory_last"] > 1e6
    assert f"ended {out}" in done.stderr
    again = CliRunner().invoke(app, arguments)
    assert "exists: choose another name or pass --overwrite" in str(again.exception)
    assert CliRunner().invoke(app, [*arguments, "--overwrite", "--seconds", "1"]).exit_code == 0
    assert sum(1 for _ in read_video(out).frames) == 8


def test_it_goes_on_from_a_picture_and_is_as_long_as_asked(model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    for seconds, frames in ((0.01, 1), (0.5, 4), (0.6, 5)):
        out = tmp_path / f"{frames}.mp4"
        say = words(
            model, "--prompt", FIRST, "--image", tmp_path / "a.png", "--seconds", seconds, "--out", out
        )
        assert CliRunner().invoke(app, [*say, "--fast"]).exit_code == 0
        assert sum(1 for _ in read_video(out).frames) == frames


def test_it_is_no_faster_than_it_is_seen(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a section ahead, by a clock on which making it takes no time."""
    slept: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    clocks = SimpleNamespace(perf_counter=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr("framepack.cli.live.time", clocks)
    say = words(model, "--prompt", FIRST, "--seconds", 3, "--out", tmp_path / "x.mp4")
    assert CliRunner().invoke(app, say).exit_code == 0
    # Eight sections of 3 frames: after each but the first and the last it waits for one to be seen.
    assert slept == pytest.approx([SECTION / 8] * 6)


def test_to_standard_output(model: Path) -> None:
    say = words(model, "--prompt", FIRST, "--out", "-", "--fast", "--seconds", 3)
    done = CliRunner().invoke(app, say)
    assert done.exit_code == 0 and apart(done.stdout_bytes, made(model, [FIRST] * 8)) < 2
    assert len(frames_of(done.stdout_bytes)) == 24 and "ended  24 frames, 3.00 s" in done.stderr


def test_interrupted_before_there_is_anything_to_be_seen(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sections(self: Live) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Live, "sections", sections)
    monkeypatch.setattr(
        sys, "argv", ["framepack", *words(model, "--prompt", FIRST, "--out", tmp_path / "x.mp4", "--json")]
    )
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 130 and said.out == "" and "interrupted" in said.err
    assert not list(tmp_path.iterdir())


def test_an_interrupt_waits_for_what_is_being_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GrowingVideo.append

    def append(self: GrowingVideo, frames: np.ndarray) -> int:
        if self.frames == 2 * SECTION:
            signal.raise_signal(signal.SIGINT)
        return real(self, frames)

    monkeypatch.setattr(GrowingVideo, "append", append)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "x.mp4"
    done = CliRunner().invoke(app, words(model, "--prompt", FIRST, "--out", out, "--fast", "--json"))
    assert done.exit_code == 0 and json.loads(done.stdout)["frames"] == 3 * SECTION
    assert len(frames_of(out.read_bytes())) == 3 * SECTION and signal.getsignal(signal.SIGINT) is before


# --- as a process ---


class Process:
    """A real one, its standard error read as it comes."""

    def __init__(self, arguments: list[str], **streams: int) -> None:
        command = [sys.executable, "-m", "framepack", *arguments]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            **streams,  # type: ignore[arg-type]
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip("\n"))

    @property
    def prompts(self) -> list[str]:
        """Of the sections so far."""
        return [line.split("MiB  ")[1] for line in self.lines if line.startswith("section ")]

    def wait_for(self, sections: int, prompt: str) -> None:
        deadline = time.monotonic() + 240
        while self.prompts.count(prompt) < sections:
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines
            time.sleep(0.01)

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join(60)
        return code


@pytest.fixture
def ended() -> Iterator[list[Process]]:
    """Processes that are not to outlive the test."""
    started: list[Process] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_a_typed_line_is_the_prompt_and_an_interrupt_the_end(
    model: Path, tmp_path: Path, ended: list[Process]
) -> None:
    """Standard input stays open: a thread that waits for a line must not keep the process from ending."""
    out = tmp_path / "x.mp4"
    running = Process(
        words(model, "--prompt", FIRST, "--out", out, "--json", "--fast"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    ended.append(running)
    running.wait_for(2, FIRST)
    assert running.process.stdin is not None and running.process.stdout is not None
    running.process.stdin.write(b"\n" + b"[0s: twice \xff\n" + SECOND.encode() + b"\n")
    running.process.stdin.flush()
    running.wait_for(2, SECOND)
    running.process.send_signal(signal.SIGINT)
    told = json.loads(running.process.stdout.read())
    assert running.end() == 0, running.lines
    prompts = running.prompts
    switch = prompts.index(SECOND)
    assert prompts == [FIRST] * switch + [SECOND] * (len(prompts) - switch)
    assert [line for line in running.lines if "warning" in line] == [
        "warning: the prompt is not UTF-8 at character 12: give it as UTF-8 text"
    ]
    assert "Traceback" not in "\n".join(running.lines) and "Fatal" not in "\n".join(running.lines)
    content = out.read_bytes()
    assert told["frames"] == len(frames_of(content)) == SECTION * len(prompts)
    right = apart(content, made(model, prompts), switch - 1)
    for wrong in (switch - 1, switch + 1):
        others = [FIRST] * wrong + [SECOND] * (len(prompts) - wrong)
        assert right < 0.6 * apart(content, made(model, others), switch - 1), "by the prompt told with it"


def test_through_a_pipe_until_the_player_is_closed(model: Path, ended: list[Process]) -> None:
    running = Process(
        words(model, "--prompt", FIRST, "--out", "-", "--fast"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    ended.append(running)
    assert running.process.stdout is not None
    content = b""
    while len(content) < 20_000:
        content += os.read(running.process.stdout.fileno(), 4096)
    running.process.stdout.close()
    assert running.end() == 0, running.lines
    assert "Traceback" not in "\n".join(running.lines) and "BrokenPipe" not in "\n".join(running.lines)
    shown = np.stack(frames_of(content)).astype(float)
    whole = np.stack(frames_of(made(model, [FIRST] * (1 + len(shown) // SECTION)))).astype(float)
    # Both are lossy, each in its own way, and of noise.
    near, apart = (np.abs(shown - other[: len(shown)]).mean() for other in (whole, whole[::-1]))
    assert len(shown) >= SECTION and near < min(6, apart / 2)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --prompt"),
        (["--prompt", FIRST, "--out", "-", "--json"], "--out - and --json"),
        (["--prompt", FIRST, "--method", "inverted"], "choose vanilla or f1"),
        (["--prompt", "[0s: a] [2s: b]"], "begins with one prompt"),
        (["--prompt", FIRST, "--seconds", "0"], "0 seconds"),
        (["--prompt", FIRST, "--seconds", "nan"], "nan seconds"),
        (["--prompt", FIRST, "--seconds", "inf"], "inf seconds"),
        (["--prompt", FIRST, "--seconds", "-3"], "-3 seconds"),
        (["--prompt", FIRST, "--out", "x.avi"], "does not end in .mp4"),
        (["--prompt", FIRST, "--image", "none.png"], "does not exist"),
        (["--prompt", FIRST, "--from-clip", "c.mp4", "--out", "c.mp4", "--overwrite"], "--from-clip names"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(
    arguments: list[str],
    told: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("c.mp4", [np.zeros((SIZE, SIZE, 3), np.uint8)] * 4, 8)
    clip = Path("c.mp4").read_bytes()
    say = ["live", "--model", str(model), "--device", "cpu", *arguments]
    monkeypatch.setattr(sys, "argv", ["framepack", *say])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and told in said.err
    assert [p.name for p in tmp_path.iterdir()] == ["c.mp4"] and Path("c.mp4").read_bytes() == clip
