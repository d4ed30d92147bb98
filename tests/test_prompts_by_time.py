"""Prompts by time, from the command line to the latents: a section follows its own prompts and no others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from framepack.cli import main
from framepack.conditioning.embeds import Conditioning, mixed
from framepack.errors import InputError
from framepack.generation.events import SectionFinished
from framepack.generation.manifest import read_log
from framepack.generation.prepare import prepare
from framepack.generation.request import MAX_PROMPT, GenerateRequest
from framepack.generation.run import PreparedRun
from framepack.planning.script import Cue, Script
from framepack.video.io import read_video
from tiny import SIZE, look_alike, pictures_of, save_tiny, tiny_bundle

pytestmark = pytest.mark.usefixtures("one_thread")

LEFT, RIGHT = "a red ball moves left", "a red ball moves right"
FRAMES = 18  # six sections of 3, of 3/8 s each


def job(folder: Path, prompt: str | Script, **values: object) -> PreparedRun:
    settings = {"frames": FRAMES, "method": "vanilla", "out": folder / "v.mp4", "workdir": folder / "run"}
    return prepare(GenerateRequest(prompt=prompt, **(settings | values)), tiny_bundle())  # type: ignore[arg-type]


def carry_out(run: PreparedRun) -> list[int]:
    """The sections made now."""
    events = list(run.events())
    return [e.section for e in events if isinstance(e, SectionFinished) and not e.cached]


def made(folder: Path, prompt: str | Script, **values: object) -> list[torch.Tensor]:
    """Latents of each section, in order of generation."""
    run = job(folder, prompt, **values)
    carry_out(run)
    return latents(folder / "run")


def latents(workdir: Path) -> list[torch.Tensor]:
    found = {r["section"]: r["key"] for r in read_log(workdir)[1] if r["kind"] == "latents"}
    keys = [found[section] for section in sorted(found.keys() - {None})]
    return [load_file(workdir / "latents" / f"{key}.safetensors")["latents"] for key in keys]


def same(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)]


# --- sections follow their own prompts ---


def test_sections_are_those_of_one_prompt_until_it_changes(tmp_path: Path) -> None:
    left = made(tmp_path / "left", LEFT)
    both = made(tmp_path / "both", f"[0s: {LEFT}] [1s: {RIGHT}]")
    assert same(both, left) == [True] * 3 + [False] * 3  # 1 s is nearest to the border at 9/8 s


def test_backwards_the_last_section_is_that_of_the_last_prompt(tmp_path: Path) -> None:
    right = made(tmp_path / "right", RIGHT, method="inverted")
    both = made(tmp_path / "both", f"[0s: {LEFT}] [1s: {RIGHT}]", method="inverted")
    assert same(both, right) == [True] * 3 + [False] * 3


def test_one_cue_is_the_plain_prompt(tmp_path: Path) -> None:
    plain, cued = job(tmp_path, LEFT), job(tmp_path, f"[0s: {LEFT}]")
    assert plain.config == cued.config and plain.config.cues is None and plain.config.prompt == LEFT
    by_section = job(tmp_path, f"0:{LEFT};;;3:{RIGHT};;;-1:{RIGHT};;;4:{RIGHT}")
    assert by_section.config == job(tmp_path, f"[0s: {LEFT}] [1.125s: {RIGHT}]").config


def test_a_blend_lies_between(tmp_path: Path) -> None:
    """Of sections made without history, the one in the middle of a blend is none of the two prompts'."""
    prompts = (LEFT, RIGHT, f"[0s: {LEFT}] [0.3s blend 0.5s: {RIGHT}]")
    first = [made(tmp_path / str(i), p, frames=6)[:2] for i, p in enumerate(prompts)]
    (left, _), (right, _), (blend, _) = first
    assert torch.equal(blend, left) and not torch.equal(left, right)
    run = job(tmp_path / "2", prompts[2], frames=6)
    (_, weight), (_, other) = run.config.script.mix(run.plan.sections[1].spans[0], run.plan.timeline)
    assert (weight, other) == pytest.approx((0.475, 0.525))
    assert not torch.equal(first[2][1], first[0][1])


