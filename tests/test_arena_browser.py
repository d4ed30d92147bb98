"""The arena in a real browser: a judge with eyes and fingers, and two videos in step."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arena_site import LEVELS, Site, run_arena, running, write_clip, write_rows

if not all(importlib.util.find_spec(name) for name in ("playwright", "fastapi", "uvicorn")):
    pytest.skip(
        "needs a browser's driver: pip install playwright 'framepack-ai[serve]'", allow_module_level=True
    )

from playwright.sync_api import Browser, Page, sync_playwright

JUDGEMENTS = 200
ERRORS = 0.05
SLOWEST = 90_000  # ms

READY = "document.body.dataset.state === 'ready'"

LOOK = """(last) => new Promise((resolve, reject) => {
  // Brightness of both videos of the next pair, in the order of their places on the screen.
  const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const late = performance.now() + 90000;
  const look = () => {
    const stage = document.querySelector(".stage:not([hidden])");
    if (performance.now() > late) return reject(new Error(document.body.dataset.state));
    if (document.body.dataset.state !== "ready" || stage.dataset.pair === last) return setTimeout(look, 4);
    const videos = [...stage.querySelectorAll("video")];
    videos.sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x);
    resolve([stage.dataset.pair, ...videos.map((video) => {
      context.drawImage(video, 0, 0, 8, 8);
      return context.getImageData(3, 3, 1, 1).data[1];
    })]);
  };
  look();
})"""

TIMES = "[...document.querySelectorAll('.stage:not([hidden]) video')].map((video) => video.currentTime)"

SAMPLE = """(milliseconds) => new Promise((resolve) => {
  const videos = [...document.querySelectorAll(".stage:not([hidden]) video")];
  const samples = [], end = performance.now() + milliseconds;
  const sample = (now) => {
    samples.push([...videos.map((one) => one.currentTime), ...videos.map((one) => Number(one.paused))]);
    now < end ? requestAnimationFrame(sample) : resolve(samples);
  };
  requestAnimationFrame(sample);
})"""

BARS = """() => [...document.querySelectorAll(".stage:not([hidden]) video")].map((video) => {
  // The row of pixels, of 128, at which the moving bar is: where the right edge differs most from the middle.
  const canvas = Object.assign(document.createElement("canvas"), { width: 128, height: 128 });
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const at = (x, y) => context.getImageData(x, y, 1, 1).data[1];
  const rows = [...Array(128).keys()];
  const far = rows.map((y) => Math.abs(at(124, y) - at(64, y)) > 40);
  return rows.filter((y) => far[y]).reduce((sum, y, _, all) => sum + y / all.length, 0);
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt install chromium, or playwright install chromium")
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def enter(browser: Browser, site: Site, name: str = "Ann", **context: Any) -> Page:
    """A judge's page, the name given and the first pair on show."""
    page = browser.new_context(reduced_motion="reduce", **context).new_page()
    page.set_default_timeout(SLOWEST)
    page.goto(site.address)
    page.fill("#typed", name)
    page.keyboard.press("Enter")
    page.wait_for_function(READY)
    return page


def recorded(folder: Path) -> dict[str, str]:
    """By pair the choice that counts."""
    lines = (folder / "arena" / "judgements.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["pair"]: record["choice"] for record in records if record["kind"] == "judgement"}


def test_a_judge_finds_the_order(browser: Browser, tmp_path: Path) -> None:
    """200 pairs by eye with every twentieth answer wrong; in the middle the server is killed."""
    write_rows(tmp_path, JUDGEMENTS // 10)
    rng = random.Random(0)
    pressed: dict[str, str] = {}
    pair = None

    def judge(page: Page) -> None:
        nonlocal pair
        pair, left, right = page.evaluate(LOOK, pair)
        assert abs(left - right) > 20, "the pixels tell which is better"
        better, worse = ("left", "right") if left > right else ("right", "left")
        pressed[pair] = worse if rng.random() < ERRORS else better
        page.keyboard.press({"left": "ArrowLeft", "right": "l"}[pressed[pair]])

    with running(tmp_path) as site:
        page = enter(browser, site)
        while len(pressed) < JUDGEMENTS // 2:
            judge(page)
        page.evaluate(LOOK, pair)  # the last one is acknowledged
        site.kill()
        assert recorded(tmp_path) == pressed
    judge(page)
    page.get_by_text("cannot be reached").wait_for()
    with running(tmp_path, port=site.port):
        while len(pressed) < JUDGEMENTS:
            judge(page)
        page.locator("#done[open]").wait_for()
        assert page.locator("#count").inner_text().startswith("0 of 200")
        page.context.close()
    assert recorded(tmp_path) == pressed

    code, _, err = run_arena(tmp_path, "--results")
    assert code == 0, err
    rows = json.loads((tmp_path / "arena" / "ratings.json").read_text())["rows"]
    assert [row["row"] for row in rows] == list(LEVELS)
    elo = [row["elo"] for row in rows]
    assert elo == sorted(elo, reverse=True) and [row["elo_rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["judgements"] == 80 for row in rows)


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two rows of moving bars, two seconds at 16 frames a second."""
    folder = tmp_path_factory.mktemp("motion")
    for row, level in (("dark", 60), ("light", 190)):
        for clip in range(4):
            write_clip(folder / row / f"{clip}.mp4", level, frames=32, fps=16, size=128)
    with running(folder) as site:
        yield site


def apart(samples: list[list[float]]) -> float:
    return max(abs(left - right) for left, right, *_ in samples)


FRAME = 1 / 16


def test_both_play_in_step(browser: Browser, motion: Site) -> None:
    page = enter(browser, motion, "steps")
    first = page.evaluate(SAMPLE, 1200)
    assert apart(first) < FRAME and first[-1][0] - first[0][0] > 0.5
    # One that falls behind catches up, whether by much or by little.
    for lag in (0.1, 0.7):
        page.keyboard.press("r")
        page.wait_for_function(f"Math.min(...{TIMES}) > 0.8")
        page.evaluate(f"document.querySelectorAll('.stage:not([hidden]) video')[1].currentTime -= {lag}")
        page.wait_for_timeout(700)
        assert apart(page.evaluate(SAMPLE, 200)) < FRAME
    # Both start over together, after the end.
    page.wait_for_function(f"Math.min(...{TIMES}) > 1.8")
    page.wait_for_function(f"Math.max(...{TIMES}) < 0.5")
    assert apart(page.evaluate(SAMPLE, 500)) < FRAME
    page.context.close()


def test_both_pause_and_seek_together(browser: Browser, motion: Site) -> None:
    page = enter(browser, motion, "seeks")
    page.wait_for_function(f"Math.min(...{TIMES}) > 0.4")
    page.keyboard.press(" ")
    page.wait_for_timeout(300)
    paused = page.evaluate(SAMPLE, 200)
    assert apart(paused) < 0.01 and paused[0] == paused[-1] and paused[-1][2:] == [1, 1]
    for fraction in (0.8, 0.25):
        page.locator("#seek").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); "
            "slider.dispatchEvent(new Event('change')); }",
            1000 * fraction,
        )
        page.wait_for_timeout(300)
        assert page.evaluate(TIMES) == pytest.approx([2 * fraction] * 2, abs=0.01)
        bars = page.evaluate(BARS)  # the picture of that moment, in both
        assert bars == pytest.approx([128 * fraction] * 2, abs=4)
    page.keyboard.press(" ")
    page.wait_for_timeout(300)
    assert page.evaluate(SAMPLE, 50)[-1][2:] == [0, 0]
    page.context.close()


def test_every_key_and_button(browser: Browser, motion: Site) -> None:
    page = enter(browser, motion, "keys")
    folder = Path(motion.folder)
    shown = "document.querySelector('.stage:not([hidden])').dataset.pair"

    def act(action: str) -> str:
        """Press a key, or click what a selector finds; gives the pair that was on show."""
        pair = page.evaluate(shown)
        page.locator(action).click() if action[0] in "#." else page.keyboard.press(action)
        page.wait_for_function(f"{READY} && {shown} !== {json.dumps(pair)}")
        return pair

    keys = {"a": "left", "L": "right", "ArrowDown": "tie", "Backspace": None, "s": "skip"}
    for action, choice in keys.items():
        pair = act(action)
        if action == "Backspace":  # undoes the last, and shows it again
            assert pair not in recorded(folder) and list(recorded(folder).values())[-1] is None
        else:
            assert recorded(folder)[pair] == choice, action
    undone = act("#undo")
    assert page.evaluate(shown) == pair and recorded(folder)[pair] is None and undone not in recorded(folder)
    page.keyboard.press("Control+a")  # a key with another meaning is let be
    page.wait_for_timeout(100)
    assert recorded(folder)[pair] is None
    act(".stage:not([hidden]) [data-choice=right]")
    assert recorded(folder)[pair] == "right"
    last = page.evaluate(shown)
    page.locator(".others [data-choice=tie]").click()
    page.locator("#done[open]").wait_for()  # all four are seen
    assert recorded(folder)[last] == "tie"
    page.keyboard.press("a")  # means nothing to a dialog
    page.locator("#done button").click()
    page.wait_for_function(READY)
    assert sorted(filter(None, recorded(folder).values())) == ["left", "right", "right", "tie"]
    page.context.close()


def test_a_name_is_kept_and_two_tabs_differ(browser: Browser, motion: Site) -> None:
    page = enter(browser, motion, "tabs")
    other = page.context.new_page()
    other.goto(motion.address)
    other.wait_for_function(READY)
    assert other.locator("#judge").inner_text() == "tabs" and other.locator("dialog[open]").count() == 0
    sources = "[...document.querySelectorAll('video')].map((video) => video.src)"
    given = [*page.evaluate(sources), *other.evaluate(sources)]
    assert len(set(given)) == 8  # two pairs each: one on show, one loading
    page.context.close()


def test_a_video_that_cannot_be_played_can_be_skipped(browser: Browser, tmp_path: Path) -> None:
    for row in "ab":
        write_clip(tmp_path / row / "1.mp4", 90)
    (tmp_path / "a" / "1.mp4").write_bytes(b"no video")
    with running(tmp_path) as site:
        page = browser.new_context(reduced_motion="reduce").new_page()
        page.goto(site.address)
        page.fill("#typed", "Ann")
        page.keyboard.press("Enter")
        page.get_by_text("cannot be played").wait_for()
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(100)
        assert not recorded(tmp_path)
        page.keyboard.press("s")
        page.locator("#done[open]").wait_for()
        page.context.close()
    assert list(recorded(tmp_path).values()) == ["skip"]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844), (390, 664), (844, 390)])
def test_all_is_on_one_screen(browser: Browser, motion: Site, width: int, height: int) -> None:
    """Videos and buttons, without scrolling."""
    page = enter(browser, motion, f"{width} {height}", viewport={"width": width, "height": height})
    boxes = np.array(
        page.evaluate(
            "[...document.querySelectorAll('.stage:not([hidden]) video, main button')]"
            ".map((one) => one.getBoundingClientRect()).filter((box) => box.width)"
            ".map(({ left, top, right, bottom }) => [left, top, right, bottom])"
        )
    )
    assert len(boxes) == 9 and (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    page.context.close()


def test_in_japanese(browser: Browser, motion: Site) -> None:
    page = enter(browser, motion, "日本", locale="ja-JP")
    assert page.title() == "全体として、どちらの動画が良いですか?"
    assert page.locator("[data-text]").filter(has_text="undefined").count() == 0
    page.context.close()
