"""What the documents say is so: commands parse, links lead somewhere, names and numbers are the code's."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import typer

from framepack.cli import app
from framepack.cli.plan import find_spec
from framepack.conditioning.lexicon import SLOTS, parse
from framepack.packing.schedule import SCHEDULES, PackingSchedule
from framepack.planning.method import METHODS, Method, named_method
from framepack.planning.planners import plan
from framepack.planning.prompts import read_prompt
from framepack.planning.storyboard import SCENE, TOP, read_storyboard
from framepack.planning.timeline import Timeline
from test_imports import ROOMS, SOURCE
from tiny import save_tiny

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.ja.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
CARD = ROOT / "docs" / "bundled-model.md"
LONG = ROOT / "docs" / "long-video.md"

Rows = list[list[str]]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, *languages: str) -> list[str]:
    """Contents of the fenced blocks in these languages."""
    return [code for tag, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if tag in languages]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def tables(text: str) -> Iterator[tuple[list[str], Rows]]:
    """Header and rows of every table."""
    for found in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        header, _, *rows = [
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in found.splitlines()
        ]
        yield header, rows


def table(path: Path, *first: str) -> Rows:
    """Rows of the one table whose first column is headed by one of these words."""
    found = [rows for header, rows in tables(path.read_text()) if header[0] in first]
    assert len(found) == 1, f"{name_of(path)} has {len(found)} tables of {first[0]}"
    return found[0]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", cell)]


# --- commands ---


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """Every ``framepack ...`` line, and whether it is whole: one in running text may only name a verb."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"\s*framepack\s", line):
                yield line, True
    for inline in re.findall(r"`(framepack [^`]+)`", without_blocks(text)):
        yield inline, False


COMMANDS = [(name_of(page), *found) for page in PAGES for found in commands(page.read_text())]


@pytest.mark.parametrize(("page", "line", "whole"), COMMANDS)
def test_commands_parse(page: str, line: str, whole: bool) -> None:
    typed = shlex.split(line, comments=True)
    _, verb, *arguments = typed[: typed.index("|")] if "|" in typed else typed
    verbs: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert verb in verbs, f"{page}: {line}"
    command = verbs[verb]
    while arguments and hasattr(command, "commands"):  # a verb of verbs
        assert arguments[0] in command.commands, f"{page}: {line}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {a for a in arguments if a.startswith("--")} <= options, f"{page}: {line}"
    if whole:
        values = command.make_context(verb, arguments).params
        methods, schedule = values.get("method") or (), values.get("schedule")
        for method in (methods,) if isinstance(methods, str) else methods:
            if method not in METHODS:
                Method.parse(method)
        if schedule is not None:
            PackingSchedule.from_spec(schedule)
        # Only the procedural world has a vocabulary.
        if "prompt" in values and values.get("model", "bundled").startswith(("bundled", "runs/")):
            for prompt in said(values):
                assert parse(prompt).unknown == (), f"{page}: {line}"


def said(values: dict[str, Any]) -> tuple[str, ...]:
    """All prompts of a command line, those of its storyboard with them."""
    if values.get("storyboard") is not None:
        return read_storyboard(ROOT / values["storyboard"]).script.prompts
    return read_prompt(values["prompt"] or "").prompts


@pytest.mark.parametrize("readme", [*READMES, LONG], ids=name_of)
def test_storyboards_read_and_use_known_words(readme: Path, tmp_path: Path) -> None:
    shown = [code.encode() for code in blocks(readme.read_text(), "yaml")]
    assert shown, "a storyboard is shown"
    for text in (*shown, (ROOT / "examples" / "story.yaml").read_bytes()):
        (tmp_path / "story.yaml").write_bytes(text)
        for prompt in read_storyboard(tmp_path / "story.yaml").script.prompts:
            assert parse(prompt).unknown == (), prompt


def test_keys_of_a_storyboard() -> None:
    keys = [(code(row[0])[0], row[1]) for row in table(LONG, "Key")]
    assert sorted(keys) == sorted([*((key, "the file") for key in TOP), *((key, "a scene") for key in SCENE)])
    assert (ROOT / "examples" / "story.yaml").read_text().endswith(blocks(LONG.read_text(), "yaml")[0])


def test_ways_to_write_a_prompt() -> None:
    """As told, they read; and the same three ways stand in the readmes."""
    written = [code(row[0])[0] for row in table(LONG, "Written")]
    for text in written:
        read_prompt(text)
    for readme in READMES:
        assert [code(row[0])[0] for row in table(readme, "Written", "書き方")] == written


def test_half_a_section() -> None:
    text = " ".join(LONG.read_text().split())
    for model, words in (
        ("bundled", "{} frames, {:.2f} s, with the bundled"),
        ("base", "{} frames, {:.1f} s, with Hun"),
    ):
        spec = find_spec(model)
        frames = spec.method(None).section_size * spec.temporal_stride // 2
        assert words.format(frames, frames / spec.fps) in text


def test_every_verb_is_shown() -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for readme in READMES:
        shown = {shlex.split(line, comments=True)[1] for line, _ in commands(readme.read_text())}
        assert verbs <= shown, readme


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_other_commands_are_there(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.M)) <= targets
    for script in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / script).is_file(), script


# --- links ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text()))
    missing = []
    for link in links:
        if "://" in link:
            continue
        path, _, heading = unquote(link).partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            missing.append(link)
    assert not missing, f"{name_of(page)}: {missing}"


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", without_blocks(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def test_readmes_open_with_a_picture_and_the_two_commands() -> None:
    for readme in READMES:
        opening = readme.read_text().split("```")[:2]
        assert "docs/images/demo.png" in opening[0]
        assert [line.split("#")[0].strip() for line in opening[1].splitlines()[1:]] == [
            "make demo",
            "make test",
        ]


