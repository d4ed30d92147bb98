"""What is sent by those who mean no good: no fault, no path, nothing outside the service's own folders."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

import framepack
import hostile
from framepack.serving import server
from framepack.serving.app import create_app
from framepack.serving.clients import MONTH, Sessions, Tokens
from framepack.serving.jobs import Status
from framepack.serving.page.mount import OWN
from framepack.serving.places import ID
from framepack.serving.service import Limits
from framepack.serving.worker import Worker
from hostile_case import FORM, TAKEN, Case, form, part
from hostile_case import PROMPT as TEXT
from service_site import ANN, BOB, PROMPT, QUICK, Site

pytestmark = pytest.mark.usefixtures("one_thread")

CORPUS = hostile.corpus()
MANY = Limits(queued=10**6, posts=10**6, spare=0.0)
BOTH = Tokens({"ann": ANN, "bob": BOB})
GROWTH = 150_000_000
"""Bytes of memory that no refused picture may take."""
KEPT = ("start.png", "end.png", "from_clip.mp4", "to_clip.mp4")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: bytes
    body: bytes


class Place:
    """A service in a folder of its own, with folders around it that nothing may be written to."""

    def __init__(self, around: Path, tokens: Tokens | None = None) -> None:
        self.around = around
        for name in ("beside", "tmp"):
            (around / name).mkdir(parents=True)
        self.site = Site(around / "service", limits=MANY, tokens=tokens or Tokens({}))
        self.secrets = [str(around), str(Path(framepack.__file__).parent), "site-packages", "Traceback"]
        self.made = ""
        self.runner = asyncio.Runner()

    def finish(self) -> None:
        """One video, made."""
        self.made = self.site.make()["id"]
        assert Worker(self.site.store, self.site.config, "w").once()
        assert self.site.store.get(self.made).status is Status.COMPLETED

    def ask(self, case: Case) -> Answer:
        return self.runner.run(_ask(self.site.app, case, self.made))

    def surroundings(self) -> list[str]:
        """All files but those of jobs and of the store."""
        jobs = self.site.data / "jobs"
        inside = [p for p in self.around.rglob("*") if jobs not in p.parents]
        return sorted(str(p) for p in inside if not p.name.startswith("jobs.sqlite"))

    def settles(self, before: list[str]) -> bool:
        """Whether the surroundings become as they were: what was sent is deleted after the answer."""
        until = time.monotonic() + 20
        while (same := self.surroundings() == before) is False and time.monotonic() < until:
            time.sleep(0.02)
        return same

    def checked(self, case: Case, before: list[str]) -> Answer:
        """The answer to a case, after all that must hold for each."""
        answer = self.ask(case)
        assert answer.status in case.answers, (answer.status, answer.body[:300])
        for secret in self.secrets:
            assert secret.encode() not in answer.headers + answer.body, (secret, answer.body[:500])
        assert self.surroundings() == before
        for folder in (self.site.data / "jobs").iterdir():
            assert ID.fullmatch(folder.name)
            if folder.name == self.made:
                continue
            for file in folder.iterdir():
                assert file.name in KEPT, file.name
                if file.suffix == ".png":
                    assert Image.open(file).format == "PNG"
                    assert not any(payload in file.read_bytes() for payload in case.gone)
            self.site.service.delete("local", folder.name)
        return answer


async def _ask(app: Callable, case: Case, made: str) -> Answer:
    path = case.path.replace("{id}", made)
    headers = [(b"content-length", str(len(case.body)).encode()), *case.headers]
    if any(name == b"content-length" for name, _ in case.headers):
        headers = headers[1:]
    headers += [(b"host", case.host)] if case.host is not None else []
    headers += [(b"content-type", case.kind)] if case.kind is not None else []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": case.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": case.query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 5),
        "server": ("testserver", 80),
        "state": {},
    }
    pieces = [case.body[at : at + 65536] for at in range(0, len(case.body), 65536)] or [b""]
    told: list[dict] = []

    async def receive() -> dict:
        if not pieces:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict) -> None:
        told.append(message)

    with suppress(Exception):  # faults are told as 500, then raised for the server's log
        await app(scope, receive, send)
    head = b"\n".join(name + b": " + value for name, value in told[0]["headers"])
    return Answer(told[0]["status"], head, b"".join(message.get("body", b"") for message in told[1:]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("around"))
    made.finish()
    before, tempfile.tempdir = tempfile.tempdir, str(made.around / "tmp")
    (made.site.data / "uploads").mkdir(exist_ok=True)
    made.ask(Case(name="", method="GET", path="/"))  # the page lays out its own files once
    yield made
    tempfile.tempdir = before
    made.site.store.close()


@contextmanager
def _memory() -> Iterator[Callable[[], int]]:
    """Bytes that this process had at the most since, beyond what it had at first."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def told(name: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if name in line)

    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("peaks of memory are known on Linux alone")
    first = told("VmRSS")
    yield lambda: told("VmHWM") - first


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 300


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_it_stands(place: Place, case: Case) -> None:
    before = place.surroundings()
    answer = place.checked(case, before)
    of_page = case.path.split("/")[1] in OWN  # Gradio's, which has a shape of its own
    if answer.status >= 400 and case.method != "HEAD" and "range" not in case.name and not of_page:
        assert set(_fault(answer)) == {"message", "type", "param", "code"}


