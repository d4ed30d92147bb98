"""Jobs from the queue to their videos: by a worker in this process, and by processes that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framepack.generation.fork import edited, fork_run
from framepack.generation.manifest import read_log
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.serving.asked import Asked, Offer
from framepack.serving.config import ServiceConfig
from framepack.serving.jobs import Job, NewJob, Status, Wish, new_id
from framepack.serving.places import ServiceFolder
from framepack.serving.progress import Progress
from framepack.serving.store import JobStore
from framepack.serving.supervisor import Supervisor
from framepack.serving.worker import Worker

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = Path(__file__).parents[1] / "examples" / "demo.png"
PROMPT = "A red heart moves right over green hills."
SHORT = {"seconds": 2.0, "steps": 2, "guidance": 1.0, "seed": 5}
PATIENCE = 120.0


class Service:
    """A store and a folder, and a worker in this process."""

    def __init__(self, data: Path, lease: float = 15.0) -> None:
        self.places = ServiceFolder(data)
        self.store = JobStore(self.places.default_store, lease=lease)
        self.config = ServiceConfig(data=data, store=self.store.url, threads=1, niceness=0)
        self.worker = Worker(self.store, self.config, "w")

    def ask(self, asked: Asked | None = None, **more: object) -> str:
        name = new_id()
        asked = asked or Asked(prompt=PROMPT, **{**SHORT, **more})
        folder = self.places.job(name).path
        folder.mkdir(parents=True)
        for file in asked.files:
            shutil.copy(DEMO, folder / file)
        new = NewJob(id=name, client="c", model=asked.model, prompt=asked.prompt, asked=asked.to_json())
        return self.store.add(new).id

    def until(self, name: str, wanted: Callable[[Job], bool]) -> Job:
        begun = time.monotonic()
        while not wanted(job := self.store.get(name)):
            assert time.monotonic() - begun < PATIENCE, job
            time.sleep(0.02)
        return job

    def latents(self, name: str) -> dict[str, bytes]:
        folder = self.places.job(name).run / "latents"
        return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "service")
    yield made
    made.store.close()


def test_a_job_gives_what_the_command_line_would(service: Service, tmp_path: Path) -> None:
    name = service.ask(image="start.png")
    assert service.worker.once() and not service.worker.once()
    job, folder = service.store.get(name), service.places.job(name)
    assert job.status is Status.COMPLETED, job.error
    progress = Progress.from_json(job.progress)
    assert progress.fraction == 1 and progress.shown == progress.frames == 16 and progress.stage == "done"
    assert [folder.preview(n).is_file() for n in progress.previews] == [True] * progress.sections
    assert job.size == folder.size > folder.video.stat().st_size > 1000

    run = prepare(GenerateRequest(prompt=PROMPT, image=DEMO, **SHORT, out=tmp_path / "a.mp4"))
    run.carry_out(lambda event: None)
    own = {f.name: f.read_bytes() for f in (run.places.workdir / "latents").glob("*.safetensors")}
    assert service.latents(name) == own
    assert (tmp_path / "a.mp4").read_bytes() == folder.video.read_bytes()


@pytest.mark.parametrize("wish", list(Wish))
def test_a_job_that_is_being_made_can_be_stopped(service: Service, wish: Wish) -> None:
    name = service.ask(seconds=20.0)
    thread = threading.Thread(target=service.worker.once)
    thread.start()
    service.until(name, lambda job: job.progress.get("section", 0) >= 1)
    service.store.wish(name, wish)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    if wish is Wish.DELETE:
        assert service.store.listed() == [] and not service.places.job(name).path.exists()
        return
    job = service.store.get(name)
    assert job.status is (Status.PAUSED if wish is Wish.PAUSE else Status.CANCELLED)
    assert 0 < job.progress["section"] < job.progress["sections"]
    if wish is Wish.PAUSE:
        before = len(service.latents(name))
        service.store.resume(name)
        assert service.worker.once()
        ended = service.store.get(name)
        assert ended.status is Status.COMPLETED and ended.attempt == 2
        assert ended.progress["kept"] >= 1 and len(service.latents(name)) > before


def test_a_worker_that_ends_gives_its_job_back(service: Service) -> None:
    name = service.ask(seconds=20.0)
    ends = threading.Event()
    worker = Worker(service.store, service.config, "ending", stop=ends.is_set)
    thread = threading.Thread(target=worker.run)
    thread.start()
    service.until(name, lambda job: job.progress.get("section", 0) >= 1)
    assert list(service.store.workers()) == ["ending"]
    ends.set()
    thread.join(PATIENCE)
    job = service.store.get(name)
    assert (job.status, job.worker, job.deaths) == (Status.QUEUED, None, 0)


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ({"prompt": PROMPT, "seconds": 1e9}, "invalid_request", "86,400"),
        ({"prompt": PROMPT, "method": "nonsense"}, "invalid_request", "nonsense"),
        ({"prompt": PROMPT, "image": "gone.png"}, "invalid_request", "'gone.png' does not exist"),
        ({"prompt": PROMPT, "model": "other"}, "invalid_request", "unknown model 'other'"),
        ({"prompt": PROMPT, "loras": [["../../x", 1.0]]}, "invalid_request", "unknown LoRA"),
    ],
)
def test_what_cannot_be_made_fails_in_one_line(
    service: Service, asked: dict[str, object], code: str, said: str
) -> None:
    name = new_id()
    model = str(asked.get("model", "bundled"))
    service.store.add(NewJob(id=name, client="c", model=model, prompt="", asked=asked))
    assert service.worker.once()
    job = service.store.get(name)
    assert job.status is Status.FAILED and job.error is not None
    assert job.error["code"] == code and said in job.error["message"]
    assert "\n" not in job.error["message"] and str(service.places.path) not in job.error["message"]


def test_a_fault_of_the_program_fails_the_job_and_not_the_worker(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = service.ask()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("framepack.serving.worker.prepare", broken)
    assert service.worker.once()
    job = service.store.get(name)
    assert job.error is not None and job.error["code"] == "internal_error"
    assert "ZeroDivisionError" in job.error["message"] and "secret" not in job.error["message"]


def test_a_folder_in_use_is_tried_again_later(service: Service) -> None:
    name = service.ask()
    worker = Worker(service.store, service.config, "first")
    assert worker.once()
    other = service.ask()
    folder = service.places.job(other)
    shutil.copytree(service.places.job(name).run, folder.run)
    from framepack.generation.store import RunStore

    header, _, _ = read_log(folder.run)
    assert header is not None
    with RunStore(folder.run, header["config"]):
        assert service.worker.once()
    job = service.store.get(other)
    assert job.status is Status.QUEUED and job.ready > job.created + 5


def test_a_section_is_made_again_in_a_copy(service: Service) -> None:
    first = service.ask()
    assert service.worker.once()
    before = service.latents(first)
    name = new_id()
    folder = service.places.job(name)
    folder.path.mkdir(parents=True)
    fork_run(service.places.job(first).run, folder.run)
    assert not edited(folder.run)
    assert not folder.video.exists() and service.latents(name) == before
    redo = {"section": 1, "prompt": None, "seed": 9, "alone": True}
    asked = Asked(prompt=PROMPT, **SHORT).to_json()
    service.store.add(
        NewJob(id=name, client="c", model="bundled", prompt=PROMPT, asked=asked, parent=first, redo=redo)
    )
    assert service.worker.once()
    job = service.store.get(name)
    assert job.status is Status.COMPLETED, job.error
    assert edited(folder.run)
    assert len(service.latents(name)) == len(before) + 1 and service.latents(first) == before
    assert folder.video.read_bytes() != service.places.job(first).video.read_bytes()


def test_a_run_is_forked_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no work folder"):
        fork_run(tmp_path, tmp_path / "b")
    source = tmp_path / "a"
    run = prepare(GenerateRequest(prompt=PROMPT, **SHORT, out=tmp_path / "a.mp4", workdir=source))
    run.carry_out(lambda event: None)
    monkeypatch.setattr(os, "link", _no_links)
    fork_run(source, tmp_path / "b")  # copied then
    names = [p.name for p in sorted((tmp_path / "b" / "latents").iterdir())]
    assert names == [p.name for p in sorted((source / "latents").iterdir())]
    monkeypatch.setattr(shutil, "copy2", _no_links)
    with pytest.raises(OSError, match="no links"):
        fork_run(source, tmp_path / "c")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".c", "c"))]


def _no_links(*_: object) -> None:
    raise OSError(1, "no links here")


@pytest.mark.slow  # tests/test_service_kills.py has the same over HTTP
def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL in the middle of jobs: every video is there once, of the same latents as undisturbed."""
    plain, killed = Service(tmp_path / "plain"), Service(tmp_path / "killed")
    prompts = [PROMPT, "A blue star moves up over snow."]
    for service in (plain, killed):
        for prompt in prompts:
            service.ask(Asked(prompt=prompt, **{**SHORT, "seconds": 6.0}))
    while plain.worker.once():
        pass
    supervisor = Supervisor(killed.store, killed.config, 1)
    supervisor.start()
    try:
        kills = 0
        jobs = [job.id for job in reversed(killed.store.listed())]
        for name in jobs:
            killed.until(name, lambda job: job.progress.get("section", 0) >= 2)
            for process in supervisor.processes:
                os.kill(process, signal.SIGKILL)
                kills += 1
        for name in jobs:
            killed.until(name, lambda job: job.ended is not None)
    finally:
        supervisor.close()
    assert kills == 2 and supervisor.processes == []
    done = [killed.store.get(name) for name in jobs]
    assert [job.status for job in done] == [Status.COMPLETED] * 2, [job.error for job in done]
    assert [job.attempt for job in done] == [2, 2]
    originals = [job.id for job in reversed(plain.store.listed())]
    for name, other in zip(jobs, originals, strict=True):
        assert killed.latents(name) == plain.latents(other)
    for service in (plain, killed):
        service.store.close()


def test_models_are_loaded_once_while_they_are_asked_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []

    def counted(request: GenerateRequest, bundle: object = None) -> object:
        given.append(bundle is not None)
        return prepare(request, bundle)

    monkeypatch.setattr("framepack.serving.worker.prepare", counted)
    offers = {"bundled": Offer(model="bundled"), "exact": Offer(model="bundled", dtype="float32")}
    config = ServiceConfig(data=service.places.path, store=service.store.url, offers=offers)
    for model in ("bundled", "bundled", "exact", "bundled"):
        service.ask(model=model)
    worker = Worker(service.store, config, "w")
    while worker.once():
        pass
    assert given == [False, True, False, False]
    assert {job.status for job in service.store.listed()} == {Status.COMPLETED}
