"""``framepack plan`` and ``framepack models``, as a person or a program meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from framepack.cli import main
from framepack.cli.plan_view import COARSEST, UNKNOWN, UNSEEN, cells, print_plan
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["framepack", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def plan_json(run: Run, *arguments: object) -> dict:
    code, out, err = run("plan", "--model", "base", "--json", *arguments)
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return json.loads(out)


def test_context_does_not_grow_with_the_video(run: Run) -> None:
    told = [plan_json(run, "--seconds", s) for s in (5, 60, 600, 6000)]
    assert len({t["context_tokens"] for t in told}) == 1
    assert [t["frames"] for t in told] == [150, 1800, 18_000, 180_000]
    assert [len(t["sections"]) for t in told] == [5, 51, 501, 5001]
    assert told[0]["limit_tokens"] >= told[0]["context_tokens"]


def test_plan_json_tells_every_section(run: Run) -> None:
    told = plan_json(run, "--frames", 91, "--method", "inverted")
    assert {
        "frames",
        "latent_frames",
        "fps",
        "sections",
        "context_tokens",
        "limit_tokens",
        "nominal_limit",
    } <= set(told)
    assert (told["frames"], told["latent_frames"], told["nominal_limit"]) == (91, 24, 3120)
    written = [frame for section in told["sections"] for frame in section["frames"]]
    assert sorted(written) == list(range(24))
    for section in told["sections"]:
        assert {"index", "frames", "positions", "context"} <= set(section)
        for level in section["context"]:
            assert {"kernel", "frames", "positions"} <= set(level)


def test_size_follows_the_picture(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (300, 520)).save(tmp_path / "tall.png")
    tall = run("plan", "--model", "base", "--image", tmp_path / "tall.png")
    assert tall[0] == 0 and "480 x 832" in tall[1]
    told = plan_json(run, "--image", tmp_path / "tall.png", "--frames", 33)
    assert 0 not in [frame for section in told["sections"] for frame in section["frames"]]


def test_plan_png_is_ours_to_replace_and_nobody_elses(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.png"
    for _ in range(2):
        assert run("plan", "--model", "lite", "--seconds", 20, "--png", path)[0] == 0
    with Image.open(path) as drawn:
        assert drawn.width > 1200 and len(drawn.convert("RGB").getcolors(1 << 20) or []) > 20
    code, _, err = run("plan", "--model", "lite", "--seconds", 21, "--png", path)
    assert code == 2 and "--overwrite" in err, "another plan's picture"
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    code, _, err = run("plan", "--model", "lite", "--png", tmp_path / "photo.png")
    assert code == 2 and "--overwrite" in err
    assert (tmp_path / "photo.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "-1"], "-1 seconds"),
        (["--seconds", "1e12"], "1e+12 seconds"),
        (["--seconds", "nan"], "nan seconds"),
        (["--frames", "0"], "0 frames"),
        (["--seconds", "soon"], "--seconds"),
        (["--method", "sideways"], "inverted-plain"),
        (["--schedule", "td_f16q4"], "'td_f16>>>q4'"),
        (["--schedule", "lambda=1"], "lambda"),
        (["--model", "giant"], "unknown model 'giant'"),
        (["--size", "7x7"], "480"),
        (["--image", "nowhere.png"], "does not exist"),
        (["--png", "plan.jpg"], ".png"),
        (["--png", "/proc/none/plan.png"], "cannot be written"),
        (["--sise", "auto"], "--sise"),
        (["extra"], "extra"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_2(run: Run, arguments: list[str], words: str) -> None:
    model = [] if "--model" in arguments else ["--model", "base"]
    code, out, err = run("plan", *model, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and words in err, err


def test_models_lists_the_published_sizes(run: Run) -> None:
    code, out, _ = run("models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and {"base", "lite", "extended"} <= set(rows)
    code, out, _ = run("models")
    assert code == 0 and "3,120" in out


def test_no_verb_shows_help_and_an_unknown_one_fails(run: Run) -> None:
    code, out, _ = run()
    assert code == 0 and "generate" in out
    code, out, err = run("dance")
    assert code == 2 and "dance" in err and len(err.splitlines()) == 1


# --- the drawing ---


def drawn(seconds: float, name: str, rows: int, columns: int):
    timeline = Timeline.from_seconds(seconds, fps=30, stride=4, known=(0,))
    made = plan(timeline, named_method(name))
    return made, cells(made, rows, columns)


def test_cells_show_each_section_exactly() -> None:
    made, grid = drawn(10, "inverted", 100, 1000)
    assert grid.codes.shape == (len(made.sections), made.timeline.latent_frames)
    for row, section in zip(grid.codes, made.sections, strict=True):
        assert np.flatnonzero(row == grid.target).tolist() == list(section.frames)
        for level in section.context:
            assert all(row[frame] >= COARSEST for frame in level.present)
    first = grid.codes[0]
    assert first[0] == grid.code((1, 2, 2)) and (first[1 : min(made.sections[0].frames)] == UNKNOWN).all()
    assert (grid.codes[-1] == UNSEEN).any() and not (grid.codes[-1] == UNKNOWN).any()


@pytest.mark.parametrize("name", ["vanilla", "f1", "anti-drifting", "inverted", "planned"])
def test_downsampled_cells_lose_no_target(name: str) -> None:
    made, grid = drawn(600, name, 40, 90)
    assert grid.codes.shape == (40, 90)
    assert grid.rows[0] == 0 and grid.rows[-1] == len(made.sections) - 1
    assert ((grid.codes == grid.target).sum(axis=1) > 0).all()


def test_terminal_drawing_fits_its_width() -> None:
    for seconds in (0.2, 5, 60, 600):
        made, _ = drawn(seconds, "inverted", 10, 10)
        console = Console(width=70, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115, PTH123
        print_plan(made, "title", "facts", console)
        assert max(map(len, console.export_text().splitlines())) <= 70
