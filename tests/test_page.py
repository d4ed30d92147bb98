"""The page in a real browser: a video from a picture, the queue, a section made again; and its parts."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framepack.errors import InputError
from framepack.serving.asked import Asked
from framepack.serving.clients import Tokens
from framepack.serving.jobs import NewJob, Status
from framepack.serving.page.values import SCENES, of_asked, of_settings, received, told_by, written
from framepack.serving.page.words import LANGUAGES, WORDS, language_of, words
from framepack.video.comment import read_comment
from framepack.video.io import read_video
from page_site import PATIENCE, served
from service_site import ANN, BOB, PROMPT, Site, picture

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "src" / "framepack" / "serving" / "page"
DEMO = ROOT / "examples" / "demo.png"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
DRIVER = all(importlib.util.find_spec(name) for name in ("playwright", "gradio"))
VIDEO = "document.querySelector('#stage video')"

# What it stands on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "cookies", "language"),
    [
        ("", {}, "en"),
        ("ja", {}, "ja"),
        ("de-DE,zh-TW;q=0.7,ja;q=0.8", {}, "ja"),
        ("zh-Hans-CN,en", {}, "zh-CN"),
        ("fr;q=x, *", {}, "en"),
        ("ja", {"framepack_language": "en"}, "en"),
        ("ja", {"framepack_language": "xx"}, "ja"),
    ],
)
def test_the_language_is_chosen_or_the_browsers(header: str, cookies: dict[str, str], language: str) -> None:
    assert language_of({"accept-language": header}, cookies) == language


def test_every_text_is_there_in_every_language_and_used() -> None:
    used = "".join(file.read_text() for file in (*PAGE.glob("*.py"), *PAGE.glob("static/*.js")))
    used = used.replace((PAGE / "words.py").read_text(), "")
    for name, texts in WORDS.items():
        assert len(texts) == len(LANGUAGES) and all(texts), name
        places = [set(re.findall(r"{(\w+)}", text)) for text in texts]
        assert places[0] == places[1] == places[2], name
        made = name.startswith("stage_") or name in list(Status) or name in ("sign_in_how", "token", "cost")
        made = made or name in ("sign_in", "time_s", "time_min", "time_h", "title", "up", "down", "language")
        assert made or f'"{name}"' in used or f"{{{name}}}" in used or f" {name}: " in used, (
            f"'{name}' is unused"
        )
    assert words("ja")["start"] == "動画を作る"


scenes = st.lists(
    st.tuples(
        st.integers(1, 3000).map(lambda n: n / 10),
        st.text(string.ascii_letters + "[]\\: 動", min_size=1).filter(lambda text: text.strip()),
    ),
    max_size=SCENES,
    unique_by=lambda scene: scene[0],
).map(sorted)


@given(st.text(string.ascii_letters + " ", min_size=1).filter(str.strip), scenes)
def test_a_storyboard_is_read_back_as_it_was_written(prompt: str, rows: list[tuple[float, str]]) -> None:
    values: dict[str, object] = {"prompt": prompt.strip()}
    for row, (at, then) in enumerate(rows):
        values |= {f"at_{row}": at, f"then_{row}": then.strip()}
    assert {name: value for name, value in told_by(written(values)).items() if value} == values


def test_rows_that_say_too_little_are_refused() -> None:
    with pytest.raises(InputError, match="scene 2 has no time"):
        written({"prompt": "a", "then_1": "b"})
    with (
        pytest.raises(InputError, match="key picture 1 has no time"),
        received({"prompt": "a", "key_image_0": str(DEMO)}),
    ):
        pass
    with pytest.raises(InputError, match=r"^seconds: "), received({"prompt": "a", "seconds": -1}):
        pass


def test_what_was_asked_for_fills_the_form_again(tmp_path: Path) -> None:
    site = Site(tmp_path / "service")
    about = site.service.about("bundled")
    asked_for = {
        "prompt": PROMPT,
        "image": str(DEMO),
        "end_image": str(DEMO),
        "seconds": 3.0,
        "seed": 9,
        "steps": 3,
        "guidance": 1.5,
        "method": "vanilla",
        "at_0": 1.5,
        "then_0": "It stops.",
        "key_at_0": 1.0,
        "key_image_0": str(DEMO),
    }
    with received(asked_for) as sent:
        job = site.service.submit("local", sent.asked(site.service), sent.files)
    folder = site.service.places.job(job.id).path
    values = of_asked(Asked.from_json(job.asked), folder, about)
    plain = {name: value for name, value in asked_for.items() if "image" not in name}
    assert {name: values[name] for name in plain} == plain
    files = {name: Path(values[name]).name for name in ("image", "end_image", "key_image_0")}
    assert files == {"image": "start.png", "end_image": "end.png", "key_image_0": "key-0.png"}
    site.store.close()


@given(st.binary(max_size=200))
def test_no_file_breaks_the_reading_of_settings(junk: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\0\0\0\x10ftypisom\0\0\0\0" + len(junk).to_bytes(4, "big") + b"moov" + junk)
        file.flush()
        assert read_comment(Path(file.name)) == {}


def test_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    site = Site(tmp_path / "service")
    for told in ({}, {"config": 3}, {"config": {"prompt": "a", "frames": 2, "fps": 0}}):
        with pytest.raises(InputError, match="no settings"):
            of_settings(told, site.service)
    site.store.close()


def test_the_example_is_the_demo() -> None:
    assert (PAGE / "static" / "demo.png").read_bytes() == DEMO.read_bytes()


# Who may look -------------------------------------------------------------------------------------------


def test_browsers_sign_in_and_programs_are_told(tmp_path: Path) -> None:
    site = Site(tmp_path / "service", tokens=Tokens({"ann": ANN, "bob": BOB}))
    http = site.http
    http.follow_redirects = False
    assert http.get("/v1/videos").json()["error"]["code"] == "invalid_api_key"
    asks = {"accept": "text/html,*/*"}
    sent = http.get("/", headers=asks)
    assert (sent.status_code, sent.headers["location"]) == (303, "/login")
    form = http.get("/login", headers={"accept-language": "ja"})
    assert (
        form.status_code == 200
        and "トークン" in form.text
        and "http" not in form.text.replace("viewport", "")
    )
    wrong = http.post("/login", data={"token": ANN + "x"})
    assert wrong.status_code == 401 and "not known" in wrong.text and "set-cookie" not in wrong.headers
    foreign = http.post("/login", data={"token": ANN}, headers={"origin": "http://elsewhere.example"})
    assert foreign.status_code == 403
    right = http.post("/login", data={"token": ANN})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and ANN not in cookie
    site.store.add(_new("bob"))
    assert http.get("/page/jobs").json() == {"data": []}, "nobody sees another's"
    out = http.post("/logout")
    assert out.headers["location"] == "/login" and http.get("/page/jobs").status_code == 401
    site.store.close()


def _new(client: str) -> NewJob:
    return NewJob(client=client, model="bundled", prompt=PROMPT, asked={"model": "bundled", "prompt": PROMPT})


def test_news_are_told_once(tmp_path: Path) -> None:
    site = Site(tmp_path / "service")
    first = site.make()["id"]
    answer = site.http.get("/page/jobs")
    tag = {"if-none-match": answer.headers["etag"]}
    assert [job["id"] for job in answer.json()["data"]] == [first]
    assert answer.json()["data"][0]["framepack"]["place"] == 1.0
    assert site.http.get("/page/jobs", headers=tag).status_code == 304
    assert site.http.post(f"/v1/videos/{first}/pause").status_code == 200
    assert site.http.get("/page/jobs", headers=tag).status_code == 200
    for path in ("/page/nothing", "/page/..%2fmount.py", "/nowhere", "/v1/nowhere"):
        assert site.http.get(path).json()["error"]["code"] == "not_found", path
    assert site.http.delete("/v1/videos").status_code == 405
    site.store.close()


# In a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if not DRIVER:
        pytest.skip("needs gradio and a browser's driver: pip install playwright 'framepack-ai[serve]'")
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt install chromium, or playwright install chromium")
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def working(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    with served(tmp_path_factory.mktemp("working") / "service", works=True) as site:
        yield site


def opened(browser, address: str, size: str = "desktop", **more: object):
    """The page, ready for use; it fails where anything is asked of another site."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address + "/")
    ready(page)
    return page