def _fault(answer: Answer) -> dict:
    import json

    told = json.loads(answer.body)["error"]
    assert told["message"].isprintable()
    return told


def test_it_still_answers(place: Place) -> None:
    """After all of the above."""
    assert place.site.make()["status"] == "queued"
    whole = place.ask(Case(name="", method="GET", path="/v1/videos/{id}/content"))
    assert whole.status == 200 and whole.body[4:8] == b"ftyp"
    assert [p.name for p in (place.site.data / "uploads").iterdir()] == []


def test_bombs_take_no_memory(place: Place) -> None:
    cases = [case for case in CORPUS if case.name.startswith(("bomb-", "odd-", "json-", "form-"))]
    assert len(cases) > 100
    for case in cases:
        with _memory() as grown:
            place.ask(case)
            assert grown() < GROWTH, (case.name, grown())


def test_ranges_give_what_was_asked_for(place: Place) -> None:
    whole = place.ask(Case(name="", method="GET", path="/v1/videos/{id}/content")).body
    for asked, status, sent in (
        ("bytes=0-0", 206, whole[:1]),
        ("bytes=5-", 206, whole[5:]),
        ("bytes=-7", 206, whole[-7:]),
        (f"bytes=0-{10**14}", 206, whole),
        (f"bytes=-{10**14}", 206, whole),
        (f"bytes={len(whole)}-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=0-1,3-4", 200, whole),
        ("bytes=3-1", 200, whole),
    ):
        headers = ((b"range", asked.encode()),)
        answer = place.ask(Case(name="", method="GET", path="/v1/videos/{id}/content", headers=headers))
        assert answer.status == status, asked
        assert sent is None or answer.body == sent, asked
        assert sent is None or f"content-length: {len(sent)}".encode() in answer.headers
    tag = next(line for line in answer.headers.split(b"\n") if line.startswith(b"etag")).split(b": ")[1]
    for told, status in ((tag, 206), (b'"other"', 200)):
        headers = ((b"range", b"bytes=0-0"), (b"if-range", told))
        case = Case(name="", method="GET", path="/v1/videos/{id}/content", headers=headers)
        assert place.ask(case).status == status