# --- names and numbers ---


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_table_of_methods(readme: Path) -> None:
    told = {code(row[0])[0]: code(row[2]) for row in table(readme, "Method", "手法")}
    assert told == {name: [str(named_method(name))] for name in METHODS}


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_table_of_schedules(readme: Path) -> None:
    told = {
        code(row[0])[0]: (float(row[1]), code(row[2])) for row in table(readme, "Schedule", "スケジュール")
    }
    made = {name: PackingSchedule.named(name) for name in SCHEDULES}
    assert told == {name: (schedule.rate(), [str(schedule)]) for name, schedule in made.items()}


def test_strings_in_the_notation_page() -> None:
    page = ROOT / "docs" / "notation.md"
    for string, words in table(page, "String"):
        names = code(words)
        assert names and all(str(named_method(name)) == code(string)[0] for name in names), string
    grid = (480 // 8, 832 // 8)
    told = {
        code(row[0])[0]: [cell for each in row[1:] for cell in numbers(each)]
        for row in table(page, "Schedule")
    }
    assert told == {
        name: [s.nominal_limit(1560), s.limit_tokens(grid), s.start_tokens(grid)]
        for name, s in ((name, PackingSchedule.named(name)) for name in SCHEDULES)
    }
    rules = {
        rule: code(names) for rule, names in re.findall(r"^- `(\w+)` \((.+?)\):", page.read_text(), re.M)
    }
    assert {name: rule for rule, names in rules.items() for name in names} == {
        name: named_method(name).positions for name in METHODS
    }


def test_positions_in_the_notation_page() -> None:
    timeline = Timeline(frames=79, fps=8, stride=1, known=(0,))
    first = {
        name: plan(timeline, named_method(name, base=(1, 1, 1), section_size=6, max_gap=48)).sections[0]
        for name in ("inverted", "inverted-plain")
    }
    assert {section.frames for section in first.values()} == {tuple(range(73, 79))}
    assert first["inverted"].positions == tuple(range(19, 25))
    assert first["inverted-plain"].positions == tuple(range(49, 55))


def test_measured_sizes() -> None:
    from framepack.cli.models import table as rows

    models = [row for row in rows() if row["name"] in ("base", "lite", "extended")]
    history = named_method("inverted", base=(1, 1, 1), section_size=6).schedule.limit_tokens((8, 8))
    expected = [
        [history] * 4,
        [round(row["parameters"] / 1e9, 1) for row in models],
        [row["nominal_limit"] for row in models],
        [row["limit_tokens"] for row in models],
    ]
    for readme in READMES:
        told = [numbers(row[1]) for row in table(readme, "What", "内容")]
        assert told[:4] == expected, readme


def test_words_of_the_card() -> None:
    rows = table(CARD, "Slot")
    assert {code(row[0])[0]: tuple(code(row[1])) for row in rows} == SLOTS
    for _, words, japanese in rows:
        found = [parse(phrase).words for phrase in japanese.split(", ")]
        assert found == [(word,) for word in code(words)]
    for phrase in ("ocean", "waves", "波"):
        assert parse(phrase).words == ("sea",)
    for readme in READMES:
        assert str(sum(map(len, SLOTS.values()))) in readme.read_text()


def test_settings_of_the_card() -> None:
    from framepack.recipes.bundled import bundled

    for row in table(CARD, "Setting"):
        value: Any = bundled("")
        for name in code(row[0])[0].split("."):
            assert name in {field.name for field in dataclasses.fields(value)}, row[0]
            value = getattr(value, name)
        assert value == json.loads(row[1]), row


def test_sizes_of_the_card() -> None:
    from framepack.codecs.frame import FrameAutoencoder
    from framepack.recipes.bundled import bundled
    from framepack.training.network import build_modules

    config, codec = bundled(""), FrameAutoencoder()
    model, _ = build_modules(config, codec.config.channels)
    text = CARD.read_text()
    for module in (model, codec):
        count = sum(parameter.numel() for parameter in module.parameters())
        assert f"{count / 1e6:.1f} M parameters" in text
    net = config.network
    assert f"width {net.heads * net.head_dim}, {net.layers} layers" in text
    assert f"sections of {config.section_size} latent frames" in text


def test_rooms_of_the_architecture() -> None:
    rows = table(ROOT / "docs" / "architecture.md", "Room")
    told = [code(row[0])[0].rstrip("/") for row in rows]
    assert told == [room for room in ROOMS if room in told], "in the order of imports"
    empty = {"__init__.py"}
    filled = {p.name for p in SOURCE.iterdir() if p.is_dir() and {f.name for f in p.glob("*.py")} - empty}
    assert set(told) == filled
    for room, row in zip(told, rows, strict=True):
        for file in code(row[2]):
            assert not file.endswith(".py") or (SOURCE / room / file).is_file(), f"{room}/{file}"
    for path in re.findall(
        r"`((?:planning|sampling|training|metrics)/\w+\.py)`", (ROOT / "docs" / "architecture.md").read_text()
    ):
        assert (SOURCE / path).is_file(), path


# --- Python ---


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_python_runs(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, with a model of random weights in the place of the bundled one."""
    (block,) = blocks(readme.read_text(), "python")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.setattr("framepack.models.source.BUNDLED", save_tiny(tmp_path / "tiny"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exec(compile(block, str(readme), "exec"), {})
    finally:
        torch.set_num_threads(threads)
    assert Path("outputs/heart.mp4").is_file() and len(list(Path("outputs").glob("*.mp4"))) == 2
    for video in Path("outputs").glob("*.mp4"):
        job = Path("outputs", json.loads(video.with_suffix(".json").read_text())["job"])
        assert (job / "manifest.jsonl").is_file() and list((job / "latents").glob("*.safetensors"))