def test_latents_move_with_the_weight_of_a_blend(tmp_path: Path) -> None:
    """One section alone, blended more and more: its latents go from one prompt's to the other's."""
    from framepack.generation.clock import Clock
    from framepack.generation.maker import SectionMaker
    from framepack.generation.store import Edit, RunStore

    run = job(tmp_path, f"[0s: {LEFT}] [0.3s: {RIGHT}]", frames=6)
    maker = SectionMaker(run.config, run.bundle, Clock())
    with RunStore(tmp_path / "run", run.config.to_json()) as store:
        section = run.plan.sections[0]
        points = [
            maker.make(section, Edit(), ((LEFT, 1 - w), (RIGHT, w)), store, lambda done, steps: None)
            for w in (0.0, 0.25, 0.5, 1.0)
        ]
        pure = maker.make(section, Edit(), ((LEFT, 1.0),), store, lambda done, steps: None)
    torch.testing.assert_close(points[0], pure)
    away = [float((p - points[0]).norm()) for p in points]
    assert 0 == away[0] < away[1] < away[2] < away[3]


# --- what is made again ---


def test_a_changed_scene_keeps_what_was_made_before_it(tmp_path: Path) -> None:
    assert carry_out(job(tmp_path, f"[0s: {LEFT}] [1s: {RIGHT}]")) == [0, 1, 2, 3, 4, 5]
    first = pictures_of(tmp_path / "v.mp4")
    changed = job(tmp_path, f"[0s: {LEFT}] [1s: a red ball moves up]")
    assert carry_out(changed) == [3, 4, 5]
    assert not look_alike(pictures_of(tmp_path / "v.mp4"), first)
    told = json.loads((tmp_path / "v.json").read_text())
    assert told == read_video(tmp_path / "v.mp4").metadata and told["config"] == changed.config.to_json()
    assert told["config"]["cues"][1]["prompt"] == "a red ball moves up"
    assert carry_out(changed) == [], "it is finished"
    assert carry_out(job(tmp_path, f"[0s: {LEFT}] [1s: {RIGHT}]")) == [], "the first is still on disk"
    assert look_alike(pictures_of(tmp_path / "v.mp4"), first)
    assert carry_out(job(tmp_path, f"[0s: {LEFT}] [1.6s: {RIGHT}]")) == [3, 4, 5], "its time was moved"


def test_without_history_between_them_other_scenes_stay(tmp_path: Path) -> None:
    """Backwards a changed first scene leaves the later ones alone."""
    carry_out(job(tmp_path, f"[0s: {LEFT}] [1s: {RIGHT}]", method="inverted"))
    assert carry_out(job(tmp_path, f"[0s: a red ball] [1s: {RIGHT}]", method="inverted")) == [3, 4, 5]


def test_a_prompt_of_its_own_overrides_the_script(tmp_path: Path) -> None:
    prompt = f"[0s: {LEFT}] [1s: {RIGHT}]"
    before = made(tmp_path, prompt)
    run = job(tmp_path, prompt)
    run.redo(5, prompt="a blue star")
    assert carry_out(run) == [5]
    run.redo(5, prompt=run.config.prompt)
    assert carry_out(run) == [5]
    record = next(r for r in reversed(read_log(tmp_path / "run")[1]) if r["kind"] == "latents")
    assert (record["take"], record["prompt"]) == (2, None)
    with pytest.raises(InputError, match="one prompt is wanted"):
        run.redo(5, prompt=f"[0s: {RIGHT}] [1s: {LEFT}]")
    run.redo(5, prompt=r"[0s: a box \[2\]]")
    assert carry_out(run) == [5]
    record = next(r for r in reversed(read_log(tmp_path / "run")[1]) if r["kind"] == "latents")
    assert record["prompt"] == "a box [2]", "as a prompt is read everywhere else"
    run.restore(5)
    assert carry_out(run) == []
    assert same(before[:5], latents(tmp_path / "run")[:5]) == [True] * 5


def test_a_stopped_story_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    story = Script((Cue(at=0.0, prompt=LEFT), Cue(at=1.0, prompt=RIGHT, blend=0.7)))
    whole = made(tmp_path / "whole", story)
    running = job(tmp_path, story).events()
    for event in running:
        if isinstance(event, SectionFinished) and event.section == 2:
            break
    running.close()
    assert set(carry_out(job(tmp_path, str(story)))) in ({3, 4, 5}, {4, 5})
    assert same(latents(tmp_path / "run"), whole) == [True] * 6