def ready(page) -> None:
    page.wait_for_selector("#studio h2")
    page.wait_for_selector("#cost p")


def close(page, address: str) -> None:
    assert page.faults == []
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    page.context.close()


def fill(page, **values: object) -> None:
    for name, value in values.items():
        page.fill(f"#{name} input, #{name} textarea", str(value))


@pytest.mark.parametrize("size", SIZES)
def test_from_a_picture_to_a_video(browser, working: tuple[Site, str], size: str) -> None:
    site, address = working
    page = opened(browser, address, size)
    page.set_input_files("#image input[type=file]", DEMO)
    page.wait_for_selector("#image img")
    fill(page, prompt=PROMPT, steps=12, guidance=1)
    before = page.inner_text("#cost")
    fill(page, seconds=4)
    page.wait_for_function("before => document.querySelector('#cost').innerText !== before", arg=before)
    page.wait_for_function("document.querySelector('#cost').innerText.includes('32 frames')")
    assert "128×128" in page.inner_text("#cost") and "6 sections" in page.inner_text("#cost")
    page.click("#start")
    page.wait_for_selector("#stage[data-status=in_progress]")
    name = page.get_attribute("#stage", "data-video")
    fill(page, prompt="Something else is being typed.")

    # It grows, and plays meanwhile; news of it touch neither the video nor what is typed.
    page.wait_for_selector(".strip img")
    page.wait_for_function(f"{VIDEO}.duration > 0 && {VIDEO}.readyState >= 2")
    seen, source = page.evaluate(f"[{VIDEO}.duration, {VIDEO}.src]")
    page.wait_for_function(f"{VIDEO}.duration > {seen}")
    assert source.startswith("blob:") or site.store.get(name).status is Status.COMPLETED
    page.click("#stage button[name=pause]")
    page.wait_for_selector("#stage[data-status=paused]")
    assert page.input_value("#prompt textarea") == "Something else is being typed."
    assert 0 < site.store.get(name).progress["section"] < 6

    page.reload()
    ready(page)
    page.wait_for_selector(f"#stage[data-video={name}][data-status=paused] .strip img")
    assert page.input_value("#prompt textarea") == "Something else is being typed."
    assert page.input_value("#seconds input") == "4"
    page.wait_for_function(f"{VIDEO}.duration > 0")
    page.click("#queue button[name=resume]")
    page.wait_for_selector("#stage[data-status=completed]")
    page.wait_for_function(f"{VIDEO}.duration === 4 && {VIDEO}.currentTime > 0.2")
    assert page.locator(".strip img").count() == 6
    assert page.evaluate("[...document.querySelectorAll('.strip img')].every((one) => one.naturalWidth > 0)")
    asked = site.store.get(name).asked
    assert (asked["prompt"], asked["image"], asked["steps"]) == (PROMPT, "start.png", 12)
    close(page, address)


