"""The arena's server as a process of its own: what it tells, what it hides, and what it never loses."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arena_site import LEVELS, Site, run_arena, running, write_clip, write_rows
from framepack.evaluation.arena.server import listen

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")),
    reason="no FastAPI: pip install 'framepack-ai[serve]'",
)

JUDGES = ("ann", "ben", "cy", "dee")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("arena"), 3)


@pytest.fixture
def folder(videos: Path, tmp_path: Path) -> Path:
    """The same videos for each test, and a log of its own."""
    (tmp_path / "rows").symlink_to(videos / "rows")
    return tmp_path


@pytest.fixture(scope="module")
def shared(videos: Path) -> Iterator[Site]:
    """One server for tests that leave nothing to trip over."""
    with running(videos) as site:
        yield site


def logged(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "arena" / "judgements.jsonl").read_text().splitlines()]


def test_what_a_judge_is_told_names_nothing(shared: Site) -> None:
    pairs = [shared.ask("blind") for _ in range(10)]
    replies = [json.dumps(pair) for pair in pairs]
    for path in ("/", "/api/start", "/page/arena.js", f"/api/pairs/{pairs[0]['id']}"):
        replies.append(shared.call("GET", path)[2].decode())
    for pair in pairs:
        for side in ("left", "right"):
            replies.append(json.dumps(shared.call("HEAD", pair[side])[1]))
    told = " ".join(replies)
    for name in (*LEVELS, "clip-0", ".mp4"):
        assert not re.search(rf"(?<![a-z]){name}(?![a-z])", told), name
    assert set(pairs[0]) == {"id", "left", "right", "progress"}
    addresses = [pair[side] for pair in pairs for side in ("left", "right")]
    assert len(set(addresses)) == 20  # a video has another address in every pair


def test_headers_do_not_tell_files_apart(shared: Site) -> None:
    """The same file twice in a row gives headers that differ in the pair alone, as other files do."""
    pair = shared.ask()
    for side in ("left", "right"):
        headers = shared.call("GET", pair[side])[1]
        assert headers["content-type"] == "video/mp4" and pair["id"] in headers["etag"]
        assert headers["last-modified"].endswith("1970 00:00:00 GMT")
        assert "content-disposition" not in headers


def test_videos_come_in_ranges(shared: Site) -> None:
    pair = shared.ask()
    status, headers, whole = shared.call("GET", pair["left"])
    assert status == 200 and headers["accept-ranges"] == "bytes" and whole[4:8] == b"ftyp"
    size = len(whole)
    for asked, start, end in (("100-199", 100, 200), ("0-", 0, size), ("-50", size - 50, size)):
        status, headers, part = shared.call("GET", pair["left"], headers={"range": f"bytes={asked}"})
        assert status == 206 and part == whole[start:end]
        assert headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    assert shared.call("GET", pair["left"], headers={"range": f"bytes={size}-"})[0] == 416


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/videos/nobody/left", None, 404),
        ("GET", "/videos/{id}/middle", None, 422),
        ("GET", "/videos/{id}/..%2f..%2fsuite.json", None, 404),
        ("GET", "/videos/{id}/left/../../../etc/passwd", None, 404),
        ("GET", "/page/../server.py", None, 404),
        ("GET", "/page/..%2fserver.py", None, 404),
        ("GET", "/rows/elm/clips/clip-000.mp4", None, 404),
        ("GET", "/results", None, 404),
        ("GET", "/openapi.json", None, 404),
        ("PUT", "/api/pairs/nobody/judgement", {"choice": "left"}, 404),
        ("PUT", "/api/pairs/{id}/judgement", {"choice": "both"}, 422),
        ("PUT", "/api/pairs/{id}/judgement", {}, 422),
        ("DELETE", "/api/pairs/nobody/judgement", None, 404),
        ("POST", "/api/pairs", {"judge": "   "}, 422),
        ("POST", "/api/pairs", {"judge": "x" * 61}, 422),
        ("POST", "/api/pairs", {"judge": "a\u202eb"}, 422),
        ("POST", "/api/pairs", {}, 422),
    ],
)
def test_what_is_refused(shared: Site, method: str, path: str, body: object, status: int) -> None:
    found = shared.call(method, path.format(id=shared.ask()["id"]), body)
    assert found[0] == status, found
    assert b"root:" not in found[2] and b"import" not in found[2]


def test_a_video_that_is_gone(tmp_path: Path) -> None:
    for row in "ab":
        write_clip(tmp_path / row / "1.mp4", 100)
    with running(tmp_path) as site:
        pair = site.ask()
        (tmp_path / "a" / "1.mp4").unlink()
        assert sorted(site.call("GET", pair[side])[0] for side in ("left", "right")) == [200, 404]


def test_judging_undoing_and_judging_again(folder: Path) -> None:
    with running(folder) as site:
        first, second = site.ask(), site.ask()
        assert first["progress"] == {"judged": 0, "done": 0, "total": 30, "round": 1}
        assert site.judge(first["id"], "left")["done"] == 1
        assert site.judge(first["id"], "left")["done"] == 1  # arrived twice
        assert site.judge(second["id"], "skip")["done"] == 2
        status, _, body = site.call("DELETE", f"/api/pairs/{first['id']}/judgement")
        again = json.loads(body)
        assert status == 200 and again["progress"]["done"] == 1
        assert {key: again[key] for key in ("id", "left", "right")} == {
            key: first[key] for key in ("id", "left", "right")
        }
        assert site.judge(first["id"], "tie")["done"] == 2
    choices = [record["choice"] for record in logged(folder) if record["kind"] == "judgement"]
    assert choices == ["left", "skip", None, "tie"]


def test_judges_and_tabs_at_once(folder: Path) -> None:
    """Four judges in two tabs each, on two servers: everything counts, and no tab gets another's pair."""

    def tab(site: Site, judge: str) -> list[str]:
        given = []
        for number in range(6):
            pair = site.ask(judge)
            site.judge(pair["id"], ("left", "right", "tie")[number % 3])
            given.append(pair["id"])
        return given

    with running(folder) as one, running(folder) as other, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(tab, site, judge) for judge in JUDGES for site in (one, other)]
        given = [pair for job in jobs for pair in job.result()]
        assert one.ask("ann")["progress"]["done"] == other.ask("ann")["progress"]["done"] == 12
    assert len(set(given)) == 48
    records = logged(folder)
    pairs = {record["id"]: record for record in records if record["kind"] == "pair"}
    judged = [pairs[record["pair"]] for record in records if record["kind"] == "judgement"]
    assert len(judged) == 48
    for judge in JUDGES:
        own = {(frozenset((p["left"], p["right"])), p["clip"]) for p in judged if p["judge"] == judge}
        assert len(own) == 12  # none twice


