"""The API: OpenAI's shape, rules for what comes in, and who sees what."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from framepack.errors import InputError
from framepack.serving.clients import Rate, Sessions, Tokens
from framepack.serving.guard import COOKIE
from framepack.serving.jobs import Status
from framepack.serving.service import Limits
from framepack.serving.worker import Worker
from service_site import ANN, BOB, PROMPT, QUICK, Site, picture, with_video

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = Tokens({"ann": ANN, "bob": BOB})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "service")
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """A service with one finished video."""
    with with_video(tmp_path_factory.mktemp("made") / "service") as found:
        yield found


def fault(answer) -> tuple[int, str, str]:
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"} and "\n" not in told["message"]
    return answer.status_code, told["code"], told["message"]


def test_a_video_has_the_shape_that_openai_gives_it(site: Site) -> None:
    video = site.make()
    assert re.fullmatch(r"video_[0-9a-f]{28}", video["id"])
    assert {k: video[k] for k in ("object", "status", "model", "prompt", "progress", "seconds")} == {
        "object": "video",
        "status": "queued",
        "model": "bundled",
        "prompt": PROMPT,
        "progress": 0,
        "seconds": "2",
    }
    assert abs(video["created_at"] - time.time()) < 10 and video["completed_at"] is None
    assert site.http.get(f"/v1/videos/{video['id']}").json() == video


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_official_client_makes_polls_downloads_and_deletes(made: tuple[Site, str]) -> None:
    openai = pytest.importorskip("openai", reason="pip install openai")
    site, _ = made
    client = openai.OpenAI(
        api_key="none", base_url="http://testserver/v1", http_client=site.http, max_retries=0
    )
    video = client.videos.create(
        prompt=PROMPT,
        model="bundled",
        seconds="2",
        size="128x128",
        input_reference=("start.png", picture(), "image/png"),
        extra_body={"steps": 2, "seed": 9, "extra": {"guidance": 1.0}},
    )
    assert (video.status, video.seconds, video.size) == ("queued", "2", "128x128")
    asked = site.store.get(video.id).asked
    assert (asked["steps"], asked["seed"], asked["guidance"], asked["image"]) == (2, 9, 1.0, "start.png")
    assert Worker(site.store, site.config, "w").once()
    done = client.videos.poll(video.id)
    assert (done.status, done.progress) == ("completed", 100)
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
    assert video.id in [each.id for each in client.videos.list()]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    assert not site.service.places.job(video.id).path.exists()


def test_content_comes_in_ranges_and_as_pictures(made: tuple[Site, str]) -> None:
    site, name = made
    whole = site.http.get(f"/v1/videos/{name}/content")
    assert whole.headers["content-type"] == "video/mp4" and whole.content[4:8] == b"ftyp"
    part = site.http.get(f"/v1/videos/{name}/content", headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.headers["content-range"] == f"bytes 4-7/{len(whole.content)}"
    past = site.http.get(f"/v1/videos/{name}/content", headers={"range": "bytes=99999999-"})
    assert past.status_code == 416
    for variant in ("thumbnail", "spritesheet"):
        shown = site.http.get(f"/v1/videos/{name}/content", params={"variant": variant})
        assert shown.headers["content-type"] == "image/png"
        assert Image.open(BytesIO(shown.content)).size[0] >= 100
    preview = site.http.get(f"/v1/videos/{name}/previews/0")
    assert Image.open(BytesIO(preview.content)).size == (128, 128)
    assert site.http.get(f"/v1/videos/{name}/previews/99").status_code == 404
    assert site.http.get(f"/v1/videos/{name}/content", params={"variant": "x"}).status_code == 400


def test_a_video_that_is_not_there_yet(site: Site) -> None:
    name = site.make()["id"]
    for variant in ("video", "thumbnail"):
        answer = site.http.get(f"/v1/videos/{name}/content", params={"variant": variant})
        assert fault(answer)[:2] == (409, "wrong_state")
    folder = site.service.places.job(name)
    folder.run.mkdir()
    folder.growing.write_bytes(b"0123")
    assert site.http.get(f"/v1/videos/{name}/content").content == b"0123"
    assert site.http.get(f"/v1/videos/{name}/content").headers["cache-control"] == "no-store"


def test_events_tell_each_change_and_end_with_the_video(made: tuple[Site, str]) -> None:
    site, name = made
    with site.http.stream("GET", f"/v1/videos/{name}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[0] == "event: video" and lines[-1].startswith("data: ")
    assert json.loads(lines[-1][6:])["status"] == "completed"


def test_a_remix_and_a_redo_go_on_from_what_is_there(made: tuple[Site, str]) -> None:
    site, name = made
    worker = Worker(site.store, site.config, "w")
    same = site.http.post(f"/v1/videos/{name}/remix", json={"prompt": PROMPT}).json()
    assert same["remixed_from_video_id"] == name
    assert worker.once()
    again = site.store.get(same["id"])
    assert again.status is Status.COMPLETED and again.progress["kept"] == again.progress["sections"]

    redo = site.http.post(f"/v1/videos/{name}/redo", json={"section": 2, "seed": 77}).json()
    assert worker.once()
    redone = site.store.get(redo["id"])
    assert redone.status is Status.COMPLETED and redone.redo == {
        "section": 1,
        "prompt": None,
        "seed": 77,
        "alone": True,
    }
    first = site.http.get(f"/v1/videos/{name}/content").content
    assert site.http.get(f"/v1/videos/{redo['id']}/content").content != first
    assert fault(site.http.post(f"/v1/videos/{name}/redo", json={"section": 99}))[2].startswith("section 99")

    longer = site.http.post(f"/v1/videos/{name}/extend", json={"prompt": PROMPT, "seconds": 1.5}).json()
    assert worker.once()
    grown = site.store.get(longer["id"])
    assert grown.status is Status.COMPLETED, grown.error
    assert grown.progress["frames"] > site.store.get(name).progress["frames"]


def test_what_is_not_finished_cannot_be_gone_on_from(site: Site) -> None:
    name = site.make()["id"]
    for verb, body in (("remix", {"prompt": "x"}), ("redo", {"section": 1}), ("extend", {"prompt": "x"})):
        answer = site.http.post(f"/v1/videos/{name}/{verb}", json=body)
        assert answer.status_code in (400, 409), (verb, answer.text)
    assert site.folders == [name]


def test_the_queue_is_paused_moved_and_cancelled(site: Site) -> None:
    first, second = site.make()["id"], site.make()["id"]
    assert [v["id"] for v in site.http.get("/v1/queue").json()["data"]] == [first, second]
    moved = site.http.post(f"/v1/videos/{second}/move", json={"before": first}).json()
    assert moved["framepack"]["position"] == 1
    assert [v["id"] for v in site.http.get("/v1/queue").json()["data"]] == [second, first]
    paused = site.http.post(f"/v1/videos/{first}/pause").json()
    assert (paused["status"], paused["framepack"]["status"]) == ("queued", "paused")
    assert site.http.post(f"/v1/videos/{first}/resume").json()["framepack"]["status"] == "queued"
    cancelled = site.http.post(f"/v1/videos/{first}/cancel").json()
    assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
    assert fault(site.http.post(f"/v1/videos/{first}/pause"))[:2] == (409, "wrong_state")


def test_what_a_video_would_take(site: Site, made: tuple[Site, str]) -> None:
    body = {"prompt": PROMPT, "seconds": 10}
    cost = site.http.post("/v1/videos/cost", json=body).json()
    assert cost["sections"] == 14 and cost["context_tokens"] == 96 and cost["size"] == "128x128"
    assert cost["seconds"] is None and cost["memory"] is None, "nothing was measured here yet"
    known, _ = made
    measured = known.http.post("/v1/videos/cost", json=body).json()
    assert measured["seconds"] > 0 and measured["memory"] > 10**8
    assert known.store.counts()[Status.QUEUED] == 0 and site.folders == []


def test_forms_and_json_say_the_same(site: Site) -> None:
    data = base64.b64encode(picture()).decode()
    keyframes = [{"at": 1.0, "picture": "middle"}]
    fields = {"prompt": PROMPT, "seconds": "3", "loop": "false", "keyframes": json.dumps(keyframes)}
    form = site.http.post(
        "/v1/videos", data=fields, files={"image": picture(), "middle": picture(), "end_image": picture()}
    )
    assert form.status_code == 200, form.text
    asked = site.store.get(form.json()["id"]).asked
    assert asked["image"] == "start.png"
    assert asked["keyframes"] == [[None, "end.png"], [1.0, "key-0.png"]]
    for reference in (f"data:image/png;base64,{data}", {"image_url": f"data:image/png;base64,{data}"}):
        plain = site.http.post("/v1/videos", json={"prompt": PROMPT, "input_reference": reference})
        assert plain.status_code == 200, plain.text
        folder = site.service.places.job(plain.json()["id"]).path
        assert Image.open(folder / "start.png").size == (64, 48)


def test_pictures_are_kept_as_their_pixels_alone(site: Site) -> None:
    made = BytesIO()
    secret = Image.Exif()
    secret[0x010E] = "taken at home"
    Image.new("RGB", (32, 32), "blue").save(made, "JPEG", exif=secret)
    sent = made.getvalue() + b"PK\x03\x04<script>alert(1)</script>"
    answer = site.http.post("/v1/videos", data={"prompt": PROMPT}, files={"image": ("../../x.svg", sent)})
    assert answer.status_code == 200, answer.text
    kept = (site.service.places.job(answer.json()["id"]).path / "start.png").read_bytes()
    assert kept.startswith(b"\x89PNG") and b"taken at home" not in kept and b"script" not in kept


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "prompt: field required"),
        ({"prompt": "x", "secnds": 5}, "secnds: extra inputs are not permitted"),
        ({"prompt": "x", "seconds": 0}, "seconds"),
        ({"prompt": "x", "seconds": "NaN"}, "seconds"),
        ({"prompt": "x", "seconds": 1e300}, "86,400"),
        ({"prompt": "x", "seconds": 601}, "at most 600 s"),
        ({"prompt": "x", "frames": 5, "seconds": 5}, "give one"),
        ({"prompt": "x", "model": "../../etc"}, "unknown model"),
        ({"prompt": "x", "size": "1x1"}, "1x1"),
        ({"prompt": "x", "size": "nonsense"}, "WIDTHxHEIGHT"),
        ({"prompt": "x", "method": "$(reboot)"}, "$"),
        ({"prompt": "x", "seed": 2**70}, "seed"),
        ({"prompt": "x", "steps": 10**9}, "steps"),
        ({"prompt": "x", "fps": 24}, "makes 8 frames a second"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"prompt": "[0s: a] [-1s: b"}, "parse"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x", "image": "http://169.254.169.254/"}, "no other is fetched"),
        ({"prompt": "x", "image": "file:///etc/passwd"}, "no other is fetched"),
        ({"prompt": "x", "image": "data:image/png;base64,@@@"}, "not base64"),
        ({"prompt": "x", "image": "data:image/png;base64,AAAA"}, "not a picture"),
        ({"prompt": "x", "loras": [{"name": "../x"}]}, "unknown LoRA"),
        ({"prompt": "x", "keyframes": [{"at": 1, "picture": "/etc/passwd"}]}, "no file of that name"),
        ({"prompt": "x", "extra": {"prompt": "y"}}, "send it once"),
        ({"prompt": "x", "extra": [1]}, "extra"),
        ([1, 2], "dictionary"),
        ("text", "dictionary"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(site: Site, body: object, said: str) -> None:
    status, _, message = fault(site.http.post("/v1/videos", json=body))
    assert status == 400 and said in message, message
    assert str(site.data) not in message and site.folders == []


def test_bodies_that_cannot_be_read(site: Site) -> None:
    for kind, body, status in (
        ("application/json", b"{", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"\xff\xfe", 400),
        ("text/plain", b"x", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n", 400),
    ):
        answer = site.http.post("/v1/videos", content=body, headers={"content-type": kind})
        assert answer.status_code == status, (kind, body[:20], answer.text)


def test_a_client_sees_its_own_videos_alone(tmp_path: Path) -> None:
    site = Site(tmp_path / "service", tokens=BOTH)
    assert fault(site.http.get("/v1/videos"))[:2] == (401, "invalid_api_key")
    assert site.http.get("/health").status_code == 200
    ann, bob = ({"authorization": f"Bearer {secret}"} for secret in (ANN, BOB))
    for near in (ANN[:-1], ANN + "x", "", "Bearer", ANN.upper()):
        answer = site.http.get("/v1/videos", headers={"authorization": f"Bearer {near}"})
        assert answer.status_code == 401
    body = {"prompt": PROMPT, **QUICK}
    name = site.http.post("/v1/videos", json=body, headers=ann).json()["id"]
    assert [v["id"] for v in site.http.get("/v1/videos", headers=ann).json()["data"]] == [name]
    assert site.http.get("/v1/videos", headers=bob).json()["data"] == []
    assert site.http.get("/v1/queue", headers=bob).json()["data"] == []
    for method, path in (
        ("GET", ""),
        ("GET", "/content"),
        ("GET", "/events"),
        ("GET", "/previews/0"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("DELETE", ""),
    ):
        assert site.http.request(method, f"/v1/videos/{name}{path}", headers=bob).status_code == 404, path
    cookie = Sessions(BOTH, site.data).cookie("ann")
    for value, status in ((cookie, 200), (cookie[:-1] + "0", 401), ("ann:", 401), ("eve:" + cookie, 401)):
        answer = site.http.get("/v1/videos", headers={"cookie": f"{COOKIE}={value}"})
        assert answer.status_code == (status if value != cookie[:-1] + "0" or cookie[-1] != "0" else 200)
    assert ANN not in cookie


def test_limits_of_a_client(tmp_path: Path) -> None:
    site = Site(tmp_path / "a", limits=Limits(queued=2, spare=0.0))
    site.make()
    site.make()
    answer = site.http.post("/v1/videos", json={"prompt": PROMPT})
    assert fault(answer)[:2] == (429, "queue_full") and len(site.folders) == 2
    often = Site(tmp_path / "b", limits=Limits(posts=3, spare=0.0))
    statuses = [often.http.post("/v1/videos/cost", json={"prompt": PROMPT}).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert often.http.get("/v1/videos").status_code == 200, "to look costs nothing"
    full = Site(tmp_path / "c", limits=Limits(spare=1e9))
    assert fault(full.http.post("/v1/videos", json={"prompt": PROMPT}))[:2] == (507, "no_room")


def test_bodies_that_are_too_large(tmp_path: Path) -> None:
    site = Site(tmp_path / "service", limits=Limits(upload=20_000, spare=0.0))
    large = {"prompt": PROMPT, "negative_prompt": "x" * 30_000}
    assert fault(site.http.post("/v1/videos", json=large))[:2] == (413, "too_large")

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    streamed = site.http.post("/v1/videos", content=pieces(), headers={"content-type": "application/json"})
    assert fault(streamed)[:2] == (413, "too_large")
    lying = site.http.post("/v1/videos", content=b"{}", headers={"content-length": "x"})
    assert lying.status_code == 413


def test_pages_of_other_sites_cannot_reach_it(site: Site) -> None:
    body = {"prompt": PROMPT}
    theirs = site.http.post("/v1/videos", json=body, headers={"origin": "https://evil.example"})
    assert fault(theirs)[:2] == (403, "forbidden_origin")
    rebound = site.http.get("/v1/videos", headers={"host": "evil.example"})
    assert fault(rebound)[:2] == (403, "forbidden_host")
    own = site.http.post("/v1/videos", json=body, headers={"origin": "http://testserver"})
    assert own.status_code == 200
    assert own.headers["x-content-type-options"] == "nosniff"


def test_faults_of_the_program_tell_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"secret {site.data}")

    monkeypatch.setattr(type(site.store), "listed", broken)
    status, code, message = fault(site.http.get("/v1/videos"))
    assert (status, code) == (500, "internal_error") and "secret" not in message


def test_a_store_that_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def gone(*_: object, **__: object) -> None:
        raise OperationalError("SELECT password", {}, Exception("host db.internal is down"))

    monkeypatch.setattr(type(site.store), "get", gone)
    status, code, message = fault(site.http.get("/v1/videos/x"))
    assert (status, code) == (503, "store_unavailable") and "internal" not in message


def test_metrics_count_by_route_and_not_by_video(site: Site) -> None:
    name = site.make()["id"]
    site.http.get(f"/v1/videos/{name}")
    site.http.get("/nowhere/at/all")
    text = site.http.get("/metrics").text
    assert 'framepack_videos{status="queued"} 1.0' in text
    assert 'route="/v1/videos/{video_id}",status="200"} 1.0' in text
    assert name not in text and "nowhere" not in text


def test_old_videos_and_those_over_the_quota_are_deleted(made: tuple[Site, str]) -> None:
    site, _ = made
    service = site.service
    first = site.make()["id"]
    second = site.make()["id"]
    worker = Worker(site.store, site.config, "w")
    assert worker.once() and worker.once()
    kept = {job.id for job in site.store.listed()}
    assert service.clean() == []
    size = site.store.get(second).size
    object.__setattr__(service, "limits", Limits(quota=(size + 10) / 1e9, spare=0.0))
    gone = service.clean()
    assert first in gone and set(gone) == kept - {second}
    assert [job.id for job in site.store.listed()] == [second] and site.folders == [second]
    object.__setattr__(service, "limits", Limits(days=0.0, spare=0.0))
    time.sleep(0.01)
    assert service.clean() == [second]


def test_tokens_are_long_and_have_names() -> None:
    assert Tokens.parse([ANN]).client(ANN) == "local"
    both = Tokens.parse([f"ann:{ANN}", f"bob:{BOB}"])
    assert (both.client(ANN), both.client(BOB), both.client("x")) == ("ann", "bob", None)
    for wrong in (["short"], [f"a b:{ANN}"], [f"ann:{ANN}", f"ann:{BOB}"], ["name:"], ["é" * 20]):
        with pytest.raises(InputError) as caught:
            Tokens.parse(wrong)
        assert ANN not in str(caught.value) and BOB not in str(caught.value)


def test_a_rate_is_by_client_and_passes() -> None:
    rate = Rate(2)
    assert [rate.seconds_left("a") for _ in range(2)] == [0.0, 0.0]
    assert 0 < rate.seconds_left("a") <= 60
    assert rate.seconds_left("b") == 0.0


def test_the_documentation_has_every_endpoint(site: Site) -> None:
    assert site.http.get("/docs").status_code == 200
    schema = site.http.get("/openapi.json").json()
    body = schema["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert body["multipart/form-data"]["schema"]["properties"]["input_reference"]["format"] == "binary"
    assert isinstance(TestClient(site.app), TestClient)