def test_what_can_be_done_with_a_finished_video(browser, working: tuple[Site, str], tmp_path: Path) -> None:
    site, address = working
    asked = {"prompt": PROMPT, "image": str(DEMO), "seconds": 2.0, "steps": 2, "guidance": 1.0, "seed": 41}
    with received(asked | {"at_0": 1.0, "then_0": "It stops."}) as sent:
        first = site.service.submit("local", sent.asked(site.service), sent.files).id
    page = opened(browser, address)
    page.wait_for_selector(f"#history [data-video={first}]").click()
    page.wait_for_selector(f"#stage[data-video={first}][data-status=completed]")

    page.click("#stage button[name=reuse]")
    page.wait_for_selector("#image img")
    page.wait_for_function("document.querySelector('#seed input').value === '41'")
    assert page.input_value("#prompt textarea") == PROMPT
    page.click("#storyboard button >> nth=0")
    assert page.locator("#storyboard textarea:visible").input_value() == "It stops."

    page.click(".strip button >> nth=1")
    assert "section 2" in page.inner_text("dialog h2")
    page.fill("dialog [name=seed]", "77")
    page.click("dialog [type=submit]")
    page.wait_for_selector(f"#stage:not([data-video={first}])[data-status=completed]")
    second = site.store.get(page.get_attribute("#stage", "data-video"))
    assert second.redo == {"section": 1, "prompt": None, "seed": 77, "alone": True} and second.parent == first
    assert page.locator(".strip .redone").get_attribute("title") == "Make section 2 again"

    page.click("#stage button[name=compare]")
    page.click(f"#history [data-video={first}]")
    both = "[...document.querySelectorAll('#pair video')]"
    page.wait_for_function(f"{both}.every((one) => one.duration === 2 && one.currentTime > 0.2)")
    assert all(
        name in json.dumps(page.evaluate(f"{both}.map((one) => one.src)")) for name in (first, second.id)
    )
    page.click("#pair button[name=compare_end]")

    fill(page, seed=5)
    page.click("#read-back button >> nth=0")
    page.set_input_files("#read-back input[type=file]", site.service.places.job(first).video)
    page.wait_for_function("document.querySelector('#seed input').value === '41'")
    page.get_by_text("choose them again").wait_for()  # the picture is not in the file
    assert page.locator("#image img").count() == 0

    page.click(f"#history [data-video={second.id}]")
    page.click("#stage button[name=extend]")
    assert page.input_value("dialog [name=prompt]") == "", "its times are those of the first part"
    page.fill("dialog [name=prompt]", "It rests.")
    page.fill("dialog [name=seconds]", "1")
    page.click("dialog [type=submit]")
    page.wait_for_selector(f"#stage:not([data-video={second.id}])[data-status=completed]")
    page.wait_for_function(f"{VIDEO}.duration === 3")
    page.click("#stage button[name=delete]")
    third = page.get_attribute("#stage", "data-video")
    page.click("dialog [type=submit]")
    page.wait_for_selector(f"#history [data-video={third}]", state="detached")
    assert not site.service.places.job(third).path.exists()
    close(page, address)


