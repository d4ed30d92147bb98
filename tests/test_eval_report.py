"""The report's files: whole, safe from what names hold, the same each time, and working in a real browser."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framepack.errors import OutputError
from framepack.evaluation.analysis import measured
from framepack.evaluation.pictures import STRIPS_BYTES, inline, strips_of
from framepack.evaluation.plots import curves_plot, plots
from framepack.evaluation.report import write_all
from framepack.evaluation.results import ClipScores, Revisit, RowResult, SuiteResult
from framepack.evaluation.strips import drift_measure, revisit_strips, row_strips
from framepack.video.io import write_video
from tiny_suite import METRICS, Info, row, suite

HOSTILE = "<script>alert(1)</script>"
NAMES = ("vanilla", HOSTILE, "$x^2$ & {{ 7 * 7 }}", "\"' onload='x", "a|b\\n")
VOID = {"meta", "img", "br", "hr", "link", "input"}
CHROMIUM = Path("/usr/bin/chromium")


class Page(HTMLParser):
    """What a page is made of, and whether its tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> where {self.open[-3:]} are open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def hostile() -> SuiteResult:
    nan = math.nan
    rows = [row(name, note=name, forgets=0.5 * n, drift=n) for n, name in enumerate(NAMES)]
    spoilt = [
        ClipScores(clip=f"clip-{n:03d}", values={"sharpness": (nan, math.inf), HOSTILE: (1.0, 2.0)})
        for n in range(12)
    ]
    rows.append(RowResult(name="no numbers", clips=tuple(spoilt), wanted=12))
    rows += [RowResult(name="nothing", wanted=12), row("one clip", clips=1, forgets=1.0, wanted=12)]
    more: dict[str, Any] = {"settings": {HOSTILE: [HOSTILE, {"a": None}]}, "machine": HOSTILE}
    return replace(suite(*rows, **more), title=HOSTILE, unavailable={"musiq": HOSTILE})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("suite")
    write_all(hostile(), out, METRICS)
    return out