# --- what is said of them ---


def test_every_prompt_is_checked(tmp_path: Path) -> None:
    told = job(tmp_path, "[0s: a red ball] [1s: a zeppelin] [1.1s: a blue star] [1.5s: a walrus]").warnings
    assert any("zeppelin, walrus" in line for line in told)
    assert any("the prompt from 1 s on is in no section" in line for line in told)
    with pytest.raises(InputError, match=f"{MAX_PROMPT + 1} characters"):
        GenerateRequest(prompt=f"[0s: a] [1s: {'b' * (MAX_PROMPT + 1)}]")
    many = "".join(f"[{i}s: {'b' * 5000}]" for i in range(4))
    assert GenerateRequest(prompt=many).prompt == many, "the limit is for each of them"
    with pytest.raises(InputError, match="not UTF-8"):
        GenerateRequest(prompt="[0s: a] [1s: \udcff]")


# --- embeddings between two prompts ---


def embeds(tokens: int, seed: int, **values: object) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(prompt=torch.randn(1, tokens, 4, generator=generator), **values)  # type: ignore[arg-type]


def test_embeddings_are_means_by_weight() -> None:
    a, b = embeds(3, 0), embeds(3, 1)
    middle = mixed([(a, 0.25), (b, 0.75)])
    torch.testing.assert_close(middle.prompt, 0.25 * a.prompt + 0.75 * b.prompt)
    assert middle.mask is None and middle.pooled is None
    assert mixed([(a, 1.0)]) is a
    half = mixed(
        [(replace(a, prompt=a.prompt.bfloat16()), 0.5), (replace(b, prompt=b.prompt.bfloat16()), 0.5)]
    )
    assert half.prompt.dtype == torch.bfloat16


def test_tokens_that_only_one_prompt_has_fade() -> None:
    mask = torch.tensor([[True, True, False, False]]), torch.tensor([[True, True, True, False]])
    a = embeds(4, 0, mask=mask[0], pooled=torch.ones(1, 2), guidance=10.0)
    b = embeds(4, 1, mask=mask[1], pooled=torch.zeros(1, 2), guidance=10.0)
    a.prompt[:, 2:] = torch.nan  # what stands under a mask is never looked at
    middle = mixed([(a, 0.25), (b, 0.75)])
    assert torch.equal(middle.mask, mask[1]) and middle.guidance == 10.0
    torch.testing.assert_close(middle.prompt[:, :2], 0.25 * a.prompt[:, :2] + 0.75 * b.prompt[:, :2])
    torch.testing.assert_close(middle.prompt[:, 2], 0.75 * b.prompt[:, 2])
    assert (middle.prompt[:, 3] == 0).all()
    torch.testing.assert_close(middle.pooled, torch.full((1, 2), 0.25))


def test_prompts_of_two_lengths() -> None:
    a, b = embeds(2, 0), embeds(3, 1)
    middle = mixed([(a, 0.5), (b, 0.5)])
    assert middle.mask is None
    torch.testing.assert_close(middle.prompt[:, 2], b.prompt[:, 2] / 2)
    masked = mixed([(a, 0.5), (replace(b, mask=torch.tensor([[True, False, False]])), 0.5)])
    assert masked.mask.tolist() == [[True, True, False]]


# --- the command line ---

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command in this process, in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(verb: str, *arguments: object) -> tuple[int, str, str]:
        words = ["framepack", verb, "--model", str(model), *map(str, arguments)]
        if verb == "generate":
            words += ["--device", "cpu"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


STORY = f"""\
image: start.png
method: inverted-plain
seed: 3
scenes:
  - prompt: {LEFT}
    seconds: 1
  - prompt: {RIGHT}
    seconds: 1.25
    transition: blend 0.8s
"""


def story(folder: Path, text: str = STORY) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "start.png")
    (folder / "story.yaml").write_text(text)
    return folder / "story.yaml"