def test_what_the_file_tells_is_what_was_written(working: tuple[Site, str]) -> None:
    site, _ = working
    done = [job for job in site.store.listed() if job.status is Status.COMPLETED]
    assert done
    for job in done:
        video = site.service.places.job(job.id).video
        assert read_comment(video) == read_video(video).metadata != {}
        assert of_settings(read_comment(video), site.service)["seed"] == job.asked.get("seed", 0)


def test_a_queue_that_is_put_in_order(browser, tmp_path: Path) -> None:
    with served(tmp_path / "service") as (site, address):
        names = [site.make(prompt=f"Video {n}", seed=n)["id"] for n in range(3)]
        page = opened(browser, address, "phone", locale="zh-CN", reduced_motion="reduce")
        assert page.inner_text("#start") == words("zh-CN")["start"]
        shown = "[...document.querySelectorAll('#queue article')].map((one) => one.dataset.video)"
        assert page.evaluate(shown) == names
        order = [names[0], names[2], names[1]]
        page.click(f"[data-video={names[2]}] [name=up]")
        page.wait_for_function(f"JSON.stringify({shown}) === '{json.dumps(order, separators=(',', ':'))}'")
        assert [job.id for job in site.store.queue()] == order
        page.click(f"[data-video={names[0]}] [name=down]")
        order = [names[2], names[0], names[1]]
        page.wait_for_function(f"JSON.stringify({shown}) === '{json.dumps(order, separators=(',', ':'))}'")
        page.click(f"#queue [data-video={names[0]}] [name=pause]")
        page.wait_for_selector(f"#queue [data-video={names[0]}][data-status=paused]")
        page.click(f"#queue [data-video={names[2]}] [name=cancel]")
        page.wait_for_selector(f"#history [data-video={names[2]}][data-status=cancelled]")
        statuses = {job.id: job.status for job in site.store.listed()}
        assert statuses == dict(zip(names, (Status.PAUSED, Status.QUEUED, Status.CANCELLED), strict=True))

        other = page.context.new_page()  # a second tab shows the same
        other.goto(address)
        other.wait_for_selector(f"#queue [data-video={names[0]}][data-status=paused]")
        other.close()

        page.select_option("select[name=language]", "ja")
        page.get_by_role("button", name=words("ja")["start"], exact=True).wait_for()
        ready(page)
        assert page.evaluate("document.documentElement.lang") == "ja"
        assert page.locator("text=undefined").count() == page.locator("text=__i18n__").count() == 0

        # What cannot be made is told in a line, before and after the button.
        fill(page, seconds=99999)
        page.wait_for_selector("#cost .wrong")
        assert "at most 86,400" in page.inner_text("#cost") and "Traceback" not in page.content()
        broken = tmp_path / "broken.png"
        broken.write_bytes(picture()[:60])
        fill(page, seconds=2)
        page.set_input_files("#image input[type=file]", broken)
        page.wait_for_function("document.querySelector('#cost .wrong')?.innerText.includes('damaged')")
        page.click("#start")
        page.wait_for_selector("#cost .refused")
        assert page.inner_text("#cost").startswith(words("ja")["refused"] + ": ")
        assert len(site.store.listed()) == 3 and "/work" not in page.inner_text("body")
        close(page, address)


def test_signing_in_shows_the_page(browser, tmp_path: Path) -> None:
    with served(tmp_path / "service", tokens=Tokens({"ann": ANN})) as (_, address):
        page = browser.new_context().new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        assert page.url == f"{address}/login"
        page.fill("[name=token]", "not the right one")
        page.click("button")
        page.wait_for_selector(".wrong")
        page.fill("[name=token]", ANN)
        page.click("button")
        ready(page)
        assert page.url == f"{address}/"
        page.get_by_text("Sign out").click()
        page.wait_for_url("**/login")
        page.context.close()