def test_files_are_there_and_whole(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {"table.csv", "table.md", "report.html", "plots/drift.png", "plots/drift.svg"} <= names
    assert {f"plots/curve-{metric}.png" for metric in METRICS} <= names
    assert not [name for name in names if "part" in name]


def test_the_page_parses_and_names_stay_text(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    words = "".join(page.words)
    for name in NAMES:
        assert name in words
    assert "49" not in re.findall(r"\$x\^2\$ & (\S+)", words)
    assert len(page.ids) == len(set(page.ids)) > 20


def test_links_lead_to_what_is_there(written: Path) -> None:
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    targets = [value[1:] for name, value in page.attributes if name == "href" and value.startswith("#")]
    targets += [t for _, value in page.attributes for t in re.findall(r"url\(#([^)]+)\)", value)]
    assert len(targets) > 20 and set(targets) <= set(page.ids)


def test_nothing_is_fetched(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|@import|//cdn", text)
    assert "default-src 'none'" in text


def test_the_same_suite_gives_the_same_bytes(tmp_path: Path) -> None:
    result = suite(row("vanilla", metrics=["noise"], forgets=1.0), row("f1", metrics=["noise"], forgets=0.0))
    for name in "ab":
        write_all(result, tmp_path / name, METRICS)
    files = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 11
    for path in files:
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes(), (
            path.name
        )


def test_rows_may_come_one_after_another(tmp_path: Path) -> None:
    rows = [row(name, clips=6, drift=3, metrics=["noise"]) for name in ("vanilla", "inverted")]
    for count in range(3):
        waiting = [RowResult(name=each.name, wanted=6, training=(5, 60)) for each in rows[count:]]
        write_all(suite(*rows[:count], *waiting), tmp_path, METRICS)
        words = "".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).words)
        assert ("Not finished yet" in words) == (count < 2)
        assert words.count("training, 5 of 60 steps") == 2 * len(waiting)  # in the banner and in the table
    write_all(suite(), tmp_path, METRICS)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_all(suite(row("a", clips=1)), tmp_path / "file", METRICS)


# Plots -------------------------------------------------------------------------------------------------


def test_plots_of_what_there_is() -> None:
    found = measured(suite(row("a", metrics=["sharpness"]), row("b", metrics=["sharpness"])), METRICS)
    assert [plot.key for plot in plots(found)] == ["drift", "curve-sharpness"]
    found = measured(suite(row("a", forgets=1.0), row("b", forgets=0.0)), METRICS)
    assert {"paradox", "forgetting"} <= {plot.key for plot in plots(found)}
    assert list(plots(measured(suite(), METRICS))) == []


def test_a_curve_is_the_mean_over_clips_of_the_usual_length() -> None:
    clips = [ClipScores(clip=f"c{n}", values={"m": (float(n), n + 1.0, n + 2.0)}) for n in range(6)]
    clips.append(ClipScores(clip="short", values={"m": (900.0, 900.0)}))
    found = measured(suite(RowResult(name="a", clips=tuple(clips), wanted=7)), {"m": Info(title="M")})
    plot = curves_plot(found, "m", found.metrics["m"])
    assert plot is not None
    (line,) = plot.figure.axes[0].get_lines()
    assert np.allclose(line.get_ydata(), [2.5, 3.5, 4.5])


def test_colours_tell_what_is_claimed() -> None:
    rows = (row("vanilla", drift=3, own=0.1), row("inverted", own=0.1), row("f1", drift=3, own=0.1))
    found = measured(suite(row("the world", reference=True, own=0), *rows), METRICS)
    plot = next(plot for plot in plots(found) if plot.key == "drift")
    assert [patch.get_facecolor()[:3] for patch in plot.figure.axes[0].patches][1] == pytest.approx(
        (0, 0x72 / 255, 0xB2 / 255)
    )


def test_svg_ids_are_its_own() -> None:
    svg = '<?xml?><svg xmlns="u" viewBox="0 0 1 1" width="1"><metadata>d</metadata>'
    svg += '<g id="a" style="fill: #22262b"/>'
    svg += '<use xlink:href="#a" clip-path="url(#b)" x="1.23456"/><text>#22262b 1.23456</text></svg>'
    assert inline(svg, "p") == (
        '<svg viewBox="0 0 1 1" role="img"><g id="p-a" style="fill: var(--ink)"/>'
        '<use href="#p-a" clip-path="url(#p-b)" x="1.2"/><text>#22262b 1.23456</text></svg>'
    )


# Strips ------------------------------------------------------------------------------------------------


def filmed(tmp_path: Path) -> SuiteResult:
    """Two rows of five clips with videos whose frames are as bright as their number, and one walk."""
    rows = []
    for name, slope in (("vanilla", 3.0), ("inverted", 1.0)):
        made = row(name, clips=5, frames=20, drift=slope)
        clips = []
        for n, clip in enumerate(made.clips):
            path = tmp_path / name / f"{clip.clip}.mp4"
            frames = (
                np.full((20, 32, 32, 3), 0, np.uint8)
                + np.arange(0, 200, 10, dtype=np.uint8)[:, None, None, None]
            )
            write_video(path, list(frames), 8)
            values = {"sharpness": tuple(10 - slope * n * t / 20 for t in range(20))}
            clips.append(replace(clip, video=path, values=values))
        walk = Revisit(
            clip="walk", away=(2, 9), error=(0.5, 1.5), at=(4, 15), video=clips[0].video, truth=clips[1].video
        )
        rows.append(replace(made, clips=tuple(clips), revisits=(walk,)))
    return suite(*rows)


def test_strips_of_the_best_the_median_and_the_worst(tmp_path: Path) -> None:
    found = measured(filmed(tmp_path), METRICS)
    measure = drift_measure(found)
    assert measure is not None and drift_measure(found, "noise") is None
    strips = list(row_strips(found, 0, measure))
    assert [strip.what.split(",")[0] for strip in strips] == [
        "least: clip-000",
        "median: clip-002",
        "most: clip-004",
    ]
    assert strips[0].labels == ("1", "4", "6", "9", "12", "15", "17", "20")
    assert [
        abs(int(frame.mean()) - 10 * (int(n) - 1)) <= 4
        for frame, n in zip(strips[0].frames, strips[0].labels, strict=True)
    ]
    before, truth = revisit_strips(found, 1)
    assert before.labels == ("7: last in view", "11: out of view", "16: back after 9")
    assert [round(float(frame.mean()) / 10) for frame in before.frames] == [6, 10, 15]
    assert truth.row == "the world's own"


def test_missing_and_damaged_videos_are_left_out(tmp_path: Path) -> None:
    result = filmed(tmp_path)
    (tmp_path / "vanilla" / "clip-000.mp4").unlink()
    (tmp_path / "vanilla" / "clip-002.mp4").write_bytes(b"no video")
    found = measured(result, METRICS)
    measure = drift_measure(found)
    assert measure is not None
    assert [strip.what[:4] for strip in row_strips(found, 0, measure)] == ["most"]
    assert len(strips_of(found).same) >= 1


def test_strips_fit_into_a_page(tmp_path: Path) -> None:
    shown = strips_of(measured(filmed(tmp_path), METRICS))
    assert [name for name, _ in shown.rows] == ["vanilla", "inverted"] == [name for name, _ in shown.walks]
    urls = [
        url
        for part in (shown.same, *(p for _, p in (*shown.rows, *shown.walks)))
        for s in part
        for url, _ in s.frames
    ]
    assert urls and all(url.startswith("data:image/webp;base64,") for url in urls)
    assert sum(map(len, urls)) < STRIPS_BYTES


# A browser ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_in_a_browser(written: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    said: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda request: said.append(request.url) if request.url.startswith("http") else None
        )
        page.on("dialog", lambda dialog: said.append("alert"))
        page.goto((written / "report.html").as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        column = "#table-drift + .table tbody tr > :nth-child(2)"
        before = page.eval_on_selector_all(column, "all => all.map(cell => cell.dataset.n ?? null)")
        orders = [before]
        for _ in range(3):
            page.click("#table-drift + .table thead th:nth-child(2) button")
            orders.append(page.eval_on_selector_all(column, "all => all.map(cell => cell.dataset.n ?? null)"))
        sort = page.get_attribute("#table-drift + .table thead th:nth-child(2)", "aria-sort")
        browser.close()
    assert said == []
    assert wide <= 390
    up, down = ([float(n) for n in order if n is not None] for order in orders[1:3])
    assert len(up) == 6 and up == sorted(up) and down == up[::-1]
    assert orders[1][len(up) :] == orders[2][len(up) :] == [None] * 2  # what has no number stays below
    assert orders[3] == before and sort is None