def test_a_storyboard_is_the_same_video_as_its_words(run: Run, tmp_path: Path) -> None:
    common = ["--out", "v.mp4", "--sheet", "v.png", "--json"]
    code, out, err = run("generate", "--storyboard", story(tmp_path), *common)
    assert code == 0, err
    told = json.loads((tmp_path / "v.json").read_text())
    assert (told["config"]["frames"], told["config"]["seed"]) == (18, 3) and not json.loads(out)["cached"]
    assert told["config"]["prompt"] == f"[0s: {LEFT}] [1s blend 0.8s: {RIGHT}]"
    words = ["--prompt", told["config"]["prompt"], "--image", "start.png", "--seconds", 2.25, "--seed", 3]
    code, out, err = run("generate", *words, "--method", "inverted-plain", *common)
    assert code == 0 and json.loads(out)["cached"], err


def test_the_command_line_goes_before_the_storyboard(run: Run, tmp_path: Path) -> None:
    code, _, err = run(
        "generate", "--storyboard", story(tmp_path), "--seed", 0, "--method", "f1", "--out", "v.mp4"
    )
    assert code == 0, err
    config = json.loads((tmp_path / "v.json").read_text())["config"]
    assert config["seed"] == 0 and config["method"]["order"] == "f1" and config["image"]


def test_the_plan_shows_asked_times_and_the_grid(run: Run, tmp_path: Path) -> None:
    prompt = f"[0s: {LEFT}] [1s: {RIGHT}] [1.1s: a blue star] [1.6s blend 0.5s: 赤い丸]"
    code, out, err = run("plan", "--frames", FRAMES, "--method", "vanilla", "--prompt", prompt, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [(c["at"], c["switches_at"], c["prompt"]) for c in told["prompts"]] == [
        (0, 0, LEFT),
        (1, None, RIGHT),
        (1.1, 1.125, "a blue star"),
        (1.6, 1.5, "赤い丸"),
    ]
    assert [[(p["prompt"], p["weight"]) for p in s["prompts"]] for s in told["sections"]] == [
        *[[(LEFT, 1)]] * 3,
        [("a blue star", 1)],
        [("a blue star", 0.825), ("赤い丸", 0.175)],
        [("a blue star", 0.075), ("赤い丸", 0.925)],
    ]
    code, out, _ = run("plan", "--frames", FRAMES, "--method", "vanilla", "--prompt", prompt)
    assert code == 0
    rows = out.splitlines()
    assert sum(LEFT in row for row in rows) == 3 + 1, "three sections, and the table of changes"
    assert any("in no section" in row and RIGHT in row for row in rows)
    assert any(row.split()[:4] == ["1.1", "s", "1.12", "s"] for row in rows)
    assert sum("% a blue" in row for row in rows) == 2


def test_the_plan_of_one_prompt_is_as_without(run: Run) -> None:
    bare = run("plan", "--frames", FRAMES)
    assert run("plan", "--frames", FRAMES, "--prompt", LEFT) == bare


@pytest.mark.parametrize("verb", ["generate", "plan"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "[0s: a] [3s-2s: b]"], "the cue at 3 s to 2 s ends before it begins"),
        (["--prompt", "[0s: a] [2s: b", "--seconds", 3], ">>>' does not parse at character 15"),
        (["--prompt", "[0s: a] [6s: b]"], "the cue at 6 s is not within the video's 5 s"),
        (["--prompt", "0:a;;;99:b"], "section 99 of the prompt"),
        (["--storyboard", "none.yaml"], "does not exist"),
        (["--storyboard", "story.yaml", "--prompt", "a"], "--prompt beside --storyboard"),
        (["--storyboard", "story.yaml", "--seconds", 2], "'story.yaml' says the length, 2.25 s"),
        (["--storyboard", "story.yaml", "--frames", 20], "--frames beside --storyboard"),
        (["--storyboard", "bad.yaml"], "storyboard 'bad.yaml' line 8: unknown key of a scene 'secnods'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(
    verb: str, arguments: list[str], words: str, run: Run, tmp_path: Path
) -> None:
    story(tmp_path)
    (tmp_path / "bad.yaml").write_text(STORY.replace("seconds: 1.25", "secnods: 1.25"))
    before = sorted(tmp_path.iterdir())
    code, out, err = run(verb, *arguments)
    assert (code, out) == (2, "") and sorted(tmp_path.iterdir()) == before
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and words in err, err


def test_generate_needs_something_said(run: Run) -> None:
    code, _, err = run("generate")
    assert code == 2 and "give --prompt or --storyboard" in err