def test_killing_the_server_loses_nothing_acknowledged(folder: Path) -> None:
    acknowledged: dict[str, str] = {}
    waiting = None
    port = 0
    for _ in range(2):
        with running(folder, port=port) as site:
            port = site.port
            if waiting is not None:  # the page's own pair outlives the server that gave it
                assert site.call("GET", waiting["left"])[0] == 200
                site.judge(waiting["id"], "tie")
                acknowledged[waiting["id"]] = "tie"
            for number in range(7):
                pair = site.ask()
                choice = ("left", "right", "skip")[number % 3]
                site.judge(pair["id"], choice)
                acknowledged[pair["id"]] = choice
            waiting = site.ask()
            site.kill()
        with (folder / "arena" / "judgements.jsonl").open("a") as file:
            file.write('{"kind": "judgement", "pai')  # and it died in the middle of a line
    with running(folder) as site:
        assert site.ask()["progress"]["judged"] == len(acknowledged) == 15
        code, out, err = site.interrupt()
    assert (code, err) == (0, "") and "answers are in" in out
    found = {r["pair"]: r["choice"] for r in logged(folder) if r["kind"] == "judgement"}
    assert found == acknowledged


def test_only_listed_judges(folder: Path) -> None:
    with running(folder, "--judges", "Ann Lee, ben", "--question", "Which is sharper?") as site:
        told = json.loads(site.call("GET", "/api/start")[2])
        assert told == {"question": "Which is sharper?", "judges": ["Ann Lee", "ben"], "results": False}
        site.ask("  Ann   Lee ")
        assert site.call("POST", "/api/pairs", {"judge": "eve"})[0] == 403


def test_results_page_where_it_is_wanted(folder: Path) -> None:
    with running(folder, "--show-results") as site:
        assert b"Nothing is judged yet" in site.call("GET", "/results")[2]
        for _ in range(12):
            site.judge(site.ask("<b>eve</b>")["id"], "left")
        page = site.call("GET", "/results")[2].decode()
        assert "12 judgements by 1 judge," in " ".join(page.split()) and "<b>" not in page
        assert all(row in page for row in LEVELS)


def test_results_on_the_command_line(folder: Path) -> None:
    assert run_arena(folder, "--results")[0] == 2
    with running(folder) as site:
        for _ in range(10):
            site.judge(site.ask()["id"], "tie")
    code, out, err = run_arena(folder, "--results", "--export", folder / "all.csv")
    assert (code, err) == (0, "")
    assert "10 judgements (ann 10), 0 skipped" in out and all(row in out for row in LEVELS)
    told = json.loads((folder / "arena" / "ratings.json").read_text())
    assert [row["rating"] for row in told["rows"]] == [1000.0] * 5
    assert told["question"] == "Which one is better overall?"
    assert len((folder / "arena" / "ratings.csv").read_text().splitlines()) == 6
    assert len((folder / "all.csv").read_text().splitlines()) == 11


def test_errors_are_one_line(tmp_path: Path, videos: Path, shared: Site) -> None:
    write_clip(tmp_path / "one" / "a" / "1.mp4", 100)
    bad = [
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path], "no videos in"),
        ([tmp_path / "one"], "has one row"),
        ([videos, "--port", shared.port], "choose another --port"),
        ([videos, "--port", 99999], "choose another --port"),
        ([videos, "--judges", " , "], "names nobody"),
        ([videos, "--question", " "], "empty question"),
        ([tmp_path / "one", "--results"], "no judgements yet"),
    ]
    with ThreadPoolExecutor(2) as pool:
        for (arguments, words), (code, out, err) in zip(
            bad, pool.map(lambda case: run_arena(*case[0]), bad), strict=True
        ):
            assert (code, out) == (2, ""), (arguments, out, err)
            assert words in err and len(err.splitlines()) == 1, err


def test_without_fastapi(folder: Path) -> None:
    """All but the server works without it, and the server says what to install."""
    code = f"""
import sys
sys.modules["fastapi"] = sys.modules["uvicorn"] = None
import framepack.evaluation.arena.pairs, framepack.evaluation.arena.standings
from framepack.cli import main
sys.argv = ["framepack", "arena", {str(folder)!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "pip install 'framepack-ai[serve]'" in done.stderr, done
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_answers_are_not_held_back() -> None:
    """Headers and body are two packets; the second must not wait until the first is acknowledged."""
    listening, address = listen("127.0.0.1", 0)
    with listening, socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