def test_clips_are_opened_by_workers_alone_and_fail_there(place: Place) -> None:
    """They took none of the server's time; their jobs fail in one line, without a path."""
    clips = [case for case in CORPUS if case.name.startswith("from_clip-mp4")]
    whole = place.site.service.places.job(place.made).video.read_bytes()
    for name, data in (
        ("cut", whole[: len(whole) // 2]),
        ("of-billions-of-samples", _with_samples(whole)),
    ):
        sent = part("from_clip", data, "a.mp4")
        clips.append(form(name, TEXT, sent, answers=TAKEN))
    for job in place.site.store.queue():
        place.site.service.delete("local", job.id)
    for case in clips:
        assert place.ask(case).status == 200
    worker = Worker(place.site.store, place.site.config, "w")
    jobs = [job.id for job in place.site.store.queue()]
    assert len(jobs) == len(clips) >= 8
    failed = 0
    for name in jobs:
        assert worker.once()
        job = place.site.store.get(name)
        if job.status is Status.COMPLETED:  # FFmpeg takes a picture for a clip of one frame
            continue
        failed += 1
        assert job.status is Status.FAILED and job.error is not None, (name, job.progress)
        assert job.error["code"] == "invalid_request", job.error
        assert job.error["message"].isprintable()
        assert str(place.around) not in job.error["message"]
    assert failed >= len(clips) - 1


def _with_samples(video: bytes) -> bytes:
    """An MP4 that says of its only track that it has four billion pictures."""
    at = video.index(b"stsz") + 12
    return video[:at] + b"\xff\xff\xff\xff" + video[at + 4 :]


def test_tokens_let_in_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, BOTH)
    cookie = Sessions(BOTH, place.site.data).cookie("ann")
    before = place.surroundings()
    cases = list(hostile.of_tokens(ANN, cookie))
    assert len(cases) > 50
    for case in cases:
        answer = place.ask(case)
        assert answer.status in case.answers, (case.name, answer)
        assert ANN.encode() not in answer.headers + answer.body, case.name
    assert place.surroundings() == before
    for header in (
        (b"cookie", f"framepack_session={cookie}".encode()),
        (b"authorization", f"bearer {ANN}".encode()),
    ):
        assert place.ask(Case(name="", method="GET", headers=(header,))).status == 200
    # A cookie is worth no more once its token is another, and nothing with another service's key.
    changed = Sessions(Tokens({"ann": BOB}), place.site.data)
    assert changed.client(cookie) is None
    sessions = Sessions(BOTH, place.site.data)
    assert sessions.client(cookie) == "ann"
    late = time.time() + MONTH
    monkeypatch.setattr(time, "time", lambda: late)
    assert sessions.client(cookie) is None, "it ends after a month"
    monkeypatch.undo()
    assert Sessions(BOTH, tmp_path / "elsewhere").client(cookie) is None
    place.site.store.close()


# Over a socket ---------------------------------------------------------------------------------------------

SLOW = 0.4
GOOD = b'{"prompt":"x"}'
POST = b"POST /v1/videos/cost HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def clean(place: Place) -> list[str]:
    assert not any((place.site.data / "uploads").iterdir())
    return place.surroundings()


@pytest.fixture(scope="module")
def port(place: Place) -> Iterator[int]:
    """Of the same service, behind a real server that waits for nobody long."""
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "IDLE", SLOW)
        app = create_app(place.site.service, hosts={"localhost"}, slow=SLOW)
        running = server.server_of(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def _sent(port: int, *pieces: bytes, wait: float = 0.0, patience: float = 20.0) -> bytes:
    """All that is answered until the server ends the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(wait)
        with suppress(ConnectionError):
            while piece := connection.recv(65536):
                answer += piece
    return answer


LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
CLOSE = b"Connection: close\r\n\r\n"
RAW: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "fine": ((POST + LENGTH + CLOSE + GOOD,), b"HTTP/1.1 200"),
    "nothing": ((), b""),
    "half-a-request-line": ((b"POST /v1/vid",), b""),
    "half-its-headers": ((POST,), b""),
    "no-body": ((POST + LENGTH + b"\r\n",), b"HTTP/1.1 408"),
    "half-its-body": ((POST + LENGTH + b"\r\n" + GOOD[:5],), b"HTTP/1.1 408"),
    "less-than-it-said": ((POST + b"Content-Length: 999\r\n\r\n" + GOOD,), b"HTTP/1.1 408"),
    "more-than-it-said": ((POST + b"Content-Length: 3\r\n" + CLOSE + GOOD,), b"HTTP/1.1 400"),
    "two-lengths": ((POST + LENGTH + b"Content-Length: 5\r\n" + CLOSE + GOOD,), b"HTTP/1.1 400"),
    "length-and-chunks": ((POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",), b"HTTP/1.1 400"),
    "negative-length": ((POST + b"Content-Length: -5\r\n\r\n" + GOOD,), b"HTTP/1.1 400"),
    "length-of-a-terabyte": ((POST + b"Content-Length: 999999999999\r\n" + CLOSE,), b"HTTP/1.1 413"),
    "chunk-of-no-number": ((POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",), b"HTTP/1.1 400"),
    "chunks-that-stop": ((POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"pro',), b"HTTP/1.1 408"),
    "other-encoding": ((POST + b"Transfer-Encoding: gzip\r\n\r\n",), b"HTTP/1.1 400"),
    "headers-of-a-megabyte": ((POST + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",), b"HTTP/1.1 4"),
    "header-without-end": ((POST + b"X: y",), b""),
    "header-with-nul": ((POST + b"X: \0\r\n" + CLOSE,), b"HTTP/1.1 400"),
    "header-folded": ((POST + b"X: y\r\n Host: evil\r\n" + LENGTH + CLOSE + GOOD,), b"HTTP/1.1 200"),
    "two-hosts": ((POST + b"Host: evil.example\r\n" + LENGTH + CLOSE + GOOD,), b"HTTP/1.1 400"),
    "no-host": ((b"GET /health HTTP/1.1\r\n" + CLOSE,), b"HTTP/1.1 4"),
    "old-http": ((b"GET /health HTTP/1.0\r\n\r\n",), b"HTTP/1.1 403"),
    "http-9": ((b"GET / HTTP/9.9\r\n\r\n",), b"HTTP/1.1 4"),
    "http-2": ((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), b"HTTP/1.1 4"),
    "tls": ((b"\x16\3\1\2\0\1\0\1\xfc\3\3" + b"\0" * 99,), b"HTTP/1.1 400"),
    "noise": ((bytes(range(256)) * 9,), b"HTTP/1.1 400"),
    "line-feeds": ((b"\n" * 9000,), b"HTTP/1.1 400"),
    "path-of-100000": ((b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n",), b"HTTP/1.1 4"),
    "absolute-path": (
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n" + CLOSE,),
        b"HTTP/1.1 404",
    ),
    "path-with-line-feed": (
        (b"GET /health%0d%0aX-Evil:1 HTTP/1.1\r\nHost: localhost\r\n" + CLOSE,),
        b"HTTP/1.1 404",
    ),
    "byte-by-byte-too-slow": (tuple(bytes([b]) for b in POST[:9]), b""),
}


@pytest.mark.parametrize("name", RAW)
def test_over_a_socket(place: Place, port: int, clean: list[str], name: str) -> None:
    pieces, begins = RAW[name]
    answer = _sent(port, *pieces, wait=SLOW / 5 if "slow" in name else 0.0)
    assert answer.startswith(begins) and (begins or not answer), answer[:300]
    assert b"X-Evil" not in answer.partition(b"\r\n\r\n")[0]
    for secret in place.secrets:
        assert secret.encode() not in answer
    assert place.settles(clean)
    assert _sent(port, POST + LENGTH + CLOSE + GOOD).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    first, last = POST + LENGTH + b"\r\n" + GOOD, POST + LENGTH + CLOSE + GOOD
    answer = _sent(port, b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" + first * 20 + last)
    assert answer.count(b"HTTP/1.1 200") == 21 and answer.count(b"HTTP/1.1 404") == 1
    assert answer.index(b"404") < answer.index(b"HTTP/1.1 200")


def test_clients_that_leave_in_the_middle_leave_nothing(place: Place, port: int, clean: list[str]) -> None:
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n"
    begun = head + b"Content-Type: " + FORM + b"\r\n\r\n" + TEXT
    for sent in (head, begun, begun + part("image", b"x" * 2_000_000, "a")):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(sent)
    time.sleep(SLOW)  # they are being received
    assert place.settles(clean)


def test_many_idle_connections_are_ended(port: int) -> None:
    waiting = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(100)]
    assert _sent(port, POST + LENGTH + CLOSE + GOOD).startswith(b"HTTP/1.1 200")
    for connection in waiting:
        assert connection.recv(1) == b""
        connection.close()


def test_events_of_a_client_that_left_are_no_longer_told(place: Place, port: int) -> None:
    """More connections than a client may have, one after the other."""
    from framepack.serving import api

    name = place.site.make(**QUICK, prompt=PROMPT)["id"]
    ask = f"GET /v1/videos/{name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "FOLLOWED", 2)
        held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
        for connection in held:
            connection.sendall(ask)
            assert b"event-stream" in connection.recv(65536)
        refused = _sent(port, ask.replace(b"\r\n\r\n", b"\r\n" + CLOSE))
        assert refused.startswith(b"HTTP/1.1 429")
        for connection in held:
            connection.close()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as again:
                again.sendall(ask)
                if b"event-stream" in again.recv(65536):
                    break
            time.sleep(0.1)
        else:
            raise AssertionError("connections that were left are still counted")
    place.site.service.delete("local", name)


def test_the_case_of_one_case() -> None:
    """The harness sees a fault: an application that breaks is told as 500."""

    async def broken(scope: dict, receive: Callable, send: Callable) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise RuntimeError

    with asyncio.Runner() as runner:
        answer = runner.run(_ask(broken, replace(CORPUS[0]), "x"))
    assert answer.status not in CORPUS[0].answers
