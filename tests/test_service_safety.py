"""Races, leaks and limits of the service, one by one."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import Request
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from framepack.errors import InputError
from framepack.serving import service as services
from framepack.serving.asked import Asked, Offer
from framepack.serving.clients import Rate
from framepack.serving.config import ServiceConfig
from framepack.serving.files import FileAnswer
from framepack.serving.jobs import NewJob, NoSuchJob, QueueFull, Status, Wish
from framepack.serving.service import DAY, HOUR, NoRoom, Service, TooMuch, as_picture
from framepack.serving.sprites import spritesheet
from framepack.serving.store import JobStore
from framepack.serving.worker import Worker
from framepack.video.io import write_video
from postgres import server as postgres
from service_site import PROMPT, QUICK, Site, picture, with_video

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobStore]:
    if request.param == "sqlite":
        opened = JobStore(f"sqlite:///{tmp_path_factory.mktemp('store')}/jobs.sqlite")
        yield opened
        opened.close()
        return
    with postgres() as running:
        opened = JobStore(running.url)
        yield opened
        opened.close()


def new(client: str = "c", **more: object) -> NewJob:
    return NewJob(client=client, model="bundled", prompt="x", asked={"model": "bundled"}, **more)


# Deleted meanwhile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["completed", "failed", "given back"])
def test_a_job_that_is_deleted_as_it_ends_leaves_no_folder(
    site: Site, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Its worker has heard nothing of it when it comes to tell that it is done."""
    name = site.make()["id"]
    worker = Worker(site.store, site.config, "w")
    before = worker.store.give_back if end == "given back" else worker.store.finish

    def late(*told: object, **more: object) -> bool:
        site.service.delete("local", name)
        return before(*told, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(worker.store, "give_back" if end == "given back" else "finish", late)
    if end == "failed":
        monkeypatch.setattr(worker, "_prepared", lambda *_: 1 / 0)
    if end == "given back":
        from framepack.errors import RunConflictError

        def taken(*_: object) -> None:
            raise RunConflictError("in use")

        monkeypatch.setattr(worker, "_prepared", taken)
    assert worker.once()
    assert site.store.listed() == [] and site.folders == []


def test_a_job_that_a_worker_took_just_now_is_left_to_it(site: Site) -> None:
    name = site.make()["id"]
    lease, _ = site.store.lease("w") or pytest.fail("no job")
    site.service.delete("local", name)
    assert site.folders == [name], "the worker writes there"
    assert site.store.renew(lease) is Wish.DELETE
    site.store.drop(lease)


def test_what_a_dead_worker_left_of_a_deleted_job_is_cleaned_up(site: Site) -> None:
    name = site.make()["id"]
    site.store.lease("w")
    site.service.delete("local", name)
    site.store.dead("w")
    assert site.store.lease("other") is None, "nobody makes it any more"
    assert site.service.clean() == [] and site.folders == [name], "it might be one that is being submitted"
    then = time.time() - HOUR - 1
    os.utime(site.service.places.job(name).path, (then, then))
    assert site.service.clean() == [name] and site.folders == []


def test_cleaning_up_leaves_what_is_being_submitted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = Service.cost

    def slow(self: Service, *told: object) -> object:
        assert self.clean() == [] and len(site.folders) == 1
        return cost(self, *told)  # type: ignore[arg-type]

    monkeypatch.setattr(Service, "cost", slow)
    assert site.make()["status"] == "queued"
    assert len(site.folders) == 1


def test_uploads_that_a_killed_server_left_are_cleaned_up(site: Site) -> None:
    uploads = site.service.places.uploads
    for name, age in (("old", DAY + 1), ("new", 0.0)):
        (uploads / name).mkdir(parents=True)
        (uploads / name / "upload-0").write_bytes(b"x")
        os.utime(uploads / name, (time.time() - age, time.time() - age))
    site.service.clean()
    assert [p.name for p in uploads.iterdir()] == ["new"]


@pytest.mark.parametrize("verb", ["remix", "redo", "extend"])
def test_a_video_that_is_deleted_while_another_begins_with_it(
    made: tuple[Site, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    site, name = made
    folder, kept = site.service.places.job(name), tmp_path / "kept"
    before = site.folders
    cost = Service.cost

    def gone(self: Service, *told: object) -> object:
        folder.path.rename(kept)
        return cost(self, *told)  # type: ignore[arg-type]

    monkeypatch.setattr(Service, "cost", gone)
    body = {"remix": {"prompt": PROMPT}, "redo": {"section": 1}, "extend": {"prompt": PROMPT, "seconds": 1}}
    try:
        if verb == "extend":
            folder.path.rename(kept)
        answer = site.http.post(f"/v1/videos/{name}/{verb}", json=body[verb])
    finally:
        kept.rename(folder.path)
    assert answer.status_code == 404, answer.text
    assert str(site.data) not in answer.text and site.folders == before
    assert site.store.counts()[Status.QUEUED] == 0


def test_a_full_disk_is_told_as_such(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(site.data))

    with monkeypatch.context() as patch:
        patch.setattr("framepack.serving.form._copied", full)
        answer = site.http.post("/v1/videos", data={"prompt": PROMPT}, files={"image": picture()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_room")
    with monkeypatch.context() as patch:
        patch.setattr("framepack.serving.service.shutil.move", full)
        with pytest.raises(NoRoom, match="No space left"):
            site.service.submit("c", Asked(image="start.png"), {"start.png": site.data / "x"})
    assert str(site.data) not in answer.text and site.folders == []
    assert list(site.service.places.uploads.iterdir()) == []


# Files that change while they are sent ---------------------------------------------------------------------


def request(**headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "headers": raw})


def sent(answer: FileAnswer) -> bytes:
    import asyncio

    pieces: list[bytes] = []

    async def send(message: dict) -> None:
        pieces.append(message.get("body", b""))

    async def receive() -> dict:
        await asyncio.sleep(60)
        return {}

    asyncio.run(answer({"type": "http", "asgi": {}}, receive, send))
    assert answer.file.closed
    return b"".join(pieces)


def test_a_file_is_sent_as_long_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "a.mp4"
    place.write_bytes(b"0123456789")
    answers = [FileAnswer(place, request(range=asked), "video/mp4") for asked in ("", "bytes=4-")]
    with place.open("ab") as file:
        file.write(b"more")
    place.with_name("b").write_bytes(b"other")
    place.with_name("b").replace(place)
    place.unlink()
    for answer, whole in zip(answers, (b"0123456789", b"456789"), strict=True):
        assert answer.headers["content-length"] == str(len(whole))
        assert sent(answer) == whole
    with pytest.raises(FileNotFoundError):
        FileAnswer(place, request(), "video/mp4")


def _open_files() -> int:
    """0 where nothing tells."""
    told = Path("/proc/self/fd")
    return len([*told.iterdir()]) if told.is_dir() else 0


def test_a_range_past_the_end_leaves_no_file_open(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"0")
    before = _open_files()
    for _ in range(20):
        with pytest.raises(HTTPException) as caught:
            FileAnswer(place, request(range="bytes=5-"), "video/mp4")
        assert caught.value.status_code == 416
    del caught
    after = _open_files()
    assert after <= before


def test_a_video_that_is_replaced_or_deleted_between_two_looks(
    made: tuple[Site, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, name = made
    monkeypatch.setattr("framepack.serving.api._filled", lambda place: place.name == "growing.mp4")
    answer = site.http.get(f"/v1/videos/{name}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_state")


def test_two_ask_for_the_same_sheet_at_once(made: tuple[Site, str], monkeypatch: pytest.MonkeyPatch) -> None:
    site, name = made
    folder = site.service.places.job(name)
    previews = sorted((folder.path / "previews").glob("0*.png"))
    for old in (folder.path / "previews").glob("sheet-*"):
        old.unlink()
    both = threading.Barrier(2, timeout=60)

    def waiting(*told: object) -> object:
        both.wait()  # both have found that there is none yet
        return sheet(*told)  # type: ignore[arg-type]

    from framepack.serving import sprites

    sheet = sprites.contact_sheet
    monkeypatch.setattr(sprites, "contact_sheet", waiting)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(spritesheet(folder, previews).read_bytes()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1] and found[0].endswith(b"IEND\xaeB`\x82")
    assert not list((folder.path / "previews").glob(".*"))


def test_pictures_of_a_video_that_is_deleted_meanwhile(
    made: tuple[Site, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, name = made

    def gone(folder: object, previews: list[Path]) -> Path:
        raise InputError(f"image '{previews[0]}' does not exist: check the path")

    monkeypatch.setattr("framepack.serving.api.spritesheet", gone)
    answer = site.http.get(f"/v1/videos/{name}/content", params={"variant": "spritesheet"})
    assert answer.status_code == 409 and str(site.data) not in answer.text


# Limits ----------------------------------------------------------------------------------------------------


def test_a_clients_limit_holds_while_many_ask_at_once(store: JobStore) -> None:
    made: list[str] = []
    refused: list[QueueFull] = []
    start = threading.Barrier(12, timeout=60)

    def ask() -> None:
        start.wait()
        for _ in range(3):
            try:
                made.append(store.add(new("crowd"), limit=5).id)
            except QueueFull as error:
                refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (5, 31)
    assert len(store.listed("crowd")) == 5


def test_names_that_no_database_takes(store: JobStore) -> None:
    for name in ("video_\0", "\0", "'; DROP TABLE jobs; --", "%s", "\u202e" * 50):
        with pytest.raises(NoSuchJob):
            store.get(name)
        with pytest.raises(NoSuchJob):
            store.wish(name, Wish.DELETE)
    assert store.add(new()).status is Status.QUEUED


def test_a_length_is_refused_before_anything_is_planned(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*_: object) -> None:
        raise AssertionError("planned")

    monkeypatch.setattr(services, "select", planned)
    for asked in (Asked(seconds=86_400.0), Asked(frames=600 * 8 + 1)):
        with pytest.raises(TooMuch, match="at most 600 s"):
            site.service.cost(asked, site.data)


def test_a_video_cannot_be_made_longer_than_any_may_be(made: tuple[Site, str]) -> None:
    site, name = made
    length = site.store.get(name).progress["frames"] / 8
    with pytest.raises(TooMuch, match="with what is there"):
        site.service.extend("local", name, PROMPT, 600.0 - length + 0.5)


def test_clips_that_are_too_long_fail_before_they_are_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = site.data / "long.mp4"
    write_video(clip, (np.zeros((32, 32, 3), np.uint8) for _ in range(40)), 8)
    with clip.open("rb") as file:
        answer = site.http.post("/v1/videos", data={"prompt": PROMPT}, files={"from_clip": file})
    name = answer.json()["id"]
    monkeypatch.setattr("framepack.serving.worker.prepare", lambda *_: pytest.fail("it was read"))
    config = ServiceConfig(data=site.data, store=site.store.url, threads=1, seconds=4.9)
    assert Worker(site.store, config, "w").once()
    error = site.store.get(name).error
    assert error is not None and error["code"] == "invalid_request" and "5 s" in error["message"]


def test_formats_that_browsers_do_not_show_are_not_read(tmp_path: Path) -> None:
    for kind in ("BMP", "TIFF", "PPM"):
        sent = tmp_path / f"a.{kind}"
        sent.write_bytes(picture(kind=kind))
        with pytest.raises(InputError, match="is not a picture") as caught:
            as_picture(sent, tmp_path / "b.png", 10**6)
        assert str(tmp_path) not in str(caught.value)


def test_no_more_than_a_few_pictures_are_decoded_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def counted(*_: object) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1

    monkeypatch.setattr(services, "as_picture", counted)
    threads = [
        threading.Thread(target=site.service.keep_picture, args=(site.data, site.data)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == services.AT_ONCE


def test_callers_of_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("framepack.serving.clients.time.monotonic", lambda: now)
    rate = Rate(5)
    for number in range(50):
        rate.seconds_left(f"10.0.0.{number}")
    now += 61
    assert rate.seconds_left("one") == 0.0
    assert set(rate._calls) == {"one"}


def test_made_up_methods_are_one_label(site: Site) -> None:
    for number in range(5):
        assert site.http.request(f"MADEUP{number}", "/v1/videos").status_code == 405
    text = site.http.get("/metrics").text
    assert "MADEUP" not in text and 'method="other"' in text


# What is told ----------------------------------------------------------------------------------------------


def test_messages_name_no_place_of_the_server(tmp_path: Path) -> None:
    model = tmp_path / "models" / "own"
    model.mkdir(parents=True)
    config = ServiceConfig(
        data=tmp_path / "data",
        store="",
        loras=tmp_path / "loras",
        offers={"own": Offer(model=str(model)), "hub": Offer(model="org/name")},
    )
    for message, told in (
        (f"image '{tmp_path}/data/jobs/video_1/start.png' is damaged", "image 'start.png' is damaged"),
        (f"LoRA '{tmp_path}/loras/a b.safetensors' cannot", "LoRA 'a b.safetensors' cannot"),
        (f"{model}/config.json: no", "config.json: no"),
        (f"'{model}' holds", "'own' holds"),
        (f"'{tmp_path}/data2/x' stays", f"'{tmp_path}/data2/x' stays"),
        ("org/name is fine, and so is /etc/passwd", "org/name is fine, and so is /etc/passwd"),
    ):
        assert config.unplaced(message) == told


def test_a_broken_lora_is_told_without_its_place(tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "broken.safetensors").write_bytes(b"\xff" * 64)
    site = Site(tmp_path / "service", loras=loras)
    name = site.make(loras=[{"name": "broken"}])["id"]
    assert Worker(site.store, site.config, "w").once()
    job = site.store.get(name)
    assert job.status is Status.FAILED and job.error is not None
    assert "broken" in job.error["message"] and str(tmp_path) not in json.dumps(job.error)
    site.store.close()


def test_videos_tell_no_place_of_the_server(made: tuple[Site, str]) -> None:
    site, name = made
    whole = site.http.get(f"/v1/videos/{name}/content").content
    assert b"framepack" in whole and str(site.data).encode() not in whole and b"/jobs/" not in whole


def test_logs_tell_no_prompt_and_one_line_a_fault(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for url in (site.store.url, "postgresql+psycopg://me:pass-of-mine@127.0.0.1:1/none"):
        from framepack.serving.store import _engine

        engine = _engine(url)
        assert engine.hide_parameters
        assert "pass-of-mine" not in repr(engine)
        engine.dispose()

    def gone(*_: object, **__: object) -> None:
        raise OperationalError("INSERT", {"prompt": "a secret wish"}, Exception("gone"), hide_parameters=True)

    monkeypatch.setattr(type(site.store), "add", gone)
    monkeypatch.setattr(type(site.store), "get", lambda *_: 1 / 0)
    with caplog.at_level(logging.DEBUG):
        site.http.post("/v1/videos", json={"prompt": "a secret wish", **QUICK})
        site.http.get("/v1/videos/x%0aERROR forged", headers={"authorization": "Bearer my-own-secret"})
    told = [record.getMessage() for record in caplog.records if record.name.startswith("framepack")]
    assert len(told) == 2 and not any("\n" in line and "forged" in line.split("\n")[-1] for line in told)
    assert "secret" not in caplog.text


def test_a_follower_is_let_go_when_the_store_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name = site.make()["id"]
    get, calls = site.store.get, 0

    def failing(*told: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OperationalError("SELECT", {}, Exception("gone"))
        return get(*told)  # type: ignore[arg-type]

    monkeypatch.setattr(site.store, "get", failing)
    with site.http.stream("GET", f"/v1/videos/{name}/events") as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[0] == "event: video" and calls == 3
